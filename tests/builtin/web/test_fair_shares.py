"""What one caller takes of a shared tool is not taken from the others."""

from __future__ import annotations

import anyio
import pytest

from mcp_tools.builtin.web import readable
from mcp_tools.output import untrusted
from mcp_tools.output.visible import is_unseen
from mcp_tools.web.types import WebResponse

WAIT_S = 30.0


async def test_many_pages_of_one_caller_let_the_page_of_another_in_between() -> None:
    page = WebResponse(
        url="http://a.example/", status=200, headers={"content-type": "text/html"}, body=b"<p>x", is_cut=False
    )
    done: list[str] = []
    little_is_read = anyio.Event()
    readers = readable._readers
    busy = [object(), object()]
    for owner in busy:
        await readers.acquire(owner)

    async def read(principal: str) -> None:
        await readable.read(page, raw=False, principal=principal)
        done.append(principal)
        if principal == "little":
            little_is_read.set()

    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(read, "much")
            await anyio.wait_all_tasks_blocked()
            group.start_soon(read, "little")
            await anyio.wait_all_tasks_blocked()
            readers.release(busy[0])  # the other one stays taken, so one reads after the other
            await little_is_read.wait()
            assert done.count("much") <= 1
            readers.release(busy[1])


def test_each_character_of_a_text_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has millions of them."""
    judged: list[str] = []

    def is_unseen_counted(char: str) -> bool:
        judged.append(char)
        return is_unseen(char)

    monkeypatch.setattr(untrusted, "is_unseen", is_unseen_counted)
    text = "wo\u200brd \u202eword\r\n" * 1_000
    assert untrusted.clean(text, keep_lines=True) == "word word\n" * 1_000
    assert len(judged) == len(set(judged))

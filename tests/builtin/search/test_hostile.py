"""Engines and callers that do harm: each is bounded, and the next provider is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_tools.builtin.search.answers import MAX_ROWS, MAX_TEXT_CHARS, rows, text_of
from mcp_tools.builtin.search.tool import MAX_UNDER_WAY, SearchTool
from mcp_tools.builtin.search.turns import Turns
from mcp_tools.builtin.search.types import Failed, Found
from mcp_tools.errors import ToolError
from mcp_tools.types import CallContext, ToolOutput
from tests.builtin.search import servers
from tests.builtin.search.loopback import LoopbackWeb
from tests.builtin.search.servers import Reply, as_json, engine
from tests.builtin.search.test_search_web import both
from tests.builtin.search.test_search_web import rows as shown
from tests.builtin.search.test_services import NAMES, made

WAIT_S = 15.0


def structured(output: ToolOutput) -> dict[str, Any]:
    assert output.structured is not None
    return dict(output.structured)


async def asked_past(first: Reply, web: LoopbackWeb) -> dict[str, Any]:
    """Return what the second provider found after the first one's reply."""
    with engine(first) as one, engine(servers.tavily(servers.PAGES)) as two, anyio.fail_after(WAIT_S):
        return structured(await SearchTool(both(one, two), web).search("alpha", 10, CallContext()))


async def test_a_body_of_many_small_rows_is_left(web: LoopbackWeb) -> None:
    """Two million of them hold the server up for nine seconds."""
    body = b'{"type": "search", "web": {"results": [' + b"{}," * 2_000_000 + b"{}]}}"
    found = await asked_past(Reply(body=body), web)
    assert found["provider"] == "tavily"
    assert "larger than 262,144 bytes" in found["passed_over"][0]


def test_of_many_rows_and_long_texts_the_beginning_is_read() -> None:
    assert len(rows({"results": [{"n": n} for n in range(10_000)]}, "results")) == MAX_ROWS
    assert len(text_of({"title": "x" * 1_000_000}, "title")) == MAX_TEXT_CHARS


async def test_a_character_of_thousands_of_digits_spoils_no_search(web: LoopbackWeb) -> None:
    title = "Good &amp; &#" + "1" * 5_000 + ";"
    with engine(servers.brave([(title, "https://a.example/", "x")])) as one, engine() as two:
        output = await SearchTool(both(one, two), web).search("alpha", 10, CallContext())
    assert shown(output)[0]["title"].startswith("Good & ")


async def test_an_answer_that_trips_our_reading_is_passed_over(
    web: LoopbackWeb, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def trip(text: str) -> str:
        raise IndexError(text)

    monkeypatch.setattr("mcp_tools.builtin.search.services.unescape", trip)
    found = await asked_past(servers.brave(servers.PAGES), web)
    assert found["provider"] == "tavily"
    assert "could not be read" in found["passed_over"][0]
    assert "IndexError" in caplog.text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"error": "You are blocked: captcha"},
        {"detail": {"error": "rate limit exceeded"}},
        {"message": "Too many requests"},
        {"results": None, "data": None, "web": None},
        {"query": "q", "error": "rate limit"},
        {"results": {}, "data": {}, "web": {"results": {}}},
    ],
)
async def test_an_error_with_status_200_is_not_nothing_found(
    name: str, said: dict[str, Any], web: LoopbackWeb
) -> None:
    with engine(as_json(said)) as at, pytest.raises(Failed):
        await made(name, at, web).search("q", 10, timeout_s=5)


async def test_brave_without_pages_of_the_web_found_nothing(web: LoopbackWeb) -> None:
    with engine(as_json({"type": "search", "query": {"original": "q"}, "mixed": {}, "web": None})) as at:
        assert (await made("brave", at, web).search("q", 10, timeout_s=5)).hits == ()


async def test_nothing_found_is_not_kept(web: LoopbackWeb) -> None:
    with engine(servers.brave([])) as one, engine() as two:
        tool = SearchTool(both(one, two), web)
        await tool.search("alpha", 10, CallContext())
        one.reply = servers.brave(servers.PAGES)
        assert shown(await tool.search("alpha", 10, CallContext()))


async def test_what_is_kept_cannot_be_changed_by_who_got_it(web: LoopbackWeb) -> None:
    with engine(servers.brave(servers.PAGES)) as one, engine() as two:
        tool = SearchTool(both(one, two), web)
        for _ in range(3):
            output = await tool.search("alpha", 10, CallContext())
            assert shown(output)[0]["url"] == servers.PAGES[0][1]
            shown(output)[0]["url"] = "https://evil.example/"
    assert len(one.asked) == 1


async def test_the_same_question_at_the_same_time_is_asked_once(web: LoopbackWeb) -> None:
    outputs: list[ToolOutput] = []
    with engine(servers.brave(servers.PAGES)) as one, engine() as two:
        tool = SearchTool(both(one, two), web)

        async def ask() -> None:
            outputs.append(await tool.search("alpha", 10, CallContext()))

        with anyio.fail_after(WAIT_S):
            async with anyio.create_task_group() as group:
                with anyio.CancelScope() as first:
                    first.cancel()
                    await tool.search("alpha", 10, CallContext())
                for _ in range(5):
                    group.start_soon(ask)
    assert [json.dumps(structured(output)) for output in outputs] == [json.dumps(structured(outputs[0]))] * 5
    assert len(one.asked) <= 2  # the one that was withdrawn may have gone out


async def test_who_waited_for_one_that_went_asks_and_nothing_found_is_shared(web: LoopbackWeb) -> None:
    outputs: list[ToolOutput] = []
    with engine(Reply(drip=True)) as one, engine() as two:
        tool = SearchTool(both(one, two), web)
        started = anyio.Event()

        async def ask() -> None:
            started.set()
            outputs.append(await tool.search("alpha", 10, CallContext()))

        with anyio.fail_after(WAIT_S):
            async with anyio.create_task_group() as group, anyio.create_task_group() as leading:
                leading.start_soon(ask)
                await started.wait()
                for _ in range(3):
                    group.start_soon(ask)
                await anyio.lowlevel.checkpoint()
                one.reply = servers.brave([])
                leading.cancel_scope.cancel()
    assert [structured(output)["results"] for output in outputs] == [[], [], []]
    assert len(one.asked) <= 2


async def test_one_principal_leaves_room_for_others(web: LoopbackWeb) -> None:
    refused: list[int] = []
    most = anyio.Event()
    with engine(Reply(drip=True)) as one, engine(Reply(drip=True)) as two:
        tool = SearchTool(replace(both(one, two), total_s=1.0), web)

        async def ask(number: int) -> None:
            try:
                await tool.search(f"q{number}", 10, CallContext(principal="greedy"))
            except ToolError as error:
                assert "under way already" in str(error) and error.retry_after_s == 1.0
                refused.append(number)
                if len(refused) == 12:
                    most.set()

        with anyio.fail_after(WAIT_S):
            async with anyio.create_task_group() as group:
                for number in range(MAX_UNDER_WAY + 12):
                    group.start_soon(ask, number)
                await most.wait()
                group.cancel_scope.cancel()
    assert len(refused) == 12


async def test_more_searches_than_one_may_have_at_once_wait_for_room(web: LoopbackWeb) -> None:
    outputs: list[ToolOutput] = []
    with engine() as one, engine(servers.tavily(servers.PAGES)) as two:
        tool = SearchTool(replace(both(one, two), providers=("tavily",)), web)

        async def ask(number: int) -> None:
            outputs.append(await tool.search(f"q{number}", 10, CallContext()))

        with anyio.fail_after(WAIT_S):
            async with anyio.create_task_group() as group:
                for number in range(MAX_UNDER_WAY + 2):
                    group.start_soon(ask, number)
    assert [len(shown(output)) for output in outputs] == [2] * (MAX_UNDER_WAY + 2)


async def test_room_is_there_when_any_search_ends(web: LoopbackWeb) -> None:
    """One that takes long is no reason to refuse the others."""
    found: list[str] = []

    class Provider:
        name, interval_s = "own", 0.0

        def __init__(self) -> None:
            self.quick, self.slow = anyio.Event(), anyio.Event()

        async def search(self, query: str, max_results: int, *, timeout_s: float) -> Found:
            await (self.slow if query == "slow" else self.quick).wait()
            return Found(hits=())

    with engine() as one, engine() as two, anyio.fail_after(WAIT_S):
        asked = Provider()
        tool = SearchTool(both(one, two), web, ask=[asked])

        async def ask(query: str) -> None:
            await tool.search(query, 10, CallContext())
            found.append(query)
            if len(found) == 9:
                asked.slow.set()

        async with anyio.create_task_group() as group:
            for query in ("slow", *"abcdefghi"):
                group.start_soon(ask, query)
            await anyio.wait_all_tasks_blocked()
            asked.quick.set()
    assert found[-1] == "slow" and set(found[:-1]) == set("abcdefghi")


async def test_who_waits_for_a_turn_and_goes_gives_it_back() -> None:
    turns = Turns(2.0)
    await turns.take()
    for _ in range(30):
        with anyio.move_on_after(0.001) as waited:
            await turns.take()
        assert waited.cancelled_caught
    with anyio.fail_after(WAIT_S):
        await turns.take(3.0)  # or it would be refused: thirty stood before

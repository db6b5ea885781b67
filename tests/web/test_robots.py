"""F-14: what a site asks of programs is kept; and when a server says to come back."""

from __future__ import annotations

import socket
from datetime import UTC, datetime

import anyio
import pytest

from mcp_tools.retry_after import retry_after_s
from mcp_tools.web.pace import Pace
from mcp_tools.web.robots import Robots
from mcp_tools.web.types import Refused, Unreachable
from tests.web.conftest import MakeClient
from tests.web.listener import listening, says

RULES = b"""
User-agent: *
Disallow: /

User-agent: mcp-tools
Disallow: /private
Allow: /private/open
Disallow: /*.pdf$
"""


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def test_the_longest_rule_for_our_name_decides_and_is_fetched_once(client: MakeClient) -> None:
    clock = Clock()
    with listening(says(RULES)) as listener:
        robots = Robots(client("127.0.0.1"), user_agent="mcp-tools/1.0 (+x)", clock=clock)
        async with anyio.create_task_group() as group:
            for path in ("/", "/private/open/a", "/a.pdf?x", "/privat"):
                group.start_soon(robots.check, listener.url(path))
        for path in ("/private", "/private/x", "/open/../private/x", "/a.pdf"):
            with pytest.raises(Refused, match="does not allow") as caught:
                await robots.check(listener.url(path))
            assert caught.value.retry_after_s is None
        assert [head.split()[1] for head in listener.heads] == [b"/robots.txt"]
        with pytest.raises(Refused):
            await Robots(client("127.0.0.1"), user_agent="other").check(listener.url())
        clock.now_s += 3601
        await robots.check(listener.url())
        assert listener.connections == 3


@pytest.mark.parametrize("status", ["404 N", "401 U", "403 F", "410 G"])
async def test_a_missing_file_allows_everything(client: MakeClient, status: str) -> None:
    with listening(says(RULES, status=status)) as listener:
        await Robots(client("127.0.0.1"), user_agent="other").check(listener.url())


@pytest.mark.parametrize(("status", "wait_s"), [("500 E", 60), ("503 U", 120), ("429 T", 120)])
async def test_a_file_that_cannot_be_had_refuses_for_now(
    client: MakeClient, status: str, wait_s: float
) -> None:
    clock = Clock()
    with listening(says(b"", status=status, Retry_After="120" if wait_s > 60 else "x")) as listener:
        robots = Robots(client("127.0.0.1"), user_agent="other", clock=clock)
        for _ in range(2):
            with pytest.raises(Refused, match="for now") as caught:
                await robots.check(listener.url())
        assert (caught.value.retry_after_s, listener.connections) == (wait_s, 1)
        clock.now_s += wait_s + 1
        with pytest.raises(Refused):
            await robots.check(listener.url())
        assert listener.connections == 2
    with pytest.raises(Refused, match="cannot be reached"):
        await Robots(client("127.0.0.1"), user_agent="other").check(listener.url())


async def test_the_file_is_asked_for_no_more_freely_than_a_page(client: MakeClient) -> None:
    with listening(says(RULES)) as listener:
        with pytest.raises(Refused, match="not public"):
            await Robots(client(), user_agent="other").check(listener.url())
        assert listener.connections == 0


async def test_a_crawl_delay_is_kept_within_a_bound(client: MakeClient) -> None:
    with listening(says(b"User-agent: *\nCrawl-delay: 9999")) as listener:
        clock = Clock()
        robots = Robots(client("127.0.0.1"), user_agent="other", clock=clock)
        await robots.check(listener.url())
        with pytest.raises(Refused, match="try again in 30 s") as caught:
            await robots.check(listener.url())
        assert caught.value.retry_after_s == 30
        clock.now_s += 30
        await robots.check(listener.url())


async def test_long_files_are_read_in_part_and_sites_are_forgotten(client: MakeClient) -> None:
    def answer(peer: socket.socket, head: bytes) -> None:
        lines = (b"Disallow: /never%03d" % number + b"x" * 1000 + b"\n" for number in range(600))
        says(b"User-agent: *\n" + b"".join(lines) + b"Disallow: /\n")(peer, head)

    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    hosts = [f"s{number}.example" for number in range(6)]
    with listening(answer) as listener:
        robots = Robots(client(*hosts, resolver=here), user_agent="other")
        for host in (*hosts, hosts[0]):
            await robots.check(listener.url(host=host))
        assert listener.connections == 7


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_host_gets_few_requests_at_once_and_apart(backend: str) -> None:
    pace = Pace(at_once=2, distance_s=0)
    most = running = 0

    async def one() -> None:
        nonlocal most, running
        async with pace.turn("site"):
            running += 1
            most = max(most, running)
            await anyio.lowlevel.checkpoint()
            running -= 1

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(one)

    anyio.run(main, backend=backend)
    assert most == 2


async def test_pace_remembers_a_bounded_number_of_hosts() -> None:
    clock = Clock()
    pace = Pace(max_hosts=2, clock=clock)
    assert [pace.claim("a", 5), pace.claim("a", 5), pace.claim("b", 5)] == [0, 5, 0]
    assert pace.claim("c", 5) == 0
    assert pace.claim("a", 5) == 0
    async with pace.turn("d"), pace.turn("e"):
        with pytest.raises(Unreachable, match="too many sites"):
            pace.claim("f", 5)


NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("120", 120),
        ("0", 0),
        ("9" * 400, 3600),
        ("Sun, 22 Nov 2026 12:01:00 GMT", 60),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0),
        ("Sun, 22 Nov 2999 11:00:00 GMT", 3600),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("1.5", 1.5),
        ("1.5.5", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, wait_s: float | None) -> None:
    assert retry_after_s({"retry-after": text}, NOW) == wait_s


@pytest.mark.parametrize(
    ("rules", "is_allowed"),
    [
        (b"User-agent: *\nDisallow: /\n\nUser-agent: mcp-tools\n", True),
        (b"User-agent: *\nDisallow: /\n\nUser-agent: mcp-tools\nDisallow:\n", True),
        (b"User-agent: mcp-tools\n\nUser-agent: *\nDisallow: /\n", False),  # one group, for both
        (b"User-agent: *\nDisallow: /\n\nUser-agent: others\n", False),
    ],
    ids=["a group of ours without rules", "with an empty rule", "one group", "a group of others"],
)
async def test_a_group_of_ours_without_rules_allows_everything(
    client: MakeClient, rules: bytes, is_allowed: bool
) -> None:
    with listening(says(rules)) as listener:
        checked = Robots(client("127.0.0.1"), user_agent="mcp-tools/1").check(listener.url("/page"))
        if is_allowed:
            await checked
            return
        with pytest.raises(Refused, match="does not allow"):
            await checked


async def test_rules_that_only_lead_in_a_circle_are_as_if_missing_for_a_minute(client: MakeClient) -> None:
    clock = Clock()
    with listening(says(status="302 Found", Location="/robots.txt")) as listener:
        robots = Robots(client("127.0.0.1"), user_agent="mcp-tools/1", clock=clock)
        await robots.check(listener.url("/page"))
        await robots.check(listener.url("/page"))
        assert listener.connections == 1
        clock.now_s += 61
        await robots.check(listener.url("/page"))
        assert listener.connections == 2


async def test_rules_in_small_pieces_are_read_whole_or_not_at_all(client: MakeClient) -> None:
    """What stands behind the end of what was read could be the rule that matters."""
    rules = b"User-agent: *\n" + b"# of no use to anybody\n" * 300 + b"Disallow: /\n"

    def in_pieces(peer: socket.socket, _: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        peer.sendall(head + b"".join(b"1\r\n%c\r\n" % each for each in rules) + b"0\r\n\r\n")

    for answer, said in ((says(rules), "does not allow"), (in_pieces, "small pieces")):
        with listening(answer) as listener, pytest.raises(Refused, match=said):
            await Robots(client("127.0.0.1"), user_agent="mcp-tools").check(listener.url("/page"))

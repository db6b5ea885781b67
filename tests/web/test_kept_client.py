"""What the client promises of one request, seen from the other side of the connection."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import anyio
import pytest
import trio
import trio.testing

from mcp_tools.web import dialling
from mcp_tools.web.client import WebClient
from mcp_tools.web.names import MAX_LOOKUPS, resolve
from mcp_tools.web.pace import Pace
from mcp_tools.web.robots import MAX_SITES, Robots
from mcp_tools.web.types import Busy, Reach, Refused, Unreachable
from tests.web.conftest import MakeClient
from tests.web.listener import Listener, listening, says
from tests.web.test_client import names

WAIT_S = 15.0


async def here(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


# --- Addresses --------------------------------------------------------------------------------


async def test_where_the_first_address_refuses_the_next_is_dialled(client: MakeClient) -> None:
    with listening(says(b"here")) as listener:
        # Nobody listens at the others.
        web = client("site.example", resolver=names("127.0.0.2", "127.0.0.3", "127.0.0.1"))
        answer = await web.get(listener.url(host="site.example"))
        assert (answer.body, listener.connections) == (b"here", 1)


@contextlib.contextmanager
def full(address: str, port: int) -> Iterator[None]:
    """A place whose queue is full: the system answers nobody who knocks."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(socket.create_server((address, port), backlog=0))
        for _ in range(3):
            knocking = stack.enter_context(socket.socket())
            knocking.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                knocking.connect((address, port))
        with socket.socket() as knocking, pytest.raises(TimeoutError):
            knocking.settimeout(0.2)
            knocking.connect((address, port))
        yield


async def test_a_dead_address_leaves_time_for_the_next(
    client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Reach().deadline_s / 2 > dialling.ATTEMPT_S
    monkeypatch.setattr(dialling, "ATTEMPT_S", 0.1)
    with listening(says(b"here")) as listener, full("127.0.0.2", listener.port):
        web = client("site.example", resolver=names("127.0.0.2", "127.0.0.1"), deadline_s=10)
        assert (await web.get(listener.url(host="site.example"))).body == b"here"


async def test_names_of_many_domains_are_looked_up_within_a_bound_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()
    refused = 0

    def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        released.wait(5)
        return [(0, 0, 0, "", ("93.184.215.14", port))]

    async def look_up(host: str) -> None:
        nonlocal refused
        try:
            await resolve(host, 80)
        except Busy:
            refused += 1
            if refused == 40 - MAX_LOOKUPS:
                released.set()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("mcp_tools.web.names.MAX_WAIT_S", 0.1)
    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(look_up, f"www.site{number}.example")
    assert refused >= 40 - MAX_LOOKUPS
    assert MAX_LOOKUPS == 32


# --- Requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Host", "hOST", "Transfer-Encoding", "Content-Length", "Connection"])
async def test_what_frames_a_request_cannot_be_set(client: MakeClient, name: str) -> None:
    with listening(says()) as listener:
        web = client("127.0.0.1")
        for send in (
            web.get(listener.url(), headers={name: "x"}),
            web.ask("POST", listener.url(), headers={name: "x"}),
        ):
            with pytest.raises(Refused, match="cannot be set"):
                await send
        assert listener.connections == 0
        await web.get(listener.url(), headers={"X-Other": "x"})
        assert f"\r\nHost: 127.0.0.1:{listener.port}\r\n".encode() in listener.heads[0]


# --- Answers ----------------------------------------------------------------------------------


async def test_headers_without_end_are_left_after_their_limit(client: MakeClient) -> None:
    """Each of them is small, so no limit for a single head sees them."""

    def answer(peer: socket.socket, _: bytes) -> None:
        while True:
            peer.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: " + b"y" * 2_000 + b"\r\n\r\n")

    with listening(answer) as listener, pytest.raises(Unreachable, match="more than 131072 bytes of headers"):
        await client("127.0.0.1").get(listener.url())


async def test_the_body_of_a_redirect_is_not_waited_for(client: MakeClient) -> None:
    def answer(peer: socket.socket, head: bytes) -> None:
        if head.startswith(b"GET /there "):
            return says(b"there")(peer, head)
        peer.sendall(b"HTTP/1.1 302 F\r\nLocation: /there\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmove\r\n")
        listener.released.wait(WAIT_S)
        return None

    with listening(answer) as listener:
        assert (await client("127.0.0.1", deadline_s=10).get(listener.url())).body == b"there"


async def test_a_server_that_accepts_and_says_nothing_is_left_at_the_deadline(client: MakeClient) -> None:
    """F-06."""

    def answer(*_: object) -> None:
        listener.released.wait(WAIT_S)

    with listening(answer) as listener:
        with pytest.raises(Unreachable, match=r"within 0\.5 s"):
            await client("127.0.0.1", deadline_s=0.5).get(listener.url())
        assert len(listener.heads) == 1


# --- Politeness: F-14 -------------------------------------------------------------------------


async def test_a_host_gets_four_requests_at_once_apart_and_others_do_not_wait_for_it() -> None:
    four = threading.Semaphore(0)

    def answer(peer: socket.socket, head: bytes) -> None:
        if head.startswith(b"GET /held "):
            four.release()
            listener.released.wait(WAIT_S)
        says()(peer, head)

    def of_held(listener: Listener) -> int:
        return sum(head.startswith(b"GET /held ") for head in listener.heads)

    def wait_for_four() -> bool:
        return all(four.acquire(timeout=WAIT_S) for _ in range(4))

    with anyio.fail_after(WAIT_S), listening(answer) as listener:
        hosts = frozenset({"held.example", "other.example"})
        web = WebClient(Reach(hosts=hosts), user_agent="x", resolver=here)
        async with anyio.create_task_group() as group:
            began_s = time.monotonic()
            for _ in range(6):
                group.start_soon(web.get, listener.url("/held", host="held.example"))
            assert await anyio.to_thread.run_sync(wait_for_four)
            assert time.monotonic() - began_s >= 0.3
            # By the last of these the next two would have had their turns: all come as far apart.
            for _ in range(6):
                await web.get(listener.url(host="other.example"))
            assert of_held(listener) == 4
            listener.released.set()
        assert of_held(listener) == 6
        assert time.monotonic() - began_s >= 0.5


def test_requests_to_a_host_begin_a_tenth_of_a_second_apart() -> None:
    began_s: list[float] = []
    pace = Pace(clock=trio.current_time)

    async def one(host: str) -> None:
        async with pace.turn(host):
            began_s.append(round(trio.current_time() - start_s, 3))

    async def main() -> None:
        nonlocal start_s
        start_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for host in ("a", "a", "a", "b"):
                nursery.start_soon(one, host)

    start_s = 0.0
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert sorted(began_s) == [0.0, 0.0, 0.1, 0.2]


async def test_the_rules_of_a_bounded_number_of_sites_are_remembered(client: MakeClient) -> None:
    hosts = [f"s{number}.example" for number in range(MAX_SITES + 1)]
    assert MAX_SITES == 128
    with listening(says(status="404 Not Found")) as listener:
        robots = Robots(client(*hosts, resolver=here), user_agent="x")
        for host in (*hosts, hosts[-1], hosts[0]):
            await robots.check(listener.url(host=host))
        # The last one was known still, the first one was not.
        assert len(listener.heads) == len(hosts) + 1
        assert f"Host: {hosts[0]}:".encode() in listener.heads[-1]

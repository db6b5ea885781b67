"""Clients that hold on to what they were given: slow to ask, slow to send, slow to read, many at once.

Plain uvicorn, beside us, shows that each hold works where nobody bounds it.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio
import pytest

from mcp_tools.server.http import HttpLimits
from tests.server.http.http_peer import (
    ALICE,
    BOB,
    INITIALIZE,
    Wire,
    ask,
    call,
    in_session,
    open_session,
    plain_uvicorn,
    reading_app,
    request,
    rpc,
    serving,
    sse_session,
    tokens,
    wire,
)

SHORT_S = 0.4


async def dribble(connection: Wire, data: bytes, for_s: float) -> bool:
    """Send byte by byte; whether the server puts up with it for so long."""
    with anyio.move_on_after(for_s):
        for byte in data:
            try:
                await connection.send(bytes([byte]))
            except ConnectionError:
                return False
            if connection.has_news():
                return False
            await anyio.sleep(0.02)
    return True


async def test_headers_that_trickle_in_are_not_waited_for() -> None:
    """C-07."""
    trickle = b"GET /mcp HTTP/1.1\r\nX-Slow: " + b"x" * 1000
    async with plain_uvicorn(reading_app) as port, wire(port) as connection:
        assert await dribble(connection, trickle, 3 * SHORT_S)
    async with serving(limits=HttpLimits(header_s=SHORT_S)) as served:
        async with wire(served.port) as connection:
            assert not await dribble(connection, trickle, 10 * SHORT_S)
            assert (await connection.answer()).status == 408
        async with wire(served.port) as silent:
            assert (await silent.answer()).status == 408
            assert await silent.is_closed()
        async with wire(served.port) as second_request:
            await second_request.send(call("echo", {"text": "x"}, port=served.port))
            assert (await second_request.answer()).status == 200
            assert not await dribble(second_request, trickle, 10 * SHORT_S)


async def test_an_unused_connection_is_closed() -> None:
    async with serving(limits=HttpLimits(keep_alive_s=1)) as served, wire(served.port) as connection:
        await connection.send(call("echo", {"text": "x"}, port=served.port))
        assert (await connection.answer()).status == 200
        assert await connection.is_closed(within_s=5)


@pytest.mark.parametrize("path", ["/mcp", "/messages/"])
async def test_a_body_that_trickles_in_is_not_waited_for(path: str) -> None:
    async with plain_uvicorn(reading_app) as port, wire(port) as connection:
        await connection.send(request("POST", path, port=port, headers={"Content-Length": "1000"}, body=b""))
        assert await dribble(connection, b"{" * 500, 3 * SHORT_S)
    limits = HttpLimits(body_s=SHORT_S, drain_s=SHORT_S)
    async with (
        serving(limits=limits) as served,
        sse_session(served.port) as (_, messages),
        wire(served.port) as connection,
    ):
        target = messages if path == "/messages/" else path
        headers = {"Content-Length": "1000"}
        await connection.send(request("POST", target, port=served.port, headers=headers, body=b""))
        assert not await dribble(connection, b"{" * 500, 10 * SHORT_S)
        assert (await connection.answer()).status == 408


async def test_a_body_that_was_refused_is_not_read_for_ever() -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    headers = {"Content-Length": None, "Transfer-Encoding": "chunked"}

    async def pour(connection: Wire, chunks: int) -> bool:
        try:
            for _ in range(chunks):
                with anyio.fail_after(5):
                    await connection.send(chunk)
        except ConnectionError:
            return False
        return True

    limits = HttpLimits(body_bytes=100_000, drain_bytes=1_000_000)
    async with serving(limits=limits) as served, wire(served.port) as connection:
        await connection.send(request("POST", "/mcp", port=served.port, headers=headers, body=b""))
        assert not await pour(connection, 500)


async def test_who_takes_no_answer_is_cut_off_and_nobody_else_waits() -> None:
    """A result waits for a client that stopped reading (B-14 over HTTP)."""
    async with serving(limits=HttpLimits(stalled_s=SHORT_S)) as served:
        port = served.port
        session_id = await open_session(port)
        body = rpc("tools/call", {"name": "big", "arguments": {"size": 1_000_000}}, 2)
        asked = [call("big", {"size": 1_000_000}, port=port), in_session(session_id, body, port=port)]
        for data in asked:
            async with wire(port) as connection:
                connection.writer.transport.pause_reading()
                # More than the kernel takes in on behalf of both.
                await connection.send(data * 16)
                assert (await ask(port, call("echo", {"text": "x"}, port=port))).status == 200
                await anyio.sleep(3 * SHORT_S)
                connection.writer.transport.resume_reading()
                with anyio.fail_after(10), pytest.raises((EOFError, ConnectionError)):
                    await connection.reader.readexactly(16_000_000)
        assert (await ask(port, in_session(session_id, rpc("ping"), port=port))).status == 200


async def test_an_sse_session_that_reads_nothing_holds_few_answers() -> None:
    """Messages are taken at once, so only a count keeps their answers from piling up."""
    limits = HttpLimits(calls_per_sse_session=4)
    async with serving(limits=limits) as served, sse_session(served.port) as (stream, path):
        for message in (INITIALIZE, rpc("notifications/initialized", request_id=None)):
            await ask(served.port, request("POST", path, port=served.port, body=message))
        await stream.event()
        stream.writer.transport.pause_reading()
        statuses = []
        for number in range(24):
            body = rpc("tools/call", {"name": "big", "arguments": {"size": 1_000_000}}, number)
            statuses.append(
                (await ask(served.port, request("POST", path, port=served.port, body=body))).status
            )
        assert statuses[:4] == [202] * 4
        assert statuses[-1] == 429
        assert (await ask(served.port, call("echo", {"text": "x"}, port=served.port))).status == 200


async def test_equal_ids_are_not_a_way_around_the_count_of_an_sse_session() -> None:
    limits = HttpLimits(calls_per_sse_session=4)
    async with serving(limits=limits) as served, sse_session(served.port) as (stream, path):

        async def post(message: bytes) -> int:
            return (await ask(served.port, request("POST", path, port=served.port, body=message))).status

        await post(INITIALIZE)
        await stream.event()
        await post(rpc("notifications/initialized", request_id=None))
        waits = rpc("tools/call", {"name": "wait", "arguments": {"seconds": 0.5}}, 7)
        assert [await post(waits) for _ in range(6)] == [202] + [400] * 5
        await stream.event()
        assert await post(rpc("ping", request_id=8)) == 202


async def test_a_withdrawn_call_frees_its_place_in_an_sse_session() -> None:
    limits = HttpLimits(calls_per_sse_session=2)
    async with serving(limits=limits) as served, sse_session(served.port) as (stream, path):

        async def post(message: bytes) -> int:
            return (await ask(served.port, request("POST", path, port=served.port, body=message))).status

        await post(INITIALIZE)
        await stream.event()
        await post(rpc("notifications/initialized", request_id=None))
        for number in range(6):
            body = rpc("tools/call", {"name": "wait", "arguments": {"seconds": 30}}, number)
            assert await post(body) == 202
            withdrawn = rpc("notifications/cancelled", {"requestId": number}, request_id=None)
            assert await post(withdrawn) == 202


async def test_streams_are_bounded_for_each_principal_and_calls_go_on() -> None:
    """C-16, a tenth."""
    limits = HttpLimits(streams=12, streams_each=8)
    async with serving(limits=limits) as served, anyio.create_task_group() as group:
        port = served.port
        statuses: list[int] = []

        async def hold(session_id: str) -> None:
            async with wire(port) as stream:
                await stream.send(request("GET", "/mcp", port=port, headers={"Mcp-Session-Id": session_id}))
                statuses.append((await stream.head())[0])
                await anyio.sleep_forever()

        for _ in range(20):
            group.start_soon(hold, await open_session(port))
        with anyio.fail_after(10):
            while len(statuses) < 20:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert (statuses.count(200), statuses.count(503)) == (8, 12)
        assert (await ask(port, request("GET", "/sse", port=port))).status == 503
        assert (await ask(port, call("echo", {"text": "x"}, port=port))).status == 200
        group.cancel_scope.cancel()


async def test_connections_beyond_the_bound_are_told_so_and_make_room_when_they_end() -> None:
    async with serving(limits=HttpLimits(connections=5)) as served:
        asking = call("echo", {"text": "x"}, port=served.port)
        async with AsyncExitStack() as held:
            for _ in range(5):
                await held.enter_async_context(sse_session(served.port))
            assert (await ask(served.port, asking)).status == 503
        with anyio.fail_after(10):
            while (await ask(served.port, asking)).status != 200:  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_connections_that_ask_for_nothing_keep_nobody_out() -> None:
    async with serving(limits=HttpLimits(connections=5)) as served, AsyncExitStack() as held:
        silent = [await held.enter_async_context(wire(served.port)) for _ in range(5)]
        for _ in range(3):
            assert (await ask(served.port, call("echo", {"text": "x"}, port=served.port))).status == 200
        assert await silent[0].is_closed()
        assert not silent[-1].has_news()


async def test_one_principal_cannot_take_every_request() -> None:
    async with serving(tokens=tokens(), limits=HttpLimits(requests_each=3)) as served:
        port = served.port
        statuses: list[int] = []

        async def hold() -> None:
            answer = await ask(port, call("wait", {"seconds": 0.5}, port=port, token=ALICE))
            statuses.append(answer.status)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(hold)
            assert (await ask(port, call("echo", {"text": "x"}, port=port, token=BOB))).status == 200
        assert sorted(statuses) == [200, 200, 200, 503, 503]


async def test_calls_whose_client_left_still_count() -> None:
    """In the handshake era a call outlives its connection, so connections bound nothing."""
    async with serving(limits=HttpLimits(calls_each=4)) as served:
        port = served.port
        session_id = await open_session(port)
        for number in range(6):
            body = rpc("tools/call", {"name": "wait", "arguments": {"seconds": 30}}, number)
            async with wire(port) as connection:
                await connection.send(in_session(session_id, body, port=port))
                # Answered after it: the one before it was taken.
                await ask(port, in_session(session_id, rpc("ping", request_id=99), port=port))
        answer = await ask(port, in_session(session_id, rpc("tools/list", request_id=99), port=port))
        assert answer.json()["error"]["code"] == -32000

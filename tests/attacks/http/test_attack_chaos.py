"""Clients of every kind that leave at any moment: afterwards nothing of them is held."""

from __future__ import annotations

import contextlib
import random
import socket

import anyio
import pytest

from mcp_tools.server.http import HttpLimits, build_app
from mcp_tools.server.http.serve import _accepting
from tests.server.http.http_peer import (
    INITIALIZE,
    Wire,
    ask,
    call,
    in_session,
    make_server,
    open_session,
    request,
    rpc,
    sse_session,
    wire,
)


@pytest.mark.parametrize("seed", range(2))
async def test_when_all_clients_have_left_nothing_is_held(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """C-12, in every kind of request, streams included."""
    limits = HttpLimits(session_idle_s=0.5, keep_alive_s=1, header_s=1, body_s=1)
    app = build_app(make_server(), limits=limits)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    port = listener.getsockname()[1]
    chance = random.Random(seed)

    async def post(connection: Wire, data: bytes) -> None:
        await connection.send(data[: len(data) - 9] if chance.random() < 0.2 else data)
        if chance.random() < 0.5:
            await connection.answer()

    async def in_a_session(connection: Wire) -> None:
        session_id = await open_session(port)
        tool = {"name": "wait", "arguments": {"seconds": chance.random() / 5}}
        await post(connection, in_session(session_id, rpc("tools/call", tool, 5), port=port))
        if chance.random() < 0.3:
            await ask(port, request("DELETE", "/mcp", port=port, headers={"Mcp-Session-Id": session_id}))

    async def listening(connection: Wire) -> None:
        session_id = await open_session(port)
        await connection.send(request("GET", "/mcp", port=port, headers={"Mcp-Session-Id": session_id}))
        await connection.head()

    async def alone(connection: Wire) -> None:
        await post(connection, call("wait", {"seconds": chance.random() / 5}, port=port))

    async def over_sse(_: Wire) -> None:
        async with sse_session(port) as (_, path):
            tool = {"name": "wait", "arguments": {"seconds": chance.random() / 5}}
            for message in (
                INITIALIZE,
                rpc("notifications/initialized", request_id=None),
                rpc("tools/call", tool, 5),
            ):
                await ask(port, request("POST", path, port=port, body=message))

    async def one() -> None:
        with anyio.move_on_after(chance.random() / 2):
            async with wire(port) as connection:
                with contextlib.suppress(EOFError, ConnectionError):
                    await chance.choice([in_a_session, listening, alone, over_sse])(connection)

    async with app.running(), _accepting(app, [listener], limits):
        async with anyio.create_task_group() as group:
            for _ in range(80):
                group.start_soon(one)
        assert app._streamable is not None
        assert app._sse is not None
        held = [
            app._requests,
            *(getattr(app._streamable._bounds, name) for name in ("sessions", "streams", "bodies")),
        ]
        kept = [app._streamable._sessions._sessions, app._sse._sessions._streams, app._in_progress]
        with anyio.fail_after(10):
            while any(map(len, (*held, *kept))):  # noqa: ASYNC110
                await anyio.sleep(0.05)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]

"""A server's life: where it listens, whom it refuses to serve, and how it ends."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import AsyncExitStack

import anyio
import pytest

from mcp_tools.errors import ConfigError
from mcp_tools.server.http import HttpLimits, Listening, serve_http
from tests.server.http.http_peer import (
    INITIALIZE,
    ask,
    call,
    in_session,
    make_server,
    open_session,
    request,
    rpc,
    server_process,
    serving,
    sse_session,
    tokens,
    wire,
)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
async def test_listening_beyond_this_machine_needs_tokens(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--token-file or MCP_TOOLS_TOKEN"):
        await serve_http(make_server(), host=host, port=0)
    # Loopback reaches it too, and is asked for a token there as well.
    near = "::1" if host == "::" else "127.0.0.1"
    async with serving(host=host, tokens=tokens()) as served, wire(served.port, near) as connection:
        await connection.send(request("POST", "/mcp", port=served.port, body=INITIALIZE))
        assert (await connection.answer()).status == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "localhost", "::1"])
async def test_a_loopback_address_needs_none(host: str) -> None:
    async with serving(host=host) as served, wire(served.port, host) as connection:
        name = f"[{host}]" if ":" in host else host
        headers = {"Host": f"{name}:{served.port}"}
        await connection.send(request("POST", "/mcp", port=served.port, headers=headers, body=INITIALIZE))
        assert (await connection.answer()).status == 200


async def test_a_taken_port_is_named() -> None:
    """C-20."""
    async with serving() as served:
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{served.port}: the port is in use.*--port"):
            await serve_http(make_server(), port=served.port)


@pytest.mark.parametrize(
    ("host", "port", "problem"),
    [
        ("192.0.2.254", 0, "does not have that address"),
        ("no-such-host.invalid", 0, "no such host"),
        ("127.0.0.1", 70_000, "not between"),
    ],
)
async def test_an_address_that_is_not_ours_is_named(host: str, port: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        await serve_http(make_server(), host=host, port=port, tokens=tokens())


async def test_a_loopback_listener_is_not_on_the_network() -> None:
    """C-20."""
    others = {address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; only picks the address the network would see
        others.add(probe.getsockname()[0])
    async with serving() as served:
        for address in others:
            if not address.startswith("127."):
                with pytest.raises(ConnectionRefusedError):
                    async with wire(served.port, address):
                        pass


async def test_who_listens_is_told_the_urls() -> None:
    told: list[Listening] = []
    shutdown = anyio.Event()

    def on_listening(listening: Listening) -> None:
        told.append(listening)
        shutdown.set()

    with anyio.fail_after(10):
        await serve_http(make_server(), port=0, on_listening=on_listening, shutdown=shutdown)
    [listening] = told
    base = f"http://127.0.0.1:{listening.port}"
    assert listening.urls == (f"{base}/mcp", f"{base}/sse")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_a_signal_ends_streams_and_calls_within_two_seconds(
    number: signal.Signals, expected: int
) -> None:
    async with server_process() as server:
        port = server.port
        session_id = await open_session(port)
        async with (
            wire(port) as stream,
            sse_session(port) as (sse_stream, path),
            wire(port) as modern_call,
            wire(port) as session_call,
            wire(port) as idle,
            wire(port) as half,
        ):
            headers = {"Mcp-Session-Id": session_id}
            await stream.send(request("GET", "/mcp", port=port, headers=headers))
            await stream.head()
            waiting = {"name": "wait", "arguments": {"seconds": 30}}
            for message in (INITIALIZE, rpc("notifications/initialized", request_id=None)):
                await ask(port, request("POST", path, port=port, body=message))
            await sse_stream.event()
            await ask(port, request("POST", path, port=port, body=rpc("tools/call", waiting, 5)))
            await modern_call.send(call("wait", {"seconds": 30}, port=port))
            body = rpc("tools/call", waiting, 6)
            await session_call.send(request("POST", "/mcp", port=port, headers=headers, body=body))
            await idle.send(call("echo", {"text": "x"}, port=port))
            await idle.answer()
            await half.send(b"POST /mcp HTTP/1.1\r\n")
            await ask(port, in_session(session_id, rpc("ping", request_id=7), port=port))

            started = time.monotonic()
            server.process.send_signal(number)
            with anyio.fail_after(5):
                code = await server.process.wait()
            assert code == expected
            assert time.monotonic() - started < 2 + 0.5  # for what a busy machine adds to our noticing
            for connection in (stream, sse_stream, modern_call, session_call, idle, half):
                assert await connection.is_closed()
        assert server.process.stderr is not None
        assert b"Traceback" not in await server.process.stderr.read()


async def test_calls_that_the_end_cuts_short_are_answered() -> None:
    async with serving() as served, wire(served.port) as modern_call, wire(served.port) as session_call:
        port = served.port
        session_id = await open_session(port)
        await modern_call.send(call("wait", {"seconds": 30}, port=port))
        body = rpc("tools/call", {"name": "wait", "arguments": {"seconds": 30}}, 6)
        await session_call.send(in_session(session_id, body, port=port))
        await ask(port, in_session(session_id, rpc("ping", request_id=7), port=port))
        served.shutdown.set()
        assert (await modern_call.answer()).status == 503
        assert (await session_call.answer()).status in (404, 503)


async def test_a_call_that_is_nearly_done_is_answered_before_the_end() -> None:
    async with serving() as served, wire(served.port) as connection:
        await connection.send(call("wait", {"seconds": 0.3}, port=served.port))
        await anyio.sleep(0.1)
        served.shutdown.set()
        answer = await connection.answer()
        assert answer.status == 200
        assert await connection.is_closed()


async def test_cancelling_ends_the_server_at_once() -> None:
    ready = anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await serve_http(make_server(), port=0, on_listening=lambda _: ready.set())

            group.start_soon(run)
            await ready.wait()
            group.cancel_scope.cancel()


async def test_fewer_descriptors_mean_fewer_connections() -> None:
    """The bound holds where the process may open few files, so that tools still can."""
    async with server_process("--descriptors=128") as server, AsyncExitStack() as held:
        for _ in range(20):
            await held.enter_async_context(sse_session(server.port))
        assert (await ask(server.port, request("GET", "/sse", port=server.port))).status == 503
        for _ in range(100):
            await held.enter_async_context(wire(server.port))
        answer = await ask(server.port, call("echo", {"text": "x"}, port=server.port))
        assert answer.status == 200
        assert server.open_files() < 128


async def test_limits_can_be_given() -> None:
    async with serving(limits=HttpLimits(body_bytes=1_000)) as served:
        answer = await ask(served.port, call("echo", {"text": "x" * 2_000}, port=served.port))
        assert answer.status == 413

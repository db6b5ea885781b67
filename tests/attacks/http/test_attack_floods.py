"""Too much of everything, against a server in a process of its own whose memory we can read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.server.http.http_peer import (
    ALICE,
    Answer,
    Process,
    ask,
    call,
    in_session,
    open_session,
    request,
    rpc,
    server_process,
    wire,
)

MIB = 1024 * 1024


async def refused(server: Process, pieces: AsyncIterator[bytes] | list[bytes]) -> Answer | None:
    """Send all pieces, or as many as are taken; None where the server hung up without a word."""

    async def each() -> AsyncIterator[bytes]:
        if isinstance(pieces, list):
            for piece in pieces:
                yield piece
        else:
            async for piece in pieces:
                yield piece

    async with wire(server.port) as connection:
        try:
            with anyio.fail_after(60):
                async for piece in each():
                    await connection.send(piece)
                    if connection.has_news():
                        break
                return await connection.answer()
        except (ConnectionError, asyncio.IncompleteReadError):
            return None


async def others_are_served(server: Process) -> None:
    answer = await ask(server.port, call("echo", {"text": "still here"}, port=server.port))
    assert answer.json()["result"]["content"][0]["text"] == "still here"


async def test_endless_headers_are_refused_in_bounded_memory() -> None:
    """C-07."""
    async with server_process() as server:
        await others_are_served(server)
        before = server.peak_memory_mib()
        head = f"GET /mcp HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n".encode()
        floods = {
            "1 MiB header": [head + b"X: " + b"x" * MIB + b"\r\n\r\n"],
            "20,000 headers": [head + b"".join(b"X-%d: x\r\n" % n for n in range(20_000)) + b"\r\n"],
            "101 headers": [head + b"".join(b"X-%d: x\r\n" % n for n in range(101)) + b"\r\n"],
            "70 kB of headers at once": [head + b"X: " + b"x" * 70_000 + b"\r\n\r\n"],
            "1 MiB request line": [b"GET /" + b"x" * MIB + b" HTTP/1.1\r\n\r\n"],
            "9 kB target": [b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"],
            "8 MiB endless header": [head + b"X: ", *[b"x" * 65536] * 128],
            "8 MiB of one request line": [b"GET /", *[b"x" * 65536] * 128],
        }
        for name, pieces in floods.items():
            answer = await refused(server, pieces)
            assert answer is not None, name
            assert answer.status in (400, 414, 431), name
            await others_are_served(server)
        assert server.peak_memory_mib() - before < 100


async def chunked(total: int, chunk: bytes = b"[" * 65536) -> AsyncIterator[bytes]:
    for _ in range(total // len(chunk)):
        yield b"%x\r\n" % len(chunk) + chunk + b"\r\n"
    yield b"0\r\n\r\n"


async def test_endless_bodies_are_refused_in_bounded_memory() -> None:
    """C-06."""
    async with server_process() as server:
        port = server.port
        await others_are_served(server)
        before = server.peak_memory_mib()

        length = {"Content-Length": str(10 * 1024 * MIB)}
        answer = await refused(server, [request("POST", "/mcp", port=port, headers=length, body=b"")])
        assert answer is not None
        assert answer.status == 413

        async def pour() -> AsyncIterator[bytes]:
            headers = {"Content-Length": None, "Transfer-Encoding": "chunked"}
            yield request("POST", "/mcp", port=port, headers=headers, body=b"")
            async for piece in chunked(64 * MIB):
                yield piece

        answer = await refused(server, pour())
        assert answer is not None
        assert answer.status == 413

        nested = b"[" * 2_000_000
        for body in (nested, nested + b"]" * 2_000_000, b'{"jsonrpc":"2.0","id":1,"method":' + nested):
            answer = await refused(server, [request("POST", "/mcp", port=port, body=body)])
            assert answer is not None
            assert answer.status == 400
            await others_are_served(server)
        assert server.peak_memory_mib() - before < 200


async def test_many_large_bodies_at_once_share_a_bounded_room() -> None:
    """Each is within its limit; all together would not be."""
    async with server_process("--tokens") as server, anyio.create_task_group() as group:
        port = server.port
        before = server.peak_memory_mib()
        started: list[int] = []

        async def send_most_of_it() -> None:
            headers = {"Content-Length": str(4 * MIB)}
            async with wire(port) as connection:
                data = request("POST", "/mcp", port=port, headers=headers, body=b"", token=ALICE)
                await connection.send(data + b" " * (4 * MIB - 1))
                started.append(1)
                await anyio.sleep_forever()

        for _ in range(60):
            group.start_soon(send_most_of_it)
        with anyio.fail_after(30):
            while len(started) < 60:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert server.peak_memory_mib() - before < 200
        group.cancel_scope.cancel()


@pytest.mark.parametrize("era", ["modern", "handshake"])
async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(era: str, tmp_path: Path) -> None:
    """C-12, a tenth: half of them with half a body."""
    async with server_process() as server:
        port = server.port
        session_id = await open_session(port) if era == "handshake" else None

        def one(number: int) -> bytes:
            if session_id is None:
                return call("wait", {"seconds": 0.2}, port=port)
            params = {"name": "wait", "arguments": {"seconds": 0.2}}
            return in_session(session_id, rpc("tools/call", params, number), port=port)

        await others_are_served(server)
        before = server.open_files()
        for number in range(10):
            async with wire(port) as connection:
                data = one(number)
                await connection.send(data[: len(data) - 20] if number % 2 else data)
                await anyio.sleep(0.02)
        await others_are_served(server)
        with anyio.fail_after(10):
            while server.open_files() > before:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        made = tmp_path / "made"
        await ask(port, call("mark", {"path": str(made)}, port=port))
        assert made.exists()


async def test_a_thousand_calls_leave_no_session_state_behind() -> None:
    async with server_process() as server:
        port = server.port
        async with wire(port) as connection:

            async def calls(count: int) -> None:
                for number in range(count):
                    await connection.send(call("echo", {"text": str(number)}, port=port))
                    assert json.loads((await connection.answer()).body)["result"]["isError"] is False

            await calls(200)
            files = server.open_files()
            await calls(800)
            assert server.open_files() == files

"""Requests that two readers would cut differently, and protocols that nobody asked us to speak."""

from __future__ import annotations

import contextlib
import random

import anyio
import pytest

from mcp_tools.server.http import HttpLimits
from tests.server.http.http_peer import (
    INITIALIZE,
    ask,
    call,
    in_session,
    open_session,
    plain_uvicorn,
    reading_app,
    request,
    rpc,
    serving,
    wire,
)


def two_lengths(port: int) -> bytes:
    """One request by its Content-Length; two by its Transfer-Encoding."""
    hidden = request("GET", "/hidden", port=port)
    body = b"0\r\n\r\n" + hidden
    headers = {"Content-Length": str(len(body)), "Transfer-Encoding": "chunked"}
    return request("POST", "/mcp", port=port, headers=headers, body=b"") + body


async def test_a_request_with_two_lengths_hides_no_other_request() -> None:
    async with plain_uvicorn(reading_app) as port, wire(port) as connection:
        await connection.send(two_lengths(port))
        assert [(await connection.answer()).status for _ in range(2)] == [200, 200]  # the hidden one too
    async with serving() as served, wire(served.port) as connection:
        await connection.send(two_lengths(served.port))
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await connection.reader.read() == b""


MALFORMED = {
    "two lengths": b"POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "signed length": b"POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: +2\r\n\r\nxx",
    "negative length": b"POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n",
    "unknown coding": b"POST /mcp HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "coding before chunked": b"POST /mcp HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "space before colon": b"GET /mcp HTTP/1.1\r\nHost: HOST\r\nOrigin : http://evil.example\r\n\r\n",
    "nul in header": b"GET /mcp HTTP/1.1\r\nHost: HOST\r\nX: a\x00b\r\n\r\n",
    "no host": b"GET /mcp HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /mcp HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n",
    "no version": b"GET /mcp\r\n\r\n",
    "other version": b"GET /mcp HTTP/3.7\r\nHost: HOST\r\n\r\n",
    "space in target": b"GET /mcp x HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "tls hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "http/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_request_is_refused_and_its_connection_closed(data: bytes) -> None:
    async with serving() as served, wire(served.port) as connection:
        await connection.send(data.replace(b"HOST", f"127.0.0.1:{served.port}".encode()))
        answer = await connection.answer()
        assert 400 <= answer.status < 600
        assert answer.status not in (500, 501)
        assert answer.headers["connection"] == "close"
        assert await connection.is_closed()


async def test_a_bad_chunk_ends_the_request_without_a_call() -> None:
    async with serving() as served, wire(served.port) as connection:
        headers = {"Content-Length": None, "Transfer-Encoding": "chunked"}
        await connection.send(
            request("POST", "/mcp", port=served.port, headers=headers, body=b"") + b'5\r\n{"jso\r\n'
        )
        await connection.send(b"zz\r\n")
        assert (await connection.answer()).status == 400
        assert await connection.is_closed()


UPGRADES = {
    "websocket": {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    },
    "h2c": {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAMAAABkAAQAAP__",
    },
    "tls": {"Connection": "Upgrade", "Upgrade": "TLS/1.2"},
}


@pytest.mark.parametrize("headers", UPGRADES.values(), ids=UPGRADES.keys())
@pytest.mark.parametrize("path", ["/mcp", "/sse", "/messages/?session_id=x", "/ws"])
async def test_no_request_becomes_another_protocol(headers: dict[str, str], path: str) -> None:
    """C-21 (CVE-2026-59950)."""
    async with serving() as served, wire(served.port) as connection:
        await connection.send(request("GET", path, port=served.port, headers=headers))
        answer = await connection.answer()
        assert answer.status == 400
        assert "upgrade" not in answer.headers
        assert await connection.is_closed()


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_body_where_none_belongs_is_refused(method: str) -> None:
    async with serving() as served, wire(served.port) as connection:
        await connection.send(request(method, "/mcp", port=served.port, body=b"{}"))
        assert (await connection.answer()).status == 400
        # The body was read past, so the next request is not mistaken for it.
        await connection.send(call("echo", {"text": "x"}, port=served.port))
        assert (await connection.answer()).status == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x-gzip"])
async def test_a_compressed_body_is_never_opened(coding: str) -> None:
    """C-22: no bomb, since nothing is decompressed."""
    async with serving() as served, wire(served.port) as connection:
        headers = {"Content-Encoding": coding}
        await connection.send(request("POST", "/mcp", port=served.port, headers=headers, body=rpc("ping")))
        assert (await connection.answer()).status == 415


@pytest.mark.parametrize("seed", range(4))
async def test_requests_with_random_damage_harm_nobody(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """B-01 on the wire of HTTP: 240 one-byte changes, cuts and insertions; no fault, no lasting harm."""
    chance = random.Random(seed)
    async with serving(limits=HttpLimits(header_s=0.3, body_s=0.3, drain_s=0.3)) as served:
        port = served.port
        session_id = await open_session(port)
        valid = [
            call("echo", {"text": "x"}, port=port),
            in_session(
                session_id, rpc("tools/call", {"name": "echo", "arguments": {"text": "x"}}), port=port
            ),
            request("DELETE", "/mcp", port=port, headers={"Mcp-Session-Id": "x"}),
            request("POST", "/messages/?session_id=x", port=port, body=INITIALIZE),
        ]

        async def damaged() -> None:
            data = bytearray(chance.choice(valid))
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 40)]
                case _:
                    data[at:at] = chance.randbytes(chance.randrange(1, 40))
            async with wire(port) as connection:
                await connection.send(bytes(data))
                with contextlib.suppress(EOFError, ConnectionError):
                    assert (await connection.head())[0] != 500

        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(damaged)
        answer = await ask(port, call("echo", {"text": "x"}, port=port))
        assert answer.status == 200
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]

"""Raw MCP clients: as little as possible between the clock and the server, the same for every server."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

HANDSHAKE, MODERN = "2025-11-25", "2026-07-28"
CALL = {"name": "echo", "arguments": {"text": "hello"}}
LIMIT_S = 60.0


def initialize_request(request_id: int) -> dict[str, Any]:
    params = {
        "protocolVersion": HANDSHAKE,
        "capabilities": {},
        "clientInfo": {"name": "bench", "version": "1"},
    }
    return {"jsonrpc": "2.0", "id": request_id, "method": "initialize", "params": params}


INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}
MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def environment() -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    return kept | {"PYTHONPATH": os.getcwd()}


class StdioServer:
    """A server process, spoken to over its pipes."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = argv
        self._ids = itertools.count(1)

    async def __aenter__(self) -> StdioServer:
        started = time.perf_counter()
        self.process = await asyncio.create_subprocess_exec(
            *self.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            limit=2**24,
        )
        answer = await self.request(initialize_request(next(self._ids)))
        self.start_ms = (time.perf_counter() - started) * 1000
        assert "result" in answer, answer
        self._write(INITIALIZED)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 10)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while True:
            line = await asyncio.wait_for(self.process.stdout.readline(), LIMIT_S)
            if not line:
                raise RuntimeError(f"{self.argv} went away")
            message = json.loads(line)
            if "id" in message:
                return message

    async def request(self, message: dict[str, Any]) -> dict[str, Any]:
        self._write(message)
        return await self._read()

    async def latencies_s(self, count: int) -> list[float]:
        """Time `count` calls, one after another."""
        found = []
        for _ in range(count):
            message = {"jsonrpc": "2.0", "id": next(self._ids), "method": "tools/call", "params": CALL}
            started = time.perf_counter()
            answer = await self.request(message)
            found.append(time.perf_counter() - started)
            assert answer["result"]["content"][0]["text"] == "hello", answer
        return found

    async def calls_per_s(self, count: int, in_flight: int) -> float:
        """Send `count` calls, always `in_flight` of them unanswered."""
        started = time.perf_counter()
        sent = 0
        for done in range(count):
            while sent < count and sent - done < in_flight:
                self._write({"jsonrpc": "2.0", "id": next(self._ids), "method": "tools/call", "params": CALL})
                sent += 1
            await self._read()
        return count / (time.perf_counter() - started)

    def memory_kib(self) -> int:
        return resident_kib(self.process.pid)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class HttpServer:
    """A server process, spoken to over kept-alive connections, one per call in flight."""

    def __init__(self, argv: Sequence[str], *, era: str) -> None:
        self.port = free_port()
        self.argv = [part.replace("{port}", str(self.port)) for part in argv]
        self.era = era
        self._ids = itertools.count(1)
        self._session: str | None = None

    async def __aenter__(self) -> HttpServer:
        self.process = await asyncio.create_subprocess_exec(
            *self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                connection = await HttpConnection.open(self.port)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
        if self.era == HANDSHAKE:
            headers, answer = await connection.post(initialize_request(next(self._ids)), {})
            assert "result" in answer, answer
            self._session = headers["mcp-session-id"]
            await connection.post(INITIALIZED, self._headers())
        connection.close()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), 10)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def _headers(self) -> dict[str, str]:
        if self.era == HANDSHAKE:
            return {"Mcp-Session-Id": self._session or "", "MCP-Protocol-Version": HANDSHAKE}
        return {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "echo"}

    def _call(self) -> dict[str, Any]:
        params = CALL if self.era == HANDSHAKE else CALL | {"_meta": MODERN_META}
        return {"jsonrpc": "2.0", "id": next(self._ids), "method": "tools/call", "params": params}

    async def latencies_s(self, count: int) -> list[float]:
        connection = await HttpConnection.open(self.port)
        found = []
        for _ in range(count):
            message, headers = self._call(), self._headers()
            started = time.perf_counter()
            _, answer = await connection.post(message, headers)
            found.append(time.perf_counter() - started)
            assert answer["result"]["content"][0]["text"] == "hello", answer
        connection.close()
        return found

    async def calls_per_s(self, count: int, in_flight: int) -> float:
        async def one(share: int) -> None:
            connection = await HttpConnection.open(self.port)
            for _ in range(share):
                await connection.post(self._call(), self._headers())
            connection.close()

        started = time.perf_counter()
        await asyncio.gather(*(one(count // in_flight) for _ in range(in_flight)))
        return count // in_flight * in_flight / (time.perf_counter() - started)


class HttpConnection:
    """HTTP/1.1 by hand, for JSON and SSE answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self._reader, self._writer, self._port = reader, writer, port

    @classmethod
    async def open(cls, port: int) -> HttpConnection:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(reader, writer, port)

    def close(self) -> None:
        self._writer.close()

    async def post(self, message: dict[str, Any], headers: dict[str, str]) -> tuple[dict[str, str], Any]:
        body = json.dumps(message).encode()
        lines = [
            "POST /mcp HTTP/1.1",
            f"Host: 127.0.0.1:{self._port}",
            "Accept: application/json, text/event-stream",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        return await asyncio.wait_for(self._answer(), LIMIT_S)

    async def _answer(self) -> tuple[dict[str, str], Any]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.rstrip().split("\r\n")
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int((await self._reader.readline()).strip() or b"0", 16):
                body += await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            await self._reader.readexactly(2)
        else:
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        if " 202 " in status:
            return headers, None
        assert " 200 " in status, (status, body)
        if headers["content-type"].startswith("text/event-stream"):
            data = [line[5:] for line in body.decode().splitlines() if line.startswith("data:")]
            return headers, next(m for m in map(json.loads, filter(str.strip, data)) if "id" in m)
        return headers, json.loads(body)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def resident_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]

"""What the HTTP tests share: a server on a loopback port, and clients that send exactly the bytes given."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from mcp.server.lowlevel import Server

from mcp_tools.executor import ToolExecutor
from mcp_tools.registry import ToolRegistry
from mcp_tools.server.handler import build_server
from mcp_tools.server.http import Listening, TokenTable, serve_http
from mcp_tools.types import CallContext

ALICE = "alice-token-0123456789"
BOB = "bob-token-0123456789ab"
MODERN = "2026-07-28"
HANDSHAKE = "2025-11-25"
ROOT = Path(__file__).parents[3]
WAIT_S = 10.0


def tokens() -> TokenTable:
    return TokenTable([("alice", ALICE), ("bob", BOB)])


def touch(*parts: str) -> None:
    Path(*parts).touch()


def make_registry() -> ToolRegistry:
    registry = ToolRegistry()

    @registry.register
    def echo(text: str) -> str:
        """Return the text."""
        return text

    @registry.register
    async def whoami(context: CallContext) -> dict[str, Any]:
        """Say who is calling."""
        return {
            "principal": context.principal,
            "transport": context.transport,
            "session_id": context.session_id,
        }

    @registry.register(timeout=60)
    async def wait(seconds: float) -> str:
        """Return after a while."""
        await anyio.sleep(seconds)
        return "waited"

    @registry.register(timeout=60)
    async def until_withdrawn(folder: str) -> str:
        """Wait until withdrawn, and leave a file that says so."""
        touch(folder, "begun")
        try:
            await anyio.sleep(30)
        finally:
            touch(folder, "withdrawn")
        return "never"

    @registry.register
    async def steps(count: int, context: CallContext) -> str:
        """Report each step."""
        for step in range(count):
            await context.report_progress(step + 1, count)
            await anyio.sleep(0.1)
        return f"{count} steps"

    @registry.register
    def big(size: int) -> str:
        """Return so many characters."""
        return "x" * size

    @registry.register
    def mark(path: str) -> str:
        """Leave a file, so that a test sees whether the call was made."""
        touch(path)
        return "marked"

    return registry


def make_server() -> Server[Any]:
    return build_server(ToolExecutor(make_registry()))


@dataclass(frozen=True, slots=True)
class Served:
    port: int
    shutdown: anyio.Event
    ended: anyio.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    @property
    def sse_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/sse"


@asynccontextmanager
async def serving(server: Server[Any] | None = None, **options: Any) -> AsyncIterator[Served]:
    """Serve in this event loop for the length of the block."""
    shutdown, ended, ready = anyio.Event(), anyio.Event(), anyio.Event()
    where: list[Listening] = []

    def on_listening(listening: Listening) -> None:
        where.append(listening)
        ready.set()

    async def run() -> None:
        await serve_http(
            server or make_server(),
            **{"port": 0, "shutdown": shutdown, "on_listening": on_listening, **options},
        )
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        with anyio.fail_after(WAIT_S):
            await ready.wait()
        try:
            yield Served(where[0].port, shutdown, ended)
        finally:
            shutdown.set()
            with anyio.fail_after(WAIT_S, shield=True):
                await ended.wait()


@asynccontextmanager
async def plain_uvicorn(app: Any) -> AsyncIterator[int]:
    """Serve an app as uvicorn does by itself, to show what works without us; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http="h11", ws="none", log_level="critical")
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, [listener])
        with anyio.fail_after(WAIT_S):
            while not server.started:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True


async def reading_app(scope: Any, receive: Any, send: Any) -> None:
    """Read the whole body, then say so: an app without any protection."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's message, also when it came as an event stream."""
        text = self.body.decode()
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            text = re.findall(r"^data: (\{.*\})\r?$", text, re.MULTILINE)[-1]
        return json.loads(text)


class Wire:
    """A TCP connection that sends what it is told to, well-formed or not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> Answer:
        """Read one whole answer: by its length, by its chunks, or up to the end of the connection."""
        with anyio.fail_after(WAIT_S):
            status, headers = await self.head()
            if status == 204:
                body = b""
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                body = b"".join([chunk async for chunk in self.chunks()])
            else:
                body = await self.reader.read()
            return Answer(status, headers, body)

    async def head(self) -> tuple[int, dict[str, str]]:
        with anyio.fail_after(WAIT_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(":", 1) for line in lines if line]
        return int(first.split(" ")[1]), {name.lower(): value.strip() for name, value in pairs}

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readline(), 16):
            chunk = await self.reader.readexactly(size)
            await self.reader.readexactly(2)
            yield chunk
        await self.reader.readexactly(2)

    async def event(self) -> tuple[str, str]:
        """Read one event of a stream: its name and data."""
        with anyio.fail_after(WAIT_S):
            async for chunk in self.chunks():
                found = re.search(r"event: (\w+)\r\ndata: (.*)\r\n", chunk.decode())
                if found:
                    return found[1], found[2]
        raise EOFError

    def has_news(self) -> bool:
        """Whether the server has said something, if only that it hangs up."""
        return bool(self.reader._buffer) or self.reader.at_eof()  # type: ignore[attr-defined]

    async def is_closed(self, within_s: float = WAIT_S) -> bool:
        """Whether the server hangs up, soon."""
        with anyio.move_on_after(within_s):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass
            return True
        return False


@asynccontextmanager
async def wire(port: int, host: str = "127.0.0.1") -> AsyncIterator[Wire]:
    with anyio.fail_after(WAIT_S):
        reader, writer = await asyncio.open_connection(host, port, limit=2**24)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def request(
    method: str,
    path: str,
    *,
    port: int,
    headers: Mapping[str, str | None] | None = None,
    body: bytes | None = None,
    token: str | None = None,
) -> bytes:
    """Write a request. A header that is None is left out, also the usual ones."""
    usual: dict[str, str | None] = {
        "Host": f"127.0.0.1:{port}",
        "Accept": "application/json, text/event-stream",
    }
    if body is not None:
        usual |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    if token is not None:
        usual["Authorization"] = f"Bearer {token}"
    lines = [f"{name}: {value}" for name, value in (usual | dict(headers or {})).items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("utf-8", "surrogateescape") + (
        body or b""
    )


async def ask(port: int, data: bytes) -> Answer:
    """Send bytes on a connection of their own and read the answer."""
    async with wire(port) as connection:
        await connection.send(data)
        return await connection.answer()


def rpc(method: str, params: dict[str, Any] | None = None, request_id: int | None = 1) -> bytes:
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if request_id is not None:
        message["id"] = request_id
    if params is not None:
        message["params"] = params
    return json.dumps(message).encode()


def modern(
    method: str,
    params: dict[str, Any] | None = None,
    *,
    port: int,
    token: str | None = None,
    **changed: str | None,
) -> bytes:
    """Write a 2026-07-28 POST. `changed` replaces headers, with `_` for `-`."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers: dict[str, str | None] = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method}
    if params and "name" in params:
        headers["Mcp-Name"] = params["name"]
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    params = params or {}
    body = rpc(method, {**params, "_meta": meta | params.get("_meta", {})})
    return request("POST", "/mcp", port=port, headers=headers, body=body, token=token)


def call(tool: str, arguments: dict[str, Any], *, port: int, token: str | None = None) -> bytes:
    return modern("tools/call", {"name": tool, "arguments": arguments}, port=port, token=token)


INITIALIZE = rpc(
    "initialize",
    {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
)
INITIALIZED = rpc("notifications/initialized", request_id=None)


async def open_session(port: int, token: str | None = None) -> str:
    """Shake hands over streamable HTTP and return the session's id."""
    answer = await ask(port, request("POST", "/mcp", port=port, body=INITIALIZE, token=token))
    assert answer.status == 200, answer
    session_id = answer.headers["mcp-session-id"]
    answer = await ask(port, in_session(session_id, INITIALIZED, port=port, token=token))
    assert answer.status == 202, answer
    return session_id


def in_session(session_id: str, body: bytes, *, port: int, token: str | None = None) -> bytes:
    headers = {"Mcp-Session-Id": session_id, "MCP-Protocol-Version": HANDSHAKE}
    return request("POST", "/mcp", port=port, headers=headers, body=body, token=token)


@asynccontextmanager
async def sse_session(port: int, token: str | None = None) -> AsyncIterator[tuple[Wire, str]]:
    """Open an SSE stream; gives the stream and the path to POST to."""
    async with wire(port) as stream:
        await stream.send(request("GET", "/sse", port=port, token=token))
        status, _ = await stream.head()
        assert status == 200
        name, path = await stream.event()
        assert name == "endpoint"
        yield stream, path


@dataclass(frozen=True, slots=True)
class Process:
    """A server of its own process."""

    process: asyncio.subprocess.Process
    port: int

    def peak_memory_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@asynccontextmanager
async def server_process(*arguments: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Process]:
    """Start the fixture server on a free port; ends it by its id."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.server.http.fixture_server",
        *arguments,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=dict(env) if env else None,
    )
    assert process.stderr is not None
    try:
        with anyio.fail_after(30):
            line = (await process.stderr.readline()).decode()
        found = re.search(r"http://[^/]+:(\d+)/", line)
        assert found, line
        yield Process(process, int(found[1]))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def result_of(answer: Answer) -> Any:
    assert answer.status == 200, answer
    return answer.json()["result"]


def said(answer: Answer) -> Any:
    return json.loads(result_of(answer)["content"][0]["text"])


def call_in_session(tool: str, arguments: dict[str, Any], request_id: int = 2) -> bytes:
    return rpc("tools/call", {"name": tool, "arguments": arguments}, request_id)

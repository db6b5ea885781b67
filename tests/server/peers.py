"""The SDK's own client, connected to the fixture server as a real process, over each transport."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import mcp_types as types
from mcp.client.client import Client
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

FIXTURE_SERVER = str(Path(__file__).with_name("fixture_server.py"))
ERAS = {"2025-11-25": "legacy", "2026-07-28": "2026-07-28"}

Question = Callable[[types.ElicitRequestFormParams], Awaitable[Any]]


@dataclass
class Peer:
    """A connected client, and what its server did."""

    transport: str
    era: str
    folder: Path
    client: Client = field(init=False)
    on_question: Question | None = None
    questions: list[str] = field(default_factory=list)
    notifications: list[Any] = field(default_factory=list)
    notified: anyio.Event = field(default_factory=anyio.Event)

    @property
    def is_modern(self) -> bool:
        """Whether a question is the answer to a call."""
        return self.era == "2026-07-28"

    @property
    def effects(self) -> list[str]:
        """What tools did to the world."""
        return _lines(self.folder / "effects")

    @property
    def calls(self) -> list[str]:
        """The calls that finished, as hooks are told."""
        return _lines(self.folder / "calls")

    async def until_effect(self, line: str) -> None:
        """Wait until a tool has done this."""
        with anyio.fail_after(10):
            while line not in self.effects:  # noqa: ASYNC110 - a file of another process
                await anyio.sleep(0.01)

    async def until_call(self, line: str, count: int = 1) -> None:
        """Wait until this call has been recorded."""
        with anyio.fail_after(10):
            while self.calls.count(line) < count:  # noqa: ASYNC110
                await anyio.sleep(0.01)

    async def call(self, name: str, **arguments: Any) -> types.CallToolResult:
        """Call a tool and answer what it asks."""
        with anyio.fail_after(20):
            return await self.client.call_tool(name, arguments)

    async def _elicit(self, _context: Any, params: Any) -> Any:
        self.questions.append(params.message)
        assert self.on_question is not None
        return await self.on_question(params)

    async def _message(self, message: Any) -> None:
        self.notifications.append(message)
        self.notified.set()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def text_of(result: types.CallToolResult) -> str:
    """Return all the text of a result."""
    return "\n".join(block.text for block in result.content if isinstance(block, types.TextContent))


def environment(folder: Path) -> dict[str, str]:
    """What the fixture server is started with."""
    return {
        "PATH": os.environ["PATH"],
        "MCP_TOOLS_TEST_EFFECTS": str(folder / "effects"),
        "MCP_TOOLS_TEST_CALLS": str(folder / "calls"),
        "MCP_TOOLS_TEST_URLS": str(folder / "urls"),
    }


@dataclass
class HttpServers:
    """HTTP servers by their options. Each serves both transports to any number of clients."""

    make_folder: Callable[[], Path]
    _running: dict[str, tuple[Path, anyio.abc.Process]] = field(default_factory=dict)

    async def urls(self, options: str) -> tuple[Path, str, str]:
        """Return the folder of a server with these options, and where it serves `/mcp` and `/sse`."""
        if options not in self._running:
            folder = self.make_folder()
            command = [sys.executable, FIXTURE_SERVER, "http", options]
            process = await anyio.open_process(
                command, env=environment(folder), stdin=None, stdout=None, stderr=None
            )
            self._running[options] = folder, process
        folder, process = self._running[options]
        with anyio.fail_after(20):
            while not (urls := _lines(folder / "urls")):
                assert process.returncode is None
                await anyio.sleep(0.02)
        streamable, sse = urls
        return folder, streamable, sse

    async def close(self) -> None:
        """End them all."""
        for _, process in self._running.values():
            process.terminate()
        with anyio.fail_after(10):
            for _, process in self._running.values():
                assert await process.wait() == 0


async def _stdio(servers: HttpServers, options: str) -> tuple[Path, Any]:
    folder = servers.make_folder()
    command = [FIXTURE_SERVER, "stdio", options]
    return folder, StdioServerParameters(command=sys.executable, args=command, env=environment(folder))


async def _sse(servers: HttpServers, options: str) -> tuple[Path, Any]:
    folder, _, url = await servers.urls(options)
    return folder, sse_client(url)


async def _http(servers: HttpServers, options: str) -> tuple[Path, Any]:
    folder, url, _ = await servers.urls(options)
    return folder, streamable_http_client(url)


PEERS: dict[str, Callable[[HttpServers, str], Awaitable[tuple[Path, Any]]]] = {
    "stdio": _stdio,
    "sse": _sse,
    "http": _http,
}


@asynccontextmanager
async def connected(
    servers: HttpServers, transport: str, era: str, *, elicits: bool = True, options: str = "{}"
) -> AsyncIterator[Peer]:
    """Connect a client of this era to a server with these options."""
    folder, server = await PEERS[transport](servers, options)
    peer = Peer(transport, era, folder)
    peer.client = Client(
        server,
        mode=ERAS[era],
        elicitation_callback=peer._elicit if elicits else None,
        message_handler=peer._message,
    )
    async with peer.client:
        assert peer.client.protocol_version == era
        yield peer

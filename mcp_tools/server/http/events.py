"""Event streams: what SSE and streamable HTTP have in common on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from mcp_types.jsonrpc import JSONRPCMessage

from mcp_tools.server.http.exchange import Exchange, Receive
from mcp_tools.server.http.requests import Header

PING_S: Final = 15.0
"""Proxies give up on an answer that says nothing for a minute, often less."""

_START: Final = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]


async def start(exchange: Exchange, *headers: Header) -> None:
    """Begin an event stream."""
    await exchange({"type": "http.response.start", "status": 200, "headers": [*_START, *headers]})


async def send(exchange: Exchange, message: JSONRPCMessage) -> None:
    """Send one message as an event."""
    await send_event(exchange, "message", message.model_dump_json(by_alias=True, exclude_unset=True))


async def send_event(exchange: Exchange, name: str, data: str) -> None:
    """Send an event; `data` has no line breaks."""
    await _send_text(exchange, f"event: {name}\r\ndata: {data}\r\n\r\n")


async def send_ping(exchange: Exchange) -> None:
    """Send a comment, which clients skip."""
    await _send_text(exchange, ": ping\r\n\r\n")


async def _send_text(exchange: Exchange, text: str) -> None:
    await exchange({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def next_message(
    messages: MemoryObjectReceiveStream[JSONRPCMessage], exchange: Exchange, *headers: Header
) -> JSONRPCMessage | None:
    """Wait for the next message; None when there will be none. In long silence, keep the answer alive.

    `headers` go with the start of the stream, where silence begins it.
    """
    while True:
        with anyio.move_on_after(PING_S):
            try:
                return await messages.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                return None
        if not exchange.started:
            await start(exchange, *headers)
        await send_ping(exchange)


@asynccontextmanager
async def first_to_end() -> AsyncIterator[Callable[..., None]]:
    """Run the body and what it starts; when any of them ends, end all."""
    async with anyio.create_task_group() as group:

        async def run(function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
            await function(*arguments)
            group.cancel_scope.cancel()

        def begin(function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
            group.start_soon(run, function, *arguments)

        yield begin
        group.cancel_scope.cancel()


async def until_disconnect(receive: Receive) -> None:
    """Wait for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass

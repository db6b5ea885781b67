"""The SSE transport of the handshake era: one GET stream per session, messages by POST.

The SDK has one, without any limit: on the number of streams, on messages whose answers nobody reads,
on idle time. This one has the same wire and keeps those.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs, quote
from uuid import uuid4

import anyio
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_dual_era_loop
from mcp.shared._context_streams import ContextReceiveStream, ContextSendStream, create_context_streams
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCRequest, JSONRPCResponse
from starlette.requests import Request

from mcp_tools.server.http.limits import HttpLimits
from mcp_tools.server.http.requests import NO_SESSION, Refusal

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

PING_S: Final = 15.0
_ACCEPTED: Final = Refusal(202, "Accepted")
_TOO_MANY_CALLS: Final = Refusal(429, "too many requests wait for their answer", ((b"retry-after", b"1"),))


@dataclass(slots=True)
class _Stream:
    inbox: ContextSendStream[SessionMessage | Exception]
    waiting: set[str | int] = field(default_factory=set)
    touched: float = field(default_factory=anyio.current_time)

    async def settle(self, request_id: str | int) -> None:
        """Count a request as done: its answer is on the way, or it will never have one."""
        self.waiting.discard(request_id)
        self.touched = anyio.current_time()


class SseSessions:
    """All SSE sessions of one app.

    Args:
        server: What answers.
        limits: `session_idle_s` and `calls_per_sse_session` apply here.
        messages_path: Where clients POST, relative to the app.
    """

    def __init__(self, server: Server[Any], *, limits: HttpLimits, messages_path: str) -> None:
        self._server = server
        self._limits = limits
        self._messages_path = messages_path
        self._streams: dict[str, _Stream] = {}

    @property
    def calls_waiting(self) -> int:
        """How many requests were taken and not answered yet."""
        return sum(len(stream.waiting) for stream in self._streams.values())

    @staticmethod
    def session_of(query_string: bytes) -> str | None:
        """Return the session id of a POST's query; None unless there is exactly one."""
        try:
            found = parse_qs(query_string.decode("ascii"), max_num_fields=8).get("session_id", [])
        except ValueError:
            return None
        return found[0] if len(found) == 1 else None

    @staticmethod
    def new_session_id() -> str:
        """Make an id that cannot be guessed: 32 hex digits."""
        return uuid4().hex

    async def serve_stream(
        self, session_id: str, scope: dict[str, Any], receive: Receive, send: Send, lifespan_state: Any
    ) -> None:
        """Serve one GET: tell where to POST, then send what the server says until either side leaves."""
        inbox, read_stream = create_context_streams[SessionMessage | Exception](0)
        write_stream, outbox = create_context_streams[SessionMessage](0)
        stream = _Stream(inbox)
        endpoint = quote(scope.get("root_path", "").rstrip("/") + self._messages_path)
        self._streams[session_id] = stream
        try:
            async with inbox, outbox, _first_to_end() as start:
                # Relative on purpose: a client that followed a foreign host would send its token there.
                await send(_start_event_stream())
                await send(_event("endpoint", f"{endpoint}?session_id={session_id}"))
                start(self._write_answers, stream, outbox, send)
                start(_until_disconnect, receive)
                start(self._until_idle, stream)
                await serve_dual_era_loop(
                    self._server,
                    read_stream,
                    write_stream,
                    lifespan_state=lifespan_state,
                    session_id=session_id,
                )
        finally:
            self._streams.pop(session_id, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def take_message(self, session_id: str, message: JSONRPCMessage, scope: dict[str, Any]) -> Refusal:
        """Hand one POSTed message to its session and return what to answer."""
        stream = self._streams.get(session_id)
        if stream is None:
            return NO_SESSION
        stream.touched = anyio.current_time()
        metadata = ServerMessageMetadata(request_context=Request(scope))
        if isinstance(message, JSONRPCRequest):
            if len(stream.waiting) >= self._limits.calls_per_sse_session:
                return _TOO_MANY_CALLS
            stream.waiting.add(message.id)
            metadata.on_request_unanswered = partial(stream.settle, message.id)
        try:
            await stream.inbox.send(SessionMessage(message, metadata=metadata))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return NO_SESSION
        return _ACCEPTED

    async def _write_answers(
        self, stream: _Stream, outbox: ContextReceiveStream[SessionMessage], send: Send
    ) -> None:
        # Closed by whoever ends first, so that an answer that nobody will send fails at once.
        async with outbox:
            while True:
                with anyio.move_on_after(PING_S) as waiting:
                    try:
                        message = (await outbox.receive()).message
                    except (anyio.EndOfStream, anyio.ClosedResourceError):
                        return
                if waiting.cancelled_caught:
                    await send(_comment("ping"))
                    continue
                await send(_event("message", message.model_dump_json(by_alias=True, exclude_unset=True)))
                if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
                    await stream.settle(message.id)

    async def _until_idle(self, stream: _Stream) -> None:
        idle_s = self._limits.session_idle_s
        while True:
            unused_s = 0.0 if stream.waiting else anyio.current_time() - stream.touched
            if unused_s >= idle_s:
                return
            await anyio.sleep(idle_s - unused_s)


@asynccontextmanager
async def _first_to_end() -> AsyncIterator[Callable[..., None]]:
    """Run the body and what it starts; when any of them ends, end all."""
    async with anyio.create_task_group() as group:

        async def run(function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
            await function(*arguments)
            group.cancel_scope.cancel()

        def start(function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
            group.start_soon(run, function, *arguments)

        yield start
        group.cancel_scope.cancel()


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start_event_stream() -> Message:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _event(name: str, data: str) -> Message:
    # JSON on one line: pydantic writes no line breaks, and the endpoint is quoted.
    return _chunk(f"event: {name}\r\ndata: {data}\r\n\r\n")


def _comment(text: str) -> Message:
    return _chunk(f": {text}\r\n\r\n")


def _chunk(text: str) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}

"""The SSE transport of the handshake era: one GET stream per session, messages by POST.

The SDK has one, without any limit: on the number of streams, on messages whose answers nobody reads,
on idle time. This one has the same wire and keeps those.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs, quote
from uuid import uuid4

import anyio
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_dual_era_loop
from mcp.shared._context_streams import create_context_streams
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp_types import INVALID_REQUEST
from mcp_types.jsonrpc import JSONRPCError, JSONRPCMessage, JSONRPCRequest, JSONRPCResponse
from starlette.requests import Request as StarletteRequest

from mcp_tools.server.http import events
from mcp_tools.server.http.exchange import Exchange
from mcp_tools.server.http.limits import HttpLimits
from mcp_tools.server.http.requests import NO_SESSION, Answer, rpc_error
from mcp_tools.server.http.routing import Request

_ACCEPTED: Final = Answer(202, "Accepted")
_ID_IN_USE: Final = rpc_error(400, INVALID_REQUEST, "id: a request with this id is in progress")
_TOO_MANY_CALLS: Final = Answer(429, "too many requests wait for their answer", ((b"retry-after", b"1"),))


class _Stream:
    """One session: where its messages go in, and the stream they come out of; the SDK's `WriteStream`."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self.inbox, self.read_stream = create_context_streams[SessionMessage | Exception](0)
        self._out, self._messages = anyio.create_memory_object_stream[JSONRPCMessage](0)
        self.waiting: set[str | int] = set()
        self._touched = anyio.current_time()

    def touch(self) -> None:
        """Note that the session is in use."""
        self._touched = anyio.current_time()

    async def settle(self, request_id: str | int) -> None:
        """Count a request as done: its answer is on the way, or it will never have one."""
        self.waiting.discard(request_id)
        self.touch()

    async def send(self, item: SessionMessage, /) -> None:
        await self._out.send(item.message)

    async def aclose(self) -> None:
        self._out.close()

    async def __aenter__(self) -> _Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def write(self, exchange: Exchange) -> None:
        """Send what the server says, until it says no more."""
        # Closed by whoever ends first, so that an answer that nobody will send fails at once.
        with self._messages:
            while message := await events.next_message(self._messages, exchange):
                await events.send(exchange, message)
                if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
                    await self.settle(message.id)

    def _unused_s(self) -> float:
        return 0.0 if self.waiting else anyio.current_time() - self._touched

    async def until_idle(self) -> None:
        """Wait until the session has not been in use for too long."""
        idle_s = self._limits.session_idle_s
        while (unused_s := self._unused_s()) < idle_s:  # noqa: ASYNC110 - time is the event
            await anyio.sleep(idle_s - unused_s)


class SseSessions:
    """All SSE sessions of one app. Who may use which is not decided here.

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

    async def serve(self, session_id: str, request: Request, lifespan_state: Any) -> None:
        """Serve one GET: tell where to POST, then send what the server says until either side leaves."""
        exchange = request.exchange
        stream = self._streams[session_id] = _Stream(self._limits)
        endpoint = quote(request.scope.get("root_path", "").rstrip("/") + self._messages_path)
        try:
            async with stream.inbox, events.first_to_end() as start:
                await events.start(exchange)
                # Relative on purpose: a client that followed a foreign host would send its token there.
                await events.send_event(exchange, "endpoint", f"{endpoint}?session_id={session_id}")
                start(stream.write, exchange)
                start(events.until_disconnect, request.receive)
                start(stream.until_idle)
                await serve_dual_era_loop(
                    self._server,
                    stream.read_stream,
                    stream,
                    lifespan_state=lifespan_state,
                    session_id=session_id,
                )
        finally:
            del self._streams[session_id]
        await exchange.finish()

    async def take(self, session_id: str, message: JSONRPCMessage, request: Request) -> Answer:
        """Hand one POSTed message to its session and return what to answer."""
        stream = self._streams.get(session_id)
        if stream is None:
            return NO_SESSION
        stream.touch()
        metadata = ServerMessageMetadata(request_context=StarletteRequest(request.scope))
        if isinstance(message, JSONRPCRequest):
            # Also what makes the count below true: equal ids would count once.
            if message.id in stream.waiting:
                return _ID_IN_USE
            if len(stream.waiting) >= self._limits.calls_per_sse_session:
                return _TOO_MANY_CALLS
            stream.waiting.add(message.id)
            metadata.on_request_unanswered = partial(stream.settle, message.id)
        try:
            await stream.inbox.send(SessionMessage(message, metadata=metadata))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return NO_SESSION
        return _ACCEPTED

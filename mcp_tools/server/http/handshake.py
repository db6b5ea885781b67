"""Sessions of the handshake era over streamable HTTP: each POST is answered on its own, a GET listens.

The SDK's transport sends every answer as an event stream of five tasks. Here an answer is one JSON
document, unless the call has something to say before it ends; then it becomes an event stream, as in
the SDK's own transport for 2026-07-28. That is most of the time that a call takes over HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_loop
from mcp.shared._context_streams import create_context_streams
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp_types import INVALID_REQUEST, ErrorData
from mcp_types.jsonrpc import (
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)
from starlette.requests import Request as StarletteRequest

from mcp_tools.server.http import events
from mcp_tools.server.http.exchange import Exchange
from mcp_tools.server.http.leaving import WatchedClient
from mcp_tools.server.http.requests import JSON, NO_SESSION, Answer, Header, rpc_error
from mcp_tools.server.http.routing import Request

logger = logging.getLogger(__name__)

REQUEST_CANCELLED: Final = -32800
"""What a withdrawn request is answered with: this era ends an answer only with a message."""

_WAITING_MESSAGES: Final = 16
_ACCEPTED: Final = Answer(202, "")
_ID_IN_USE: Final = rpc_error(400, INVALID_REQUEST, "id: a request with this id is in progress")
_ALREADY_LISTENING: Final = rpc_error(409, INVALID_REQUEST, "the session has a listening stream already")

_Outlet = MemoryObjectSendStream[JSONRPCMessage]


class _Session:
    """One session: where its messages go in, and on whose answers they come out.

    It is also the SDK's `WriteStream`: what the server says is routed by whoever says it, so that a
    client that reads slowly holds up the call that talks to it, and no other.
    """

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self.inbox, self._read_stream = create_context_streams[SessionMessage | Exception](0)
        self.answers: dict[str, _Outlet] = {}
        self.questions: dict[str, str] = {}  # id of a question to the client → key of its call
        self.listener: _Outlet | None = None

    async def run(self, server: Server[Any], lifespan_state: Any, on_end: Callable[[str], None]) -> None:
        """Serve until the inbox is closed."""
        try:
            await serve_loop(
                server, self._read_stream, self, lifespan_state=lifespan_state, session_id=self.id
            )
        except Exception:
            logger.exception("a session broke")
        finally:
            self.close()
            on_end(self.id)

    async def send(self, item: SessionMessage, /) -> None:
        message = item.message
        related: str | int | None = None
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            related = message.id
        elif isinstance(item.metadata, ServerMessageMetadata):
            related = item.metadata.related_request_id
        answer = self.listener if related is None else self.answers.get(str(related))
        if answer is not None:
            try:
                await answer.send(message)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                logger.debug("a message was dropped: its client is gone")

    async def withdrawn(self, request_id: str | int) -> None:
        """End the answer to a request that will have none."""
        error = ErrorData(code=REQUEST_CANCELLED, message="Request cancelled")
        await self.send(SessionMessage(JSONRPCError(jsonrpc="2.0", id=request_id, error=error)))

    def close(self) -> None:
        """End the session; whoever waits for a message of it waits no more."""
        self.inbox.close()
        for answer in self.answers.values():
            answer.close()
        if self.listener is not None:
            self.listener.close()

    async def aclose(self) -> None:
        self.close()

    async def __aenter__(self) -> _Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class HandshakeSessions:
    """All handshake sessions of one app. Who may use which is not decided here.

    Args:
        server: What answers.
        on_end: Told the id of each session that is over.
    """

    def __init__(self, server: Server[Any], *, on_end: Callable[[str], None]) -> None:
        self._server = server
        self._on_end = on_end
        self._sessions: dict[str, _Session] = {}

    def start(self, group: TaskGroup, lifespan_state: Any) -> str:
        """Begin a session and return its id, which nobody knows yet."""
        session = _Session(uuid4().hex)
        self._sessions[session.id] = session
        group.start_soon(session.run, self._server, lifespan_state, self._forget)
        return session.id

    def end(self, session_id: str) -> None:
        """End a session: its calls are cancelled, its streams closed. Nothing happens if it is over."""
        if (session := self._sessions.pop(session_id, None)) is not None:
            session.close()

    def _forget(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        self._on_end(session_id)

    async def post(self, session_id: str, message: JSONRPCMessage, request: Request) -> bool:
        """Take one message and answer it; return whether it was a request that got its result."""
        session = self._sessions.get(session_id)
        if session is None:
            await request.exchange.answer(NO_SESSION)
            return False
        metadata = ServerMessageMetadata(request_context=StarletteRequest(request.scope))
        if isinstance(message, JSONRPCRequest):
            return await self._ask(session, message, metadata, request)
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            session.questions.pop(str(message.id), None)
        is_taken = await _put(session, SessionMessage(message, metadata))
        await request.exchange.answer(_ACCEPTED if is_taken else NO_SESSION)
        return False

    async def _ask(
        self, session: _Session, message: JSONRPCRequest, metadata: ServerMessageMetadata, request: Request
    ) -> bool:
        key = str(message.id)
        if key in session.answers:
            await request.exchange.answer(_ID_IN_USE)
            return False
        metadata.on_request_unanswered = partial(session.withdrawn, message.id)
        answer, messages = anyio.create_memory_object_stream[JSONRPCMessage](_WAITING_MESSAGES)
        session.answers[key] = answer
        try:
            if not await _put(session, SessionMessage(message, metadata)):
                await request.exchange.answer(NO_SESSION)
                return False
            watched = _WatchedCall(session, key)
            with watched.scope:
                async with WatchedClient(request, watched.client_left):
                    return await _write_answer(
                        messages, request.exchange, _session_header(session), watched.asked
                    )
            # Nobody is left to answer: the question would hold its place until its time is up.
            withdrawal = JSONRPCNotification(
                jsonrpc="2.0", method="notifications/cancelled", params={"requestId": message.id}
            )
            about = ServerMessageMetadata(request_context=StarletteRequest(request.scope))
            await _put(session, SessionMessage(withdrawal, about))
            return False
        finally:
            for question in [at for at, call in session.questions.items() if call == key]:
                del session.questions[question]
            del session.answers[key]
            answer.close()
            messages.close()

    async def listen(self, session_id: str, request: Request) -> Answer | None:
        """Send what the server says of itself, until either side leaves."""
        session = self._sessions.get(session_id)
        if session is None:
            return NO_SESSION
        if session.listener is not None:
            return _ALREADY_LISTENING
        session.listener, messages = anyio.create_memory_object_stream[JSONRPCMessage](_WAITING_MESSAGES)
        try:
            with session.listener, messages:
                await events.start(request.exchange, _session_header(session))
                async with events.first_to_end() as start:
                    start(events.until_disconnect, request.receive)
                    while message := await events.next_message(messages, request.exchange):
                        await events.send(request.exchange, message)
            await request.exchange.finish()
        finally:
            session.listener = None
        return None


class _WatchedCall:
    """Ends the wait for a call's answer once its client has left and a question of it is open."""

    def __init__(self, session: _Session, key: str) -> None:
        self._session = session
        self._key = key
        self._is_alone = False
        self.scope = anyio.CancelScope()

    def client_left(self) -> None:
        """Note that the client of the call has left."""
        self._is_alone = True
        if self._key in self._session.questions.values():
            self.scope.cancel()

    def asked(self, question_id: str | int) -> None:
        """Note a question that is on its way to the client."""
        self._session.questions[str(question_id)] = self._key
        if self._is_alone:
            self.scope.cancel()


async def _put(session: _Session, message: SessionMessage) -> bool:
    try:
        await session.inbox.send(message)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return False
    return True


async def _write_answer(
    messages: MemoryObjectReceiveStream[JSONRPCMessage],
    exchange: Exchange,
    header: Header,
    on_question: Callable[[str | int], None],
) -> bool:
    """Send the answer to one request, and return whether it was a result.

    The client may leave meanwhile: its call goes on, as this era has it, and what is sent goes nowhere;
    unless the call asks the client something, of which `on_question` is told.
    """
    while message := await events.next_message(messages, exchange, header):
        if isinstance(message, JSONRPCRequest):
            on_question(message.id)
        is_last = isinstance(message, JSONRPCResponse | JSONRPCError)
        if is_last and not exchange.started:
            body = message.model_dump_json(by_alias=True, exclude_unset=True).encode()
            await exchange.whole(200, JSON, body, header)
            return isinstance(message, JSONRPCResponse)
        if not exchange.started:
            await events.start(exchange, header)
        await events.send(exchange, message)
        if is_last:
            await exchange.finish()
            return isinstance(message, JSONRPCResponse)
    # The session ended first.
    await (exchange.finish() if exchange.started else exchange.answer(NO_SESSION))
    return False


def _session_header(session: _Session) -> Header:
    return (b"mcp-session-id", session.id.encode())

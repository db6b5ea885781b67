"""`/mcp`: streamable HTTP in both eras. The SDK speaks it; here is who may open and use which session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import anyio
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types.jsonrpc import JSONRPCError, JSONRPCMessage, JSONRPCRequest

from mcp_tools.server.http import requests as checks
from mcp_tools.server.http.exchange import Message, replay
from mcp_tools.server.http.requests import Refusal
from mcp_tools.server.http.routing import Bounds, Calling, Handler, Request, Routes

MCP_PATH: Final = "/mcp"
_END_SESSIONS_S: Final = 0.5


class StreamableRoutes:
    """The streamable HTTP transport of one app.

    Args:
        server: What answers.
        bounds: Shared with the app's other routes.
    """

    def __init__(self, server: Server[Any], bounds: Bounds) -> None:
        self._bounds = bounds
        self._ledger = bounds.new_ledger()
        self._manager = StreamableHTTPSessionManager(
            server,
            session_idle_timeout=bounds.limits.session_idle_s,
            max_request_body_size=bounds.limits.body_bytes,
            # The ledger is the bound; the SDK may still be ending sessions that it counts no more.
            max_sessions=2 * bounds.limits.sessions,
        )
        self.routes: Routes = {MCP_PATH: {"GET": self._get, "POST": self._post, "DELETE": self._delete}}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep sessions while this is entered; on the way out, end them all."""
        async with self._manager.run():
            try:
                yield
            finally:
                with anyio.move_on_after(_END_SESSIONS_S, shield=True):
                    await self._end_sessions()

    async def _end_sessions(self) -> None:
        """End each session as its client would. Cancelled instead, it waits a second for a dead wire."""
        for session_id, principal in self._ledger.all():
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": "DELETE",
                "path": MCP_PATH,
                "query_string": b"",
                "headers": [(b"mcp-session-id", session_id.encode("latin-1"))],
                "user": self._bounds.users.get(principal),
            }
            await self._manager.handle_request(scope, _no_body, _to_nobody)

    async def _post(self, request: Request) -> Refusal | None:
        if (refusal := checks.media_refusal(request.headers, self._bounds.limits)) is not None:
            return refusal
        if request.is_modern:
            return await self._with_message(request)
        if request.headers.get(b"mcp-session-id") is None:
            return await self._open_session(request)
        return await self._in_session(request, self._with_message)

    async def _get(self, request: Request) -> Refusal | None:
        if checks.has_body(request.headers):
            return checks.BODY_UNWANTED
        if request.is_modern:
            return checks.method_not_allowed(("POST",))
        return await self._in_session(request, self._listen)

    async def _delete(self, request: Request) -> Refusal | None:
        if checks.has_body(request.headers):
            return checks.BODY_UNWANTED
        if request.is_modern:
            return checks.method_not_allowed(("POST",))
        request.exchange.no_content = True
        return await self._in_session(request, self._pass_on)

    async def _open_session(self, request: Request) -> Refusal | None:
        if not self._ledger.reserve(request.principal):
            return checks.TOO_MANY_SESSIONS
        is_open = False

        def note(status: int, session_id: str | None) -> None:
            # Written down before the client learns the id, so that its next request finds it.
            nonlocal is_open
            if session_id is not None and status < 400:
                self._ledger.open(session_id, request.principal)
                is_open = True

        request.exchange.on_start = note
        try:
            return await self._with_message(request)
        finally:
            if not is_open:
                self._ledger.forgo(request.principal)

    async def _in_session(self, request: Request, handler: Handler) -> Refusal | None:
        session_id = request.headers.text(b"mcp-session-id")
        if session_id is None:
            return checks.NEEDS_SESSION
        if not self._ledger.enter(session_id, request.principal):
            return checks.NO_SESSION

        def note(status: int, _: str | None) -> None:
            # The SDK knows it no more: it crashed, or this was its DELETE.
            if status == 404 or (status < 400 and request.scope["method"] == "DELETE"):
                self._ledger.close(session_id)

        request.exchange.on_start = note
        try:
            return await handler(request)
        finally:
            self._ledger.leave(session_id)

    async def _listen(self, request: Request) -> Refusal | None:
        if request.headers.get(b"last-event-id") is not None:
            # No event is kept to be sent again, and the SDK would then not answer at all.
            scope = request.scope
            headers = [header for header in scope["headers"] if header[0] != b"last-event-id"]
            request = replace(request, scope={**scope, "headers": headers})
        return await self._bounds.as_stream(request, self._pass_on)

    async def _with_message(self, request: Request) -> Refusal | None:
        return await self._bounds.with_message(request, self._hand_on)

    async def _hand_on(self, request: Request, message: JSONRPCMessage, body: bytes) -> Refusal | None:
        if isinstance(message, JSONRPCRequest) and message.method == "subscriptions/listen":

            async def listen(request: Request) -> Refusal | None:
                return await self._pass_on(request, body)

            return await self._bounds.as_stream(request, listen)
        if isinstance(message, JSONRPCError):
            # The guard made it from a malformed response, so that whoever waits for it is told.
            body = message.model_dump_json(by_alias=True, exclude_unset=True).encode()
        return await self._pass_on(request, body)

    async def _pass_on(self, request: Request, body: bytes = b"") -> Refusal | None:
        session_id = None if request.is_modern else request.headers.text(b"mcp-session-id")
        with Calling(request, transport="http", session_id=session_id):
            await self._manager.handle_request(request.scope, replay(body, request.receive), request.exchange)
        return None


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _to_nobody(_: Message) -> None:
    pass

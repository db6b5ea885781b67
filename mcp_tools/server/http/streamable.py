"""`/mcp`: streamable HTTP. A request of 2026-07-28 stands alone; an older one belongs to a session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from mcp.server.lowlevel import Server
from mcp_types.jsonrpc import JSONRPCMessage, JSONRPCRequest

from mcp_tools.server.http import requests as checks
from mcp_tools.server.http.handshake import HandshakeSessions
from mcp_tools.server.http.modern import ModernRequests
from mcp_tools.server.http.requests import Answer
from mcp_tools.server.http.routing import Bounds, Calling, Handler, Request, Routes

MCP_PATH: Final = "/mcp"


class StreamableRoutes:
    """The streamable HTTP transport of one app.

    Args:
        server: What answers.
        bounds: Shared with the app's other routes.
    """

    def __init__(self, server: Server[Any], bounds: Bounds) -> None:
        self._bounds = bounds
        self._modern = ModernRequests(server)
        self._sessions = HandshakeSessions(server, on_end=self._close)
        self._ledger = bounds.new_ledger(on_close=self._sessions.end)
        self._group: TaskGroup | None = None
        self._lifespan_state: Any = None
        self.routes: Routes = {MCP_PATH: {"GET": self._get, "POST": self._post, "DELETE": self._delete}}

    @asynccontextmanager
    async def running(self, lifespan_state: Any) -> AsyncIterator[None]:
        """Keep sessions while this is entered; on the way out, end them all."""
        self._lifespan_state = lifespan_state
        async with anyio.create_task_group() as self._group:
            self._group.start_soon(self._end_idle_sessions)
            try:
                yield
            finally:
                self._ledger.close_all()
                self._group.cancel_scope.cancel()

    async def _end_idle_sessions(self) -> None:
        while True:
            await anyio.sleep(min(self._bounds.limits.session_idle_s / 4, 60))
            self._ledger.close_idle()

    def _close(self, session_id: str) -> None:
        self._ledger.close(session_id)

    async def _post(self, request: Request) -> Answer | None:
        if (refusal := checks.media_refusal(request.headers, self._bounds.limits)) is not None:
            return refusal
        if not checks.accepts(request.headers, b"application/json", b"text/event-stream"):
            return checks.NOT_ACCEPTABLE
        if request.is_modern:
            return await self._bounds.with_message(request, self._post_modern)
        if request.headers.get(b"mcp-session-id") is None:
            return await self._bounds.with_message(request, self._open_session)
        return await self._in_session(request, self._post_to_session)

    async def _get(self, request: Request) -> Answer | None:
        if checks.has_body(request.headers):
            return checks.BODY_UNWANTED
        if request.is_modern:
            return checks.method_not_allowed(("POST",))
        if not checks.accepts(request.headers, b"text/event-stream"):
            return checks.NOT_ACCEPTABLE
        return await self._in_session(request, self._listen)

    async def _delete(self, request: Request) -> Answer | None:
        if checks.has_body(request.headers):
            return checks.BODY_UNWANTED
        if request.is_modern:
            return checks.method_not_allowed(("POST",))
        return await self._in_session(request, self._end_session)

    # --- 2026-07-28 ---------------------------------------------------------------------------

    async def _post_modern(self, request: Request, message: JSONRPCMessage, _: bytes) -> Answer | None:
        async def answer(request: Request) -> Answer | None:
            with Calling(request, transport="http", session_id=None):
                return await self._modern.post(message, request, self._lifespan_state)

        if isinstance(message, JSONRPCRequest) and message.method == "subscriptions/listen":
            return await self._bounds.as_stream(request, answer)
        return await answer(request)

    # --- The handshake era --------------------------------------------------------------------

    async def _open_session(self, request: Request, message: JSONRPCMessage, _: bytes) -> Answer | None:
        if not isinstance(message, JSONRPCRequest) or message.method != "initialize":
            return checks.NEEDS_SESSION
        if not self._ledger.reserve(request.principal):
            return checks.TOO_MANY_SESSIONS
        assert self._group is not None
        session_id = self._sessions.start(self._group, self._lifespan_state)
        self._ledger.open(session_id, request.principal)
        is_open = False
        try:
            self._ledger.enter(session_id, request.principal)
            with Calling(request, transport="http", session_id=session_id):
                is_open = await self._sessions.post(session_id, message, request)
        finally:
            self._ledger.leave(session_id)
            if not is_open:
                self._ledger.close(session_id)
        return None

    async def _in_session(self, request: Request, handler: Handler) -> Answer | None:
        session_id = request.session_id
        if not session_id:
            return checks.NEEDS_SESSION
        if not self._ledger.enter(session_id, request.principal):
            return checks.NO_SESSION
        try:
            return await handler(request)
        finally:
            self._ledger.leave(session_id)

    async def _post_to_session(self, request: Request) -> Answer | None:
        return await self._bounds.with_message(request, self._hand_over)

    async def _hand_over(self, request: Request, message: JSONRPCMessage, _: bytes) -> None:
        with Calling(request, transport="http", session_id=request.session_id):
            await self._sessions.post(request.session_id, message, request)

    async def _listen(self, request: Request) -> Answer | None:
        async def listen(request: Request) -> Answer | None:
            return await self._sessions.listen(request.session_id, request)

        return await self._bounds.as_stream(request, listen)

    async def _end_session(self, request: Request) -> Answer | None:
        self._ledger.close(request.session_id)
        return checks.ENDED

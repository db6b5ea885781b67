"""`/sse` and `/messages/`: the older transport, for clients that know no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from mcp.server.lowlevel import Server
from mcp_types.jsonrpc import JSONRPCMessage

from mcp_tools.server.http import requests as checks
from mcp_tools.server.http.requests import Answer
from mcp_tools.server.http.routing import Bounds, Calling, Request, Routes
from mcp_tools.server.http.sse import SseSessions

SSE_PATH: Final = "/sse"
MESSAGES_PATH: Final = "/messages/"


class SseRoutes:
    """The SSE transport of one app.

    Args:
        server: What answers.
        bounds: Shared with the app's other routes.
    """

    def __init__(self, server: Server[Any], bounds: Bounds) -> None:
        self._bounds = bounds
        self._ledger = bounds.new_ledger()
        self._sessions = SseSessions(server, limits=bounds.limits, messages_path=MESSAGES_PATH)
        self._lifespan_state: Any = None
        self.routes: Routes = {SSE_PATH: {"GET": self._get}, MESSAGES_PATH: {"POST": self._post}}

    @property
    def calls_waiting(self) -> int:
        """How many requests were taken and not answered yet."""
        return self._sessions.calls_waiting

    @asynccontextmanager
    async def running(self, lifespan_state: Any) -> AsyncIterator[None]:
        """Serve while this is entered. A session is part of its GET request, and ends with it."""
        self._lifespan_state = lifespan_state
        yield

    async def _get(self, request: Request) -> Answer | None:
        if checks.has_body(request.headers):
            return checks.BODY_UNWANTED
        return await self._bounds.as_stream(request, self._serve)

    async def _serve(self, request: Request) -> Answer | None:
        if not self._ledger.reserve(request.principal):
            return checks.TOO_MANY_SESSIONS
        session_id = self._sessions.new_session_id()
        self._ledger.open(session_id, request.principal)
        # Held until the stream ends: SSE sessions notice by themselves when they are idle.
        self._ledger.enter(session_id, request.principal)
        try:
            with Calling(request, transport="sse", session_id=session_id):
                await self._sessions.serve(session_id, request, self._lifespan_state)
        finally:
            self._ledger.close(session_id)
        return None

    async def _post(self, request: Request) -> Answer | None:
        if (refusal := checks.media_refusal(request.headers, self._bounds.limits)) is not None:
            return refusal
        session_id = self._sessions.session_of(request.scope["query_string"])
        if session_id is None or not self._ledger.enter(session_id, request.principal):
            return checks.NO_SESSION

        async def take(request: Request, message: JSONRPCMessage, _: bytes) -> Answer:
            with Calling(request, transport="sse", session_id=session_id):
                return await self._sessions.take(session_id, message, request)

        try:
            return await self._bounds.with_message(request, take)
        finally:
            self._ledger.leave(session_id)

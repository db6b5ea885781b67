"""Noticing that the client of a request has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from mcp_tools.server.http import events
from mcp_tools.server.http.connection import connection_of
from mcp_tools.server.http.routing import Request


class WatchedClient:
    """While entered, calls `on_leave` when the client of a request leaves, also if it has left already.

    Our own connections say so. Under another ASGI server a task has to wait for it.
    """

    def __init__(self, request: Request, on_leave: Callable[[], None]) -> None:
        self._request = request
        self._on_leave = on_leave
        self._connection = connection_of(request.scope)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        if self._connection is not None:
            self._connection.on_lost = self._on_leave
            if self._connection.transport.is_closing():
                self._on_leave()
        else:
            self._task = asyncio.create_task(self._watch())

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.on_lost = None
        elif self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        await events.until_disconnect(self._request.receive)
        self._on_leave()

"""Tools came or went → every client that listens is told, in the way of its era.

A handshake client gets `notifications/tools/list_changed` on its own connection; a 2026-07-28 one
hears of it on the `subscriptions/listen` stream it opened.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import ServerEvent, ToolsListChanged

from mcp_tools.registry import ToolRegistry

logger = logging.getLogger(__name__)


class RegistryEvents:
    """Hands each change of a registry to listeners on their own event loop; the SDK's `SubscriptionBus`.

    A registry may be changed from any thread.
    """

    def __init__(self, registry: ToolRegistry) -> None:
        self._registry = registry

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Call `listener` on this event loop after each change, until the returned function is called."""
        loop = asyncio.get_running_loop()
        is_open = True

        def deliver() -> None:
            if is_open:
                listener(ToolsListChanged())

        def changed() -> None:
            # A loop that is closing has nobody left to tell.
            if not loop.is_closed():
                loop.call_soon_threadsafe(deliver)

        forget = self._registry.on_change(changed)

        def unsubscribe() -> None:
            nonlocal is_open
            is_open = False
            forget()

        return unsubscribe

    async def publish(self, event: ServerEvent) -> None:
        """Part of the SDK's protocol; the registry is the only source of events."""
        raise NotImplementedError(f"events come from the registry, not from {event!r}")


class Audience:
    """The handshake connections of one server run. A slow client delays only its own notification."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._waiting: dict[Connection, bool] = {}  # → whether another change came meanwhile
        self._connections: set[Connection] = set()

    def join(self, ctx: ServerRequestContext[Any, Any]) -> None:
        """Tell this connection of changes from now on, until it closes."""
        # The SDK offers no way from a request to its connection but this attribute.
        connection: Connection = ctx.session._connection
        if connection not in self._connections:
            self._connections.add(connection)
            connection.exit_stack.callback(self._connections.discard, connection)

    def changed(self, _event: ServerEvent) -> None:
        """Have everybody notified."""
        self._changed.set()

    async def serve(self) -> None:
        """Notify after each change; changes that pile up for one client become one."""
        async with anyio.create_task_group() as group:
            while True:
                await self._changed.wait()
                self._changed.clear()
                for connection in self._connections:
                    if connection in self._waiting:
                        self._waiting[connection] = True
                    else:
                        self._waiting[connection] = False
                        group.start_soon(self._notify, connection)

    async def _notify(self, connection: Connection) -> None:
        try:
            await connection.send_tool_list_changed()
            while self._waiting[connection] and connection in self._connections:
                self._waiting[connection] = False
                await connection.send_tool_list_changed()
        except Exception as error:
            logger.debug("tools/list_changed was not sent: %s", type(error).__name__)
        finally:
            del self._waiting[connection]


@asynccontextmanager
async def audience(events: RegistryEvents) -> AsyncIterator[Audience]:
    """Serve notifications for as long as the context is open; what is unsent at its end is dropped."""
    listeners = Audience()
    async with anyio.create_task_group() as group:
        group.start_soon(listeners.serve)
        unsubscribe = events.subscribe(listeners.changed)
        try:
            yield listeners
        finally:
            unsubscribe()
            group.cancel_scope.cancel()

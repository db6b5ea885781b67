"""Waking a task from any thread, in whichever event loop it waits."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio


class Wake:
    """An event of the running loop that any thread can set. Made in the task that will wait."""

    __slots__ = ("_event", "_home", "_thread")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._thread = threading.get_ident()
        self._home: Any
        try:
            self._home = asyncio.get_running_loop().call_soon_threadsafe
        except RuntimeError:
            import trio

            self._home = trio.lowlevel.current_trio_token().run_sync_soon

    async def wait(self) -> None:
        """Wait until it is set."""
        await self._event.wait()

    def set(self) -> None:
        """Let the waiter go on. Does nothing where its loop has ended."""
        if threading.get_ident() == self._thread:
            self._event.set()
            return
        try:
            self._home(self._event.set)
        except RuntimeError:  # also trio.RunFinishedError: nobody waits there any more
            return

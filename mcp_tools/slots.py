"""How many calls run at once, in each event loop."""

from __future__ import annotations

import weakref
from typing import Final

import anyio
from anyio.lowlevel import RunVar

_limiters: Final[RunVar[weakref.WeakKeyDictionary[Slots, anyio.CapacityLimiter]]] = RunVar(
    "mcp_tools_call_slots"
)


class Slots:
    """The slots of one executor.

    Args:
        most: In each event loop: one executor may serve several `asyncio.run` in turn.
    """

    def __init__(self, most: int) -> None:
        self._most = most

    async def acquire(self, owner: object) -> None:
        """Take a slot for `owner`; waits for one."""
        limiter = self._limiter()
        try:
            limiter.acquire_on_behalf_of_nowait(owner)
        except anyio.WouldBlock:
            await limiter.acquire_on_behalf_of(owner)

    def release(self, owner: object) -> None:
        """Give the slot of `owner` back."""
        self._limiter().release_on_behalf_of(owner)

    def _limiter(self) -> anyio.CapacityLimiter:
        try:
            limiters = _limiters.get()
        except LookupError:
            limiters = weakref.WeakKeyDictionary()
            _limiters.set(limiters)
        limiter = limiters.get(self)
        if limiter is None:
            limiter = limiters[self] = anyio.CapacityLimiter(self._most)
        return limiter

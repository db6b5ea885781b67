"""Politeness: how many requests a host gets at once, and how far apart."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio

from mcp_tools.web.types import Busy

AT_ONCE: Final = 4
DISTANCE_S: Final = 0.1
MAX_HOSTS: Final = 1024


@dataclass(slots=True)
class _Place:
    slots: anyio.Semaphore
    next_s: float = 0.0
    users: int = 0


class Pace:
    """Gives requests their turns, host by host.

    Args:
        at_once: Requests to one host that run together.
        distance_s: Between the beginnings of two.
        max_hosts: Remembered at most; those nobody waits for are forgotten first.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        *,
        at_once: int = AT_ONCE,
        distance_s: float = DISTANCE_S,
        max_hosts: int = MAX_HOSTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._at_once = at_once
        self._distance_s = distance_s
        self._max_hosts = max_hosts
        self._clock = clock
        self._places: OrderedDict[str, _Place] = OrderedDict()

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Cancelling while it waits gives it up.

        Raises:
            Busy: Too many hosts are asked at once.
        """
        place = self._place(host)
        place.users += 1
        try:
            async with place.slots:
                await anyio.sleep(self.claim(host, self._distance_s))
                yield
        finally:
            place.users -= 1

    def claim(self, host: str, distance_s: float, *, max_wait_s: float | None = None) -> float:
        """Take the next time for a host and return the seconds until then.

        Where they are more than `max_wait_s`, nothing is taken.
        """
        place = self._place(host)
        now = self._clock()
        start_s = max(now, place.next_s)
        if max_wait_s is None or start_s - now <= max_wait_s:
            place.next_s = start_s + distance_s
        return start_s - now

    def _place(self, host: str) -> _Place:
        place = self._places.get(host)
        if place is None:
            self._forget()
            place = self._places[host] = _Place(anyio.Semaphore(self._at_once))
        elif not place.users:
            # A semaphore belongs to the event loop it was first waited for in.
            place.slots = anyio.Semaphore(self._at_once)
        self._places.move_to_end(host)
        return place

    def _forget(self) -> None:
        if len(self._places) < self._max_hosts:
            return
        idle = next((host for host, place in self._places.items() if not place.users), None)
        if idle is None:
            raise Busy("too many sites are asked at once; try again later", retry_after_s=5)
        del self._places[idle]

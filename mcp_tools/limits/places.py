"""Places for calls that run at once, given out fairly.

Whoever waits is served in turns: each principal one call, whatever the others have waiting. So somebody who
sends fifty times as many calls has fifty times as many waiting, and no more running. Of one principal the
oldest call comes first whose places are all free.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mcp_tools.limits.wake import Wake

MAX_WAITING: Final = 5_000
MAX_WAITING_OF_ONE: Final = 500
"""Calls of one principal that wait; further ones are refused."""

Gate = tuple[object, ...]


@dataclass(slots=True, eq=False)
class _Waiter:
    gates: dict[Gate, int]
    wake: Wake
    has_place: bool = False


class Places:
    """Counts who runs and who waits, in this process. Safe to use from several threads and event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[Gate] = Counter()
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()  # whose turn it is comes first
        self._coming: dict[str, dict[str, None]] = {}
        self._total = 0

    def is_full(self, principal: str) -> bool:
        """Whether so many calls wait that another of this principal has to come back later."""
        with self._lock:
            own = len(self._waiting.get(principal, ())) + len(self._coming.get(principal, ()))
            # Where the line is full as a whole, those who made it long are refused first.
            fair = MAX_WAITING // max(1, len(self._waiting))
            return own >= MAX_WAITING_OF_ONE or (self._total >= MAX_WAITING and own >= fair)

    def expect(self, principal: str, call: str) -> None:
        """A call was let in and is on its way here."""
        with self._lock:
            self._coming.setdefault(principal, {})[call] = None

    def forget(self, principal: str, call: str) -> None:
        """It arrived, or will not come any more."""
        with self._lock:
            coming = self._coming.get(principal)
            if coming is not None:
                coming.pop(call, None)
                if not coming:
                    del self._coming[principal]

    def running(self, gate: Gate) -> int:
        """How many places of a gate are taken."""
        with self._lock:
            return self._taken[gate]

    @asynccontextmanager
    async def place(self, principal: str, gates: dict[Gate, int]) -> AsyncIterator[None]:
        """Hold a place behind each gate; waits until all are free.

        Args:
            gates: With how many places each has.
        Cancelled while it waits, it leaves the line.
        """
        if not gates:
            yield
            return
        waiter = self._enter(principal, gates)
        try:
            if waiter is not None:
                await waiter.wake.wait()
        except BaseException:
            assert waiter is not None
            self._leave_line(principal, waiter)
            raise
        try:
            yield
        finally:
            self._release(gates)

    def _enter(self, principal: str, gates: dict[Gate, int]) -> _Waiter | None:
        """Take the places, or get in line. Nobody waits for a place that is free, so nobody is overtaken."""
        with self._lock:
            if self._fit(gates):
                self._taken.update(gates.keys())
                return None
            waiter = _Waiter(gates, Wake())
            self._waiting.setdefault(principal, deque()).append(waiter)
            self._total += 1
            return waiter

    def _leave_line(self, principal: str, waiter: _Waiter) -> None:
        with self._lock:
            if not waiter.has_place:
                self._waiting[principal].remove(waiter)
                self._served(principal)
                return
        self._release(waiter.gates)  # its turn came in the same moment

    def _release(self, gates: Iterable[Gate]) -> None:
        with self._lock:
            for gate in gates:
                self._taken[gate] -= 1
                if not self._taken[gate]:
                    del self._taken[gate]
            while self._serve_one():
                pass

    def _serve_one(self) -> bool:
        for principal, line in self._waiting.items():
            # Calls with the same gates wait for the same: only the first of them is worth a look.
            seen: set[tuple[Gate, ...]] = set()
            for waiter in line:
                gates = tuple(waiter.gates)
                if gates in seen:
                    continue
                seen.add(gates)
                if not self._fit(waiter.gates):
                    continue
                line.remove(waiter)
                self._taken.update(waiter.gates.keys())
                waiter.has_place = True
                self._waiting.move_to_end(principal)
                self._served(principal)
                waiter.wake.set()
                return True
        return False

    def _served(self, principal: str) -> None:
        self._total -= 1
        if not self._waiting[principal]:
            del self._waiting[principal]

    def _fit(self, gates: dict[Gate, int]) -> bool:
        return all(self._taken[gate] < most for gate, most in gates.items())

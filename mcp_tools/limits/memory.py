"""Accounts in this process's memory: for programs that embed us, and where nothing has to last."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

from mcp_tools.limits import accounts
from mcp_tools.limits.accounts import Account
from mcp_tools.limits.clock import ReadClock, read_clock
from mcp_tools.limits.store import (
    KEEP_DAYS,
    MAX_ACCOUNTS,
    MAX_TOTALS_A_DAY,
    OTHERS,
    Grant,
    Refused,
    Settle,
    Take,
    Total,
)
from mcp_tools.types import Usage

_SWEEP_EVERY: Final = 5_000  # new accounts


class MemoryStore:
    """A store that ends with the process.

    Args:
        clock: This machine's; tests bring their own.
        max_accounts: Of sessions, and as many of others.
    """

    def __init__(self, *, clock: ReadClock = read_clock, max_accounts: int = MAX_ACCOUNTS) -> None:
        self._lock = threading.Lock()
        self._books = _Books(max_accounts)
        self._clock = clock
        self._last_s = 0.0

    async def take(self, take: Take, *, is_alone: bool = False) -> Grant | Refused:
        """See `Store.take`. Never waits."""
        with self._lock:
            return accounts.take(self._books, take, self._now())

    async def settle(self, settle: Settle, *, is_awaited: bool, is_alone: bool = False) -> None:
        """See `Store.settle`."""
        with self._lock:
            accounts.settle(self._books, settle, self._now())

    async def totals(self, days: int) -> Sequence[Total]:
        """See `Store.totals`."""
        with self._lock:
            return self._books.totals(days)

    def close(self) -> None:
        """Nothing is held open."""

    def __len__(self) -> int:
        """How many accounts there are."""
        return len(self._books)

    def _now(self) -> float:
        self._last_s = now = max(self._last_s, self._clock().ticks_s)
        self._books.sweep(now)
        return now


class _Books:
    def __init__(self, max_accounts: int) -> None:
        self._max_accounts = max_accounts
        self._rooms: tuple[dict[str, tuple[float, Account]], ...] = ({}, {})
        self._estimates: dict[str, tuple[float, float]] = {}
        self._totals: dict[str, dict[tuple[str, str], Usage]] = {}
        self._added = 0

    def __len__(self) -> int:
        return sum(map(len, self._rooms))

    def read(self, account: str) -> Account:
        for room in self._rooms:
            if account in room:
                found = room[account][1]
                return Account(
                    full_at=found.full_at,
                    slots=[slot[:] for slot in found.slots],
                    held=dict(found.held),
                )
        return Account()

    def write(self, account: str, state: Account, *, until: float, is_of_session: bool) -> None:
        room = self._rooms[is_of_session]
        self._added += account not in room
        room[account] = until, state

    def read_estimate(self, estimate: str) -> float | None:
        found = self._estimates.get(estimate)
        return None if found is None else found[1]

    def write_estimate(self, estimate: str, value: float, *, until: float) -> None:
        self._estimates[estimate] = until, value

    def add_total(self, total: Total) -> None:
        day = self._totals.setdefault(total.day, {})
        while len(self._totals) > KEEP_DAYS:
            del self._totals[min(self._totals)]
        pair = total.principal, total.tool
        if pair not in day and len(day) >= MAX_TOTALS_A_DAY:
            pair = OTHERS, OTHERS
        day[pair] = day.get(pair, Usage()) + total.usage

    def totals(self, days: int) -> list[Total]:
        return [
            Total(day=day, principal=principal, tool=tool, usage=usage)
            for day in sorted(self._totals)[-days:]
            for (principal, tool), usage in sorted(self._totals[day].items())
        ]

    def sweep(self, now: float) -> None:
        if self._added < _SWEEP_EVERY:
            return
        self._added = 0
        for room in self._rooms:
            _forget(room, now, self._max_accounts)
        _forget(self._estimates, now, self._max_accounts)


def _forget(room: dict[str, tuple[float, Any]], now: float, most: int) -> None:
    for key in [key for key, (until, _) in room.items() if until <= now]:
        del room[key]
    if len(room) > most:
        for key in sorted(room, key=lambda key: room[key][0])[: len(room) - most]:
            del room[key]

"""What a limiter asks of the place where its counts are kept, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from mcp_tools.types import Usage

MAX_ACCOUNTS: Final = 50_000
"""Accounts kept of sessions, and as many of all others; beyond it those that end soonest are forgotten."""
MAX_TOTALS_A_DAY: Final = 10_000
"""Pairs of principal and tool with a total of their own each day; others are added up as `OTHERS`."""
KEEP_DAYS: Final = 92
"""How many days of totals are kept."""
OTHERS: Final = "(others)"


class Kind(StrEnum):
    """How an account is kept."""

    BUCKET = "bucket"  # of calls: holds `capacity`, refills in `window_s`
    WINDOW = "window"  # of calls: `capacity` in any stretch of `window_s`
    BUDGET = "budget"  # of what is known only once a call has ended: reserved, then settled


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one call wants of one account.

    Args:
        account: Its key. Nobody can tell from it whose it is.
        kind: How it is kept.
        capacity: What it holds.
        window_s: A window's or budget's length; the seconds in which an empty bucket is full again.
        take: Calls to count: 1, or 0 for one that was counted before. Of a budget what the call will use
            at least.
        estimate: Of a budget: under which key is kept how much such calls use. Empty for others.
        is_of_session: It is one of many that come and go.
    """

    account: str
    kind: Kind
    capacity: float
    window_s: float
    take: float
    estimate: str = ""
    is_of_session: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """What one call wants, all of it or nothing.

    Args:
        call: Names it, for `Settle`.
        asks: Of each account at most one.
        lasts_s: Seconds after which nobody settles it any more: it is then taken to have used what it
            reserved, as far as that was known.
    """

    call: str
    asks: tuple[Ask, ...]
    lasts_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """It was taken.

    Args:
        left: What the accounts hold after it, in the order of the asks.
        reserved: What was reserved of each; 0 of those that are not budgets.
    """

    left: tuple[float, ...]
    reserved: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Nothing was taken.

    Args:
        index: Of the ask that has to wait longest.
        wait_s: Seconds until it may be granted; 0 where that depends on calls that still run.
        left: What the accounts hold, in the order of the asks.
    """

    index: int
    wait_s: float
    left: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """The end of a call.

    Args:
        call: As in its `Take`.
        asks: Its asks of budgets.
        used: What it used of each; None: it never ran, and its reservations are given back.
        total: What to add to the totals, and for whom; None: nothing.
    """

    call: str
    asks: tuple[Ask, ...]
    used: tuple[float, ...] | None
    total: Total | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What the calls of one tool by one principal used on one day (UTC, `2026-11-22`).

    Its texts can be encoded as UTF-8.
    """

    day: str
    principal: str
    tool: str
    usage: Usage


class Store(Protocol):
    """Where counts are kept. Safe to use from several threads and event loops."""

    async def take(self, take: Take, *, is_alone: bool = False) -> Grant | Refused:
        """Take what a call wants, all or nothing, before anybody else takes of it.

        Args:
            is_alone: No other call is under way that could suffer if the caller's thread stands still now.
        Raises:
            LimitsUnavailable: That cannot be done; nothing was taken.
        Cancelled, it leaves nothing reserved.
        """
        ...

    async def settle(self, settle: Settle, *, is_awaited: bool, is_alone: bool = False) -> None:
        """Note a call's end, before any later `take` of this process.

        Args:
            is_awaited: Return only once it is noted. Else at once: it is noted a moment later.
            is_alone: As in `take`.
        Raises:
            LimitsUnavailable: It could not be noted yet. The reservation stays counted, and what there is
                to note is kept for when the store is back, of up to 10,000 calls.
        """
        ...

    async def totals(self, days: int) -> Sequence[Total]:
        """Return the totals of the last days that have any, the oldest first.

        Raises:
            LimitsUnavailable: They cannot be read.
        """
        ...

    def close(self) -> None:
        """Note what is still to be noted, and let go. Can be called again."""
        ...

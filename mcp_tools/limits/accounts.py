"""The arithmetic of limits, whatever keeps the accounts. `take.lua` and `settle.lua` do the same in Redis.

A window is counted in 60 slots, and what one slot counted leaves as a whole, once all of it is out of the
window: so there is never more in any stretch of that length, at the price of waiting up to a sixtieth
longer. A bucket is one number, the time at which it is full again (the generic cell rate algorithm).

Of a budget only what calls used is known, and only afterwards. A call that runs holds back what such calls
used at most lately, and may run beside others while all of that fits. If it does not fit, it may still
run alone, as long as anything is left. So calls that run together are not over by more than one of them,
unless they use more than any before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from mcp_tools.limits.store import Ask, Grant, Kind, Refused, Settle, Take, Total

SLOTS: Final = 60
KEEP_ESTIMATE_S: Final = 30 * 86_400.0
FORGET: Final = 0.01
"""By this part of the difference an estimate falls with each call that used less; it rises at once."""
_ROUNDING: Final = 1e-9


@dataclass(slots=True)
class Account:
    """What is kept of one account.

    Args:
        full_at: Of a bucket: when it is full.
        slots: Of a window: its slots with what they counted, the oldest first.
        held: Of a budget: call → what it holds back, what it is known to use, and until when.
    """

    full_at: float = 0.0
    slots: list[list[float]] = field(default_factory=list)
    held: dict[str, list[float]] = field(default_factory=dict)


class Books(Protocol):
    """Accounts by key. Nobody else reads or writes while one `take` or `settle` does."""

    def read(self, account: str) -> Account:
        """Return a copy of the account; an empty one where there is none."""
        ...

    def write(self, account: str, state: Account, *, until: float, is_of_session: bool) -> None:
        """Keep the account; after `until` it is as good as empty."""
        ...

    def read_estimate(self, estimate: str) -> float | None: ...

    def write_estimate(self, estimate: str, value: float, *, until: float) -> None: ...

    def add_total(self, total: Total) -> None: ...


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Whether one ask fits: if not, after how many seconds; 0: when others have ended."""

    fits: bool
    wait_s: float
    left: float
    hold: float = 0.0
    known: float = 0.0


def take(books: Books, wanted: Take, now: float) -> Grant | Refused:
    """Take all that a call wants, or nothing.

    Args:
        now: Seconds on the clock of the books, which never goes back.
    """
    accounts = [_current(books.read(ask.account), ask, now) for ask in wanted.asks]
    verdicts = [_judge(account, ask, books, now) for account, ask in zip(accounts, wanted.asks, strict=True)]
    refused = [(-v.wait_s, index) for index, v in enumerate(verdicts) if not v.fits]
    if refused:
        wait_s, index = min(refused)
        return Refused(index=index, wait_s=-wait_s, left=tuple(max(0.0, v.left) for v in verdicts))
    left = []
    for account, ask, verdict in zip(accounts, wanted.asks, verdicts, strict=True):
        left.append(_apply(account, ask, verdict, wanted, now))
        if ask.take or verdict.hold:
            _write(books, account, ask, now)
    return Grant(left=tuple(left), reserved=tuple(v.hold for v in verdicts))


def settle(books: Books, ended: Settle, now: float) -> None:
    """Replace what a call reserved by what it used."""
    for index, ask in enumerate(ended.asks):
        account = _current(books.read(ask.account), ask, now)
        held = account.held.pop(ended.call, None)
        used = 0.0 if ended.used is None else max(0.0, ended.used[index])
        if held is not None or used:
            _add(account, ask, used, now)
            _write(books, account, ask, now)
        if ended.used is not None:
            before = books.read_estimate(ask.estimate)
            value = used if before is None or used > before else before - (before - used) * FORGET
            if value != before:
                books.write_estimate(ask.estimate, value, until=now + KEEP_ESTIMATE_S)
    if ended.total is not None:
        books.add_total(ended.total)


def _current(account: Account, ask: Ask, now: float) -> Account:
    """The account without what time took away."""
    if ask.kind is Kind.BUCKET:
        account.full_at = max(account.full_at, now)
        return account
    oldest = now // (ask.window_s / SLOTS) - SLOTS
    account.slots = [slot for slot in account.slots if slot[0] >= oldest]
    for call, (_, known, until) in list(account.held.items()):
        if until <= now:
            del account.held[call]
            _add(account, ask, known, now)
    return account


def _judge(account: Account, ask: Ask, books: Books, now: float) -> _Verdict:
    if ask.kind is Kind.BUCKET:
        each_s = ask.window_s / ask.capacity
        lacking_s = account.full_at - now
        over_s = lacking_s + ask.take * each_s - ask.window_s
        left = (ask.window_s - lacking_s) / each_s
        return _Verdict(over_s <= _ROUNDING * ask.window_s, max(0.0, over_s), left)
    used = sum(amount for _, amount in account.slots)
    most = ask.capacity * (1 + _ROUNDING)
    if ask.kind is Kind.WINDOW:
        if used + ask.take <= most:
            return _Verdict(True, 0.0, ask.capacity - used)
        return _Verdict(False, _wait_s(account, ask, used + ask.take - most, now), ask.capacity - used)
    held = sum(amount for amount, _, _ in account.held.values())
    left = ask.capacity - used - held
    if used + ask.take > most or used >= ask.capacity * (1 - _ROUNDING):
        too_much = max(used + ask.take - most, used - ask.capacity * (1 - 2 * _ROUNDING))
        return _Verdict(False, _wait_s(account, ask, too_much, now), left)
    estimate = books.read_estimate(ask.estimate)
    # Of a tool that never ran and has no price nobody knows what it uses: it could be all there is.
    first = ask.take or ask.capacity - used
    likely = max(ask.take, first if estimate is None else estimate)
    known = max(ask.take, estimate or 0.0)
    alone = not account.held and used + ask.take <= most
    if likely == 0 or alone or used + held + likely <= most:
        return _Verdict(True, 0.0, left, hold=max(ask.take, min(likely, ask.capacity - used)), known=known)
    return _Verdict(False, 0.0, left)


def _apply(account: Account, ask: Ask, verdict: _Verdict, wanted: Take, now: float) -> float:
    match ask.kind:
        case Kind.BUCKET:
            account.full_at += ask.take * ask.window_s / ask.capacity
            return max(0.0, verdict.left - ask.take)
        case Kind.WINDOW:
            _add(account, ask, ask.take, now)
            return max(0.0, verdict.left - ask.take)
        case Kind.BUDGET:
            if verdict.hold:
                account.held[wanted.call] = [verdict.hold, verdict.known, now + wanted.lasts_s]
            return max(0.0, verdict.left - verdict.hold)


def _add(account: Account, ask: Ask, amount: float, now: float) -> None:
    if not amount:
        return
    slot = now // (ask.window_s / SLOTS)
    if account.slots and account.slots[-1][0] == slot:
        account.slots[-1][1] += amount
    else:
        account.slots.append([slot, amount])


def _wait_s(account: Account, ask: Ask, too_much: float, now: float) -> float:
    """Seconds until slots with so much together have left the window."""
    for slot, amount in account.slots:
        too_much -= amount
        if too_much <= 0:
            return max(0.0, (slot + SLOTS + 1) * (ask.window_s / SLOTS) - now)
    return ask.window_s


def _write(books: Books, account: Account, ask: Ask, now: float) -> None:
    if ask.kind is Kind.BUCKET:
        until = account.full_at
    else:
        until = now + ask.window_s * (1 + 1 / SLOTS)
        until = max([until, *(each + ask.window_s for _, _, each in account.held.values())])
    books.write(ask.account, account, until=until, is_of_session=ask.is_of_session)

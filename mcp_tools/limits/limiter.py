"""The limiter: which limits a call falls under, what it takes of them, and what a model is told."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

import anyio

from mcp_tools.limits.memory import MemoryStore
from mcp_tools.limits.places import Gate, Places
from mcp_tools.limits.rules import Limit, parse_limit, strictest
from mcp_tools.limits.store import Ask, Grant, Kind, Refused, Settle, Store, Take, Total
from mcp_tools.output.plain import encodable
from mcp_tools.types import CallContext, LimitRefusal, Tool, Usage

logger = logging.getLogger(__name__)

WAIT_FOR_OTHERS_S: Final = 2.0
"""So long a call waits for what calls that still run hold back of a budget, before it is refused."""
_LOOK_S: Final = (0.01, 0.2)
_UNKNOWN: Final = "(unknown)"
_MARGIN_S: Final = 300.0
_LONGEST_S: Final = 86_400.0
_MAX_REMEMBERED: Final = 1_000


def build_limiter(rules: Sequence[str | Limit], store: Store | None = None) -> StoreLimiter:
    """Make a limiter that holds all of these limits.

    Args:
        rules: Texts as `parse_limit` reads them, or limits.
        store: Where they are counted, closed with the limiter. None: in this process's memory. Places (`at
            once`) are always counted in this process.
    Raises:
        ConfigError: A text cannot be read.
    """
    limits = [rule if isinstance(rule, Limit) else parse_limit(rule) for rule in rules]
    return StoreLimiter(limits, store if store is not None else MemoryStore())


def open_store(place: str) -> Store:
    """Open where limits are counted.

    Args:
        place: The absolute path of a file, made if there is none; or a Redis server's URL (`redis://`,
            `rediss://` over TLS, `unix://`), reached only when the first call comes.
    Raises:
        ConfigError: The file cannot be opened, or the URL cannot be read.
    """
    if "://" in place:
        from mcp_tools.limits.redis_server import open_redis

        return open_redis(place)
    from mcp_tools.limits.sqlite import open_sqlite

    return open_sqlite(place)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The limits that a call falls under, and what it asks of them."""

    limits: tuple[Limit, ...]
    names: tuple[str, ...]
    asks: tuple[Ask, ...]


@dataclass(slots=True, eq=False)
class _Lease:
    limiter: StoreLimiter
    call: str
    tool_name: str
    principal: str
    wanted: _Wanted
    reserved: tuple[float, ...]
    left: Mapping[str, float]
    is_open: bool = field(default=True)

    async def settle(self, usage: Usage) -> None:
        total = Total(day=_today(), principal=encodable(self.principal), tool=self.tool_name, usage=usage)
        await self._end(usage, total)

    async def cancel(self) -> None:
        await self._end(None, None)

    async def _end(self, usage: Usage | None, total: Total | None) -> None:
        if not self.is_open:
            raise RuntimeError("this lease was settled or cancelled before")
        self.is_open = False
        left = dict(self.left)
        asks, amounts = [], []
        wanted = self.wanted
        for limit, name, ask, held in zip(
            wanted.limits, wanted.names, wanted.asks, self.reserved, strict=True
        ):
            amount = 0.0 if usage is None else limit.part_of(usage)
            if ask.kind is Kind.BUDGET and (held or amount):
                left[name] = max(0.0, left[name] + held - amount)
                asks.append(ask)
                amounts.append(amount)
        self.left = left
        await self.limiter.ended(
            self.principal,
            Settle(
                call=self.call,
                asks=tuple(asks),
                used=None if usage is None else tuple(amounts),
                total=total,
            ),
        )


@dataclass(slots=True, eq=False)
class _Holding:
    """Places that a call has."""

    limiter: StoreLimiter
    gates: frozenset[Gate]
    is_open: bool = True


_holdings: ContextVar[tuple[_Holding, ...]] = ContextVar("mcp_tools_holdings", default=())


class StoreLimiter:
    """Holds limits for all executors of a process; see `Limiter` in `types`.

    Args:
        limits: All must have room for a call. Of those that count the same only the lowest matter.
        store: Closed with the limiter.
    """

    def __init__(self, limits: Sequence[Limit], store: Store) -> None:
        self.limits = strictest(limits)
        self.store = store
        self._rates = tuple(limit for limit in self.limits if limit.window_s is not None)
        self._at_once = tuple(limit for limit in self.limits if limit.window_s is None)
        self._places = Places()
        self._remembered: dict[tuple[object, ...], _Wanted] = {}
        self._under_way: set[str] = set()

    async def admit(self, tool: Tool | None, context: CallContext, *, again: bool) -> _Lease | LimitRefusal:
        """See `Limiter.admit`."""
        principal = context.principal
        if tool is not None and self._at_once and self._places.is_full(principal):
            message = "too many calls wait for their turn already; wait for their results before sending more"
            return LimitRefusal(message=message, retry_after_s=1.0, left={})
        wanted = self._wanted(tool, context, again)
        call = f"{context.call_id}.{time.monotonic_ns():x}"
        grant = await self._take(Take(call=call, asks=wanted.asks, lasts_s=_lasts_s(tool)))
        left = dict(zip(wanted.names, grant.left, strict=True))
        if isinstance(grant, Refused):
            return _refusal(wanted.limits[grant.index], grant, left)
        if self._at_once and tool is not None:
            self._places.expect(principal, context.call_id)
        self._under_way.add(call)
        return _Lease(
            limiter=self,
            call=call,
            tool_name=_UNKNOWN if tool is None else tool.name,
            principal=principal,
            wanted=wanted,
            reserved=grant.reserved,
            left=left,
        )

    @asynccontextmanager
    async def slot(self, tool: Tool, context: CallContext) -> AsyncIterator[None]:
        """See `Limiter.slot`."""
        wanted: dict[Gate, int] = {
            (limit.counts, *_apart(limit, tool, context)): int(limit.amount)
            for limit in self._at_once
            if limit.covers(tool.name)
        }
        self._places.forget(context.principal, context.call_id)
        # What a tool calls shares the places that the tool has: its own could be the last one.
        outer = [holding for holding in _holdings.get() if holding.limiter is self and holding.is_open]
        gates = {g: most for g, most in wanted.items() if not any(g in holding.gates for holding in outer)}
        async with self._places.place(context.principal, gates):
            holding = _Holding(self, frozenset(gates))
            mark = _holdings.set((*outer, holding))
            try:
                yield
            finally:
                holding.is_open = False  # tasks that the tool left behind hold nothing any more
                _holdings.reset(mark)

    async def totals(self, days: int) -> Sequence[Total]:
        """Return what calls used on the last days that have any, the oldest first; see `Store.totals`."""
        return await self.store.totals(days)

    def close(self) -> None:
        """Note what is still to be noted, and let go of the store. Can be called again."""
        self.store.close()

    async def ended(self, principal: str, settle: Settle) -> None:
        """Note the end of a call that was admitted.

        Raises:
            LimitsUnavailable: See `Store.settle`.
        """
        self._places.forget(principal, settle.call.rpartition(".")[0])
        self._under_way.discard(settle.call)
        if settle.asks or settle.total is not None:
            # What used up some of a budget is noted before its answer goes out, so that no crash forgets it.
            await self.store.settle(settle, is_awaited=any(settle.used or ()), is_alone=not self._under_way)

    async def _take(self, take: Take) -> Grant | Refused:
        if not take.asks:
            return Grant(left=(), reserved=())
        deadline = time.monotonic() + WAIT_FOR_OTHERS_S
        look_s, longest_s = _LOOK_S
        while True:
            found = await self.store.take(take, is_alone=not self._under_way)
            if isinstance(found, Grant) or found.wait_s > 0 or time.monotonic() >= deadline:
                return found
            await anyio.sleep(look_s)
            look_s = min(look_s * 1.5, longest_s)

    def _wanted(self, tool: Tool | None, context: CallContext, again: bool) -> _Wanted:
        what = None if tool is None else (tool.name, tool.price_usd)
        key = (what, context.principal, context.session_id, again)
        found = self._remembered.get(key)  # most calls are like one before
        if found is None:
            limits = tuple(limit for limit in self._rates if limit.covers(tool.name if tool else None))
            if tool is None:  # it cannot run, so it will use nothing
                limits = tuple(limit for limit in limits if limit.unit == "calls")
            names = tuple(limit.name for limit in limits)
            found = _Wanted(limits, names, tuple(_ask(limit, tool, context, again) for limit in limits))
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = found
        return found


def _ask(limit: Limit, tool: Tool | None, context: CallContext, again: bool) -> Ask:
    assert limit.window_s is not None
    account = _key(limit.counts, *_apart(limit, tool, context))
    is_of_session = "session" in limit.per
    if limit.unit == "calls":
        capacity, window_s, kind = limit.amount, limit.window_s, Kind.WINDOW
        if limit.burst is not None:
            capacity, kind = limit.burst, Kind.BUCKET
            window_s = limit.window_s * limit.burst / limit.amount
        return Ask(
            account=account,
            kind=kind,
            capacity=capacity,
            window_s=window_s,
            take=0.0 if again else 1.0,
            is_of_session=is_of_session,
        )
    assert tool is not None
    return Ask(
        account=account,
        kind=Kind.BUDGET,
        capacity=limit.amount,
        window_s=limit.window_s,
        take=tool.price_usd if limit.unit == "usd" else 0.0,
        estimate=_key("estimate", tool.name, limit.unit),
        is_of_session=is_of_session,
    )


def _apart(limit: Limit, tool: Tool | None, context: CallContext) -> tuple[str | None, ...]:
    """Whose account it is."""
    parts: list[str | None] = []
    if limit.per & {"principal", "session"}:
        parts.append(context.principal)  # somebody else's session of the same name is another one
    if "session" in limit.per:
        parts.append(context.session_id)
    if "tool" in limit.per:
        parts.append(None if tool is None else tool.name)
    return tuple(parts)


def _key(*parts: object) -> str:
    # Names can be long, odd or private; a digest is none of these.
    return hashlib.blake2b(repr(parts).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _lasts_s(tool: Tool | None) -> float:
    """Beside the tool's own time a call waits for its turn."""
    own_s = 0.0 if tool is None else tool.timeout_seconds * (1 + tool.retries)
    return min(_LONGEST_S, own_s + _MARGIN_S) if math.isfinite(own_s) else _LONGEST_S


def _refusal(limit: Limit, refused: Refused, left: Mapping[str, float]) -> LimitRefusal:
    amount = max(0.0, left[limit.name])
    of = f"{amount:.6g} of {limit.amount if limit.burst is None else limit.burst:.15g} {limit.unit}"
    if refused.wait_s <= 0:
        message = (
            f"the limit '{limit.name}' has no room for this call beside those that still run: {of} left; "
            "try again once they have ended"
        )
        return LimitRefusal(message=message, retry_after_s=1.0, left=left)
    wait_s = math.ceil(refused.wait_s * 1000 + 1) / 1000
    message = f"the limit '{limit.name}' is used up: {of} left; try again in {_spoken(wait_s)}, not earlier"
    return LimitRefusal(message=message, retry_after_s=wait_s, left=left)


def _spoken(seconds: float) -> str:
    if seconds < 120:
        return f"{max(0.1, math.ceil(seconds * 10) / 10):g} seconds"
    if seconds < 7_200:
        return f"{math.ceil(seconds / 60)} minutes"
    return f"{math.ceil(seconds / 3_600)} hours"


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())

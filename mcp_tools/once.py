"""Effects once: a call that comes again joins the one that runs, or gets the result of the one that just did.

A client that heard no answer sends its call again. The caller's idempotency key says that it means the same
effect; without one, every call is an effect of its own.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import anyio

from mcp_tools.confirmation.ledger import Binding
from mcp_tools.inflight import InFlight
from mcp_tools.types import ErrorCode, ExecutionResult

KEEP_S: Final = 300.0
"""How long a call is remembered after its end; retries of clients come within seconds."""
MAX_KEPT_PER_PRINCIPAL: Final = 100
"""Results. Of those that ended before them only the names are remembered, so that nothing is repeated."""
MAX_NAMES_PER_PRINCIPAL: Final = 10_000
MAX_NAMES: Final = 100_000
"""Of all principals. Beyond it, whoever holds most has the oldest of its calls forgotten for newcomers."""

_LOOK_S = 0.02


class Effect:
    """A call that others may join."""

    __slots__ = ("ended_at", "name", "principal", "result")

    def __init__(self, name: bytes, principal: str) -> None:
        self.name = name
        self.principal = principal
        self.result: ExecutionResult | None = None
        self.ended_at: float | None = None

    async def join(self) -> ExecutionResult | None:
        """Wait for the call's end, in whichever event loop it runs; None where its result is kept no more."""
        while self.ended_at is None:  # noqa: ASYNC110 - an event would belong to one loop
            await anyio.sleep(_LOOK_S)
        return self.result


class _TooMany(Exception):
    """There are more keys than are remembered."""


class _Ended:
    """The calls that ended, the oldest first, and who holds how many. Every step takes constant time."""

    def __init__(self) -> None:
        self._all: OrderedDict[bytes, Effect] = OrderedDict()
        self._of: dict[str, deque[Effect]] = {}
        self._holders: dict[int, dict[str, None]] = {}  # of so many calls
        self.most = 0
        """How many the principal has that has most."""

    def __len__(self) -> int:
        return len(self._all)

    def get(self, name: bytes) -> Effect | None:
        return self._all.get(name)

    def oldest(self) -> Effect | None:
        return next(iter(self._all.values()), None)

    def oldest_of_most(self) -> Effect:
        """Return the oldest call of a principal that has most; there must be one."""
        holders = self._holders[self.most]
        principal, _ = holders.popitem()  # the last one: finding the first takes longer
        holders[principal] = None
        return self._of[principal][0]

    def add(self, effect: Effect) -> None:
        self._all[effect.name] = effect
        own = self._of.setdefault(effect.principal, deque())
        own.append(effect)
        if len(own) > MAX_KEPT_PER_PRINCIPAL:
            own[-1 - MAX_KEPT_PER_PRINCIPAL].result = None
        self._move(effect.principal, len(own) - 1, len(own))

    def remove(self, effect: Effect) -> None:
        """Forget a call that is the oldest of its principal."""
        del self._all[effect.name]
        own = self._of[effect.principal]
        own.popleft()
        self._move(effect.principal, len(own) + 1, len(own))
        if not own:
            del self._of[effect.principal]

    def _move(self, principal: str, before: int, after: int) -> None:
        if before:
            holders = self._holders[before]
            del holders[principal]
            if not holders:
                del self._holders[before]
        if after:
            self._holders.setdefault(after, {})[principal] = None
        if after > self.most or self.most not in self._holders:
            self.most = after


class Once:
    """The calls that can be joined: those that run, and the last ones that ended.

    Args:
        clock: Monotonic seconds.

    A call is remembered for 300 s after its end, 10,000 of each principal and 100,000 of all; of each
    principal the last 100 with their results. Who has its 10,000 is refused more. Where all have 100,000, the
    oldest call is forgotten of whoever holds most, for anybody who holds less. Kept in memory: a new process
    knows none of them. Safe to use from threads.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[bytes, Effect] = {}
        self._ended = _Ended()
        self._names: Counter[str] = Counter()  # of each principal, in both

    async def join(self, call: InFlight) -> ExecutionResult | None:
        """Return the result of the call of the same name, or None when this one is to have its effect.

        Then the caller must `end` it, however it ends.
        """
        name = _name_of(call)
        while name is not None:
            try:
                effect, is_new = self._begin(name, call.context.principal)
            except _TooMany:
                message = (
                    "nothing was run: too many calls with idempotency keys in five minutes; try again later"
                )
                return replace(call.end(ErrorCode.RATE_LIMITED, message), retry_after_s=KEEP_S)
            if is_new:
                call.effect = name
                return None
            earlier = await effect.join()
            if earlier is None or earlier.usage is not None:
                return _joined(call, earlier)
            # One that never ran, such as a question, is nobody else's result.
        return None

    def _begin(self, name: bytes, principal: str) -> tuple[Effect, bool]:
        """Return the call of that name, and whether it is new."""
        with self._lock:
            self._forget_old()
            found = self._running.get(name) or self._ended.get(name)
            if found is not None:
                return found, False
            held = self._names.get(principal, 0)
            if held >= MAX_NAMES_PER_PRINCIPAL:
                raise _TooMany
            if len(self._running) + len(self._ended) >= MAX_NAMES:
                if held >= self._ended.most:
                    raise _TooMany
                self._forget(self._ended.oldest_of_most())
            effect = self._running[name] = Effect(name, principal)
            self._names[principal] += 1
            return effect, True

    def end(self, call: InFlight, result: ExecutionResult) -> None:
        """A call has ended: whoever joined it gets its result. Does nothing for one that nobody could join.

        One that never ran is not remembered: who sends it again means to begin anew.
        """
        name, call.effect = call.effect, None
        if name is None:
            return
        with self._lock:
            effect = self._running.pop(name)
            effect.result, effect.ended_at = result, self._clock()
            if result.usage is None:
                self._forget_name(effect)
                return
            self._ended.add(effect)

    def _forget_old(self) -> None:
        until = self._clock() - KEEP_S
        while (effect := self._ended.oldest()) is not None:
            if effect.ended_at is None or effect.ended_at > until:
                return
            self._forget(effect)

    def _forget(self, effect: Effect) -> None:
        self._ended.remove(effect)
        self._forget_name(effect)

    def _forget_name(self, effect: Effect) -> None:
        self._names[effect.principal] -= 1
        if not self._names[effect.principal]:
            del self._names[effect.principal]


def _name_of(call: InFlight) -> bytes | None:
    """Return what names the effect of a call, or None where nothing does.

    The same key for another tool, principal or other arguments is another effect.
    """
    if call.context.idempotency_key is None:
        return None
    return Binding(
        tool_name=call.found.tool.name,
        registration=call.found.id,
        arguments=call.sent,
        principal=call.context.principal,
        session_id=None,  # a client that lost its connection comes back over another
        state=call.context.idempotency_key,
    ).digest()


def _joined(call: InFlight, earlier: ExecutionResult | None) -> ExecutionResult:
    if earlier is None or earlier.error_code is ErrorCode.CANCELLED:
        what = "ended, and its result is kept no more" if earlier is None else "was withdrawn while it ran"
        message = (
            f"nothing was repeated: a call with this idempotency key {what}. See what it did; to do it once "
            "more, use another key"
        )
        return call.end(ErrorCode.TOOL_ERROR, message)
    return replace(
        earlier, joined=True, call_id=call.context.call_id, duration_ms=call.elapsed_ms(), usage=None
    )

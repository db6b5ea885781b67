"""Effects once: a call that comes again joins the one that runs, or gets the result of the one that just did.

A client that heard no answer sends its call again. The caller's idempotency key says that it means the same
effect; without one, every call is an effect of its own.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import anyio

from mcp_tools.confirmation.ledger import Binding
from mcp_tools.types import CallContext, ErrorCode, ExecutionResult

KEEP_S: Final = 300.0
"""How long a call can be joined after its end; retries of clients come within seconds."""
MAX_KEPT_PER_PRINCIPAL: Final = 100
MAX_KEPT: Final = 1_000

_LOOK_S = 0.02


class Effect:
    """A call that others may join."""

    __slots__ = ("ended_at", "principal", "result")

    def __init__(self, principal: str) -> None:
        self.principal = principal
        self.result: ExecutionResult | None = None
        self.ended_at: float | None = None

    async def join(self) -> ExecutionResult:
        """Wait for the call's result, in whichever event loop it runs."""
        while self.result is None:  # noqa: ASYNC110 - an event would belong to one loop
            await anyio.sleep(_LOOK_S)
        return self.result


class Once:
    """The calls that can be joined: those that run, and the last ones that ended.

    Args:
        clock: Monotonic seconds.

    After its end a call is kept for 300 s, of each principal the last 100 and of all the last 1,000. Safe to
    use from threads.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._effects: OrderedDict[bytes, Effect] = OrderedDict()

    def begin(self, name: bytes, principal: str) -> tuple[Effect, bool]:
        """Return the call of that name, and whether it is new: then the caller must `end` it."""
        with self._lock:
            self._forget_old()
            found = self._effects.get(name)
            if found is not None:
                return found, False
            effect = self._effects[name] = Effect(principal)
            return effect, True

    def end(self, name: bytes, result: ExecutionResult) -> None:
        """The call of that name has ended: whoever joined gets its result.

        One that never ran, or that its caller withdrew, is not kept: who sends it again means to begin anew.
        """
        with self._lock:
            effect = self._effects.pop(name)
            effect.result, effect.ended_at = result, self._clock()
            if result.usage is None or result.error_code is ErrorCode.CANCELLED:
                return
            self._effects[name] = effect
            ended = [each for each, other in self._effects.items() if other.ended_at is not None]
            same = [each for each in ended if self._effects[each].principal == effect.principal]
            for each in same[:-MAX_KEPT_PER_PRINCIPAL] or ended[:-MAX_KEPT]:
                del self._effects[each]

    def _forget_old(self) -> None:
        # Those that ended move to the end of the line, so the oldest of them comes first among them.
        oldest = self._clock() - KEEP_S
        for name, effect in list(self._effects.items()):
            if effect.ended_at is None:
                continue
            if effect.ended_at > oldest:
                return
            del self._effects[name]


def name_of(tool_name: str, registration: str, arguments: Any, context: CallContext) -> bytes | None:
    """Return what names the effect of a call, or None where nothing does.

    The same key for another tool, principal or other arguments is another effect.
    """
    if context.idempotency_key is None:
        return None
    return Binding(
        tool_name=tool_name,
        registration=registration,
        arguments=arguments,
        principal=context.principal,
        session_id=None,  # a client that lost its connection comes back over another
        state=context.idempotency_key,
    ).digest()

"""Whether a call may run now, as far as rates, budgets and places go, and what it used once it has ended."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from mcp_tools import outages
from mcp_tools.inflight import InFlight
from mcp_tools.types import ExecutionResult, Lease, Limiter, LimitRefusal, LimitsUnavailable, Usage

logger = logging.getLogger(__name__)


class Admission:
    """The limiter, from a call's point of view.

    Args:
        limiter: None: every call is admitted, and what it used is only told.
    """

    def __init__(self, limiter: Limiter | None) -> None:
        self._limiter = limiter

    async def refusal(self, call: InFlight, *, again: bool) -> LimitRefusal | LimitsUnavailable | None:
        """Take what the call needs; returns why it may not run, or None.

        Args:
            again: It was admitted before, and comes again with a person's answer.
        """
        if self._limiter is None:
            return None
        tool = None if call.entry is None else call.entry.tool
        try:
            found = await self._limiter.admit(tool, call.context, again=again)
        except LimitsUnavailable as error:
            outages.note("limits")
            logger.error("call %s cannot be counted: %s", call.context.call_id, error)  # noqa: TRY400
            return error
        if isinstance(found, LimitRefusal):
            return found
        call.lease = found
        return None

    @asynccontextmanager
    async def slot(self, call: InFlight) -> AsyncIterator[None]:
        """A place among the calls that run at once; waits for it."""
        if self._limiter is None:
            yield
            return
        async with self._limiter.slot(call.found.tool, call.context):
            yield

    async def settle(self, call: InFlight, result: ExecutionResult) -> ExecutionResult:
        """Count what the call used instead of what it reserved; returns the result with both."""
        used = None
        if call.has_run:
            used = call.context.meter.total + Usage(calls=1, cost_usd=call.found.tool.price_usd)
        lease, call.lease = call.lease, None
        left = None
        if lease is not None:
            left = await self._settled(lease, used, call)
        if used is None and left is None:
            return result
        return replace(result, usage=used, limits_left=result.limits_left if left is None else left)

    async def _settled(self, lease: Lease, used: Usage | None, call: InFlight) -> Mapping[str, float] | None:
        """Settle or cancel a lease; returns what is left, or None if that could not be noted."""
        call_id = call.context.call_id
        try:
            if used is not None:
                await lease.settle(used)
            else:
                await lease.cancel()
        except LimitsUnavailable as error:  # what it reserved stays counted
            outages.note("limits")
            logger.error("what call %s used cannot be counted: %s", call_id, error)  # noqa: TRY400
        except Exception:  # a limiter with a bug in it; the call has ended, and is answered
            outages.note("limits")
            logger.exception("what call %s used cannot be counted", call_id)
        else:
            return lease.left
        return None

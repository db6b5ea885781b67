"""Who is told of a call: the auditor, whose word is waited for, and observers and hooks, whose is not."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import anyio

from mcp_tools import outages
from mcp_tools.calling import CancelWatch, detached, maybe_await
from mcp_tools.inflight import InFlight
from mcp_tools.types import (
    Auditor,
    AuditUnavailable,
    CallStarted,
    ErrorCode,
    ExecutionResult,
    ExecutionStatus,
    Hook,
    Observer,
)

logger = logging.getLogger(__name__)

HOOK_TIMEOUT_S: Final = 5.0
"""An asynchronous hook that takes longer is given up, so that it cannot hold an answer back."""


class Recording:
    """Tells everybody who is to know of calls.

    Args:
        auditor: Keeps durable records. None: there are none.
        read_only_without_audit: Calls of tools that are marked read-only run also where their record cannot
            be written.
        observers: Told of beginnings and ends, synchronously.
        hooks: Told of ends; may be asynchronous.
    """

    def __init__(
        self,
        *,
        auditor: Auditor | None,
        read_only_without_audit: bool,
        observers: Iterable[Observer],
        hooks: list[Hook],
    ) -> None:
        self._auditor = auditor
        self._read_only_without_audit = read_only_without_audit
        self._observers = tuple(observers)
        self._hooks = hooks

    async def begin(self, call: InFlight) -> str | None:
        """Note that a call is about to run. Returns why it must not, or None.

        Cancelled meanwhile, a record may be left of a call that never ran; its end follows.
        """
        if self._auditor is None and not self._observers:
            return None
        started = _started(call)
        if self._auditor is not None:
            try:
                await self._auditor.begin(started)
            except AuditUnavailable as error:
                outages.note("audit")
                logger.error("call %s cannot be recorded: %s", started.call_id, error)  # noqa: TRY400
                if not (self._read_only_without_audit and started.tool.annotations.read_only_hint):
                    return f"nothing was run, because it could not be recorded: {error}"
        for observer in self._observers:
            try:
                observer.call_started(started)
            except Exception:
                logger.exception("observer %r failed; call %s is unaffected", observer, started.call_id)
        return None

    async def end(self, call: InFlight, result: ExecutionResult) -> ExecutionResult:
        """Note how a call ended, and return what its caller is told."""
        if self._auditor is not None:
            # Shielded: a call that ended is recorded even while its caller goes away.
            with anyio.CancelScope(shield=True):
                result = await self._note_end(self._auditor, call, result)
        await self._tell_hooks(result)  # first, so that what they log is inside a span that ends next
        for observer in self._observers:
            try:
                observer.call_finished(result)
            except Exception:
                logger.exception("observer %r failed; call %s is unaffected", observer, result.call_id)
        return result

    async def _note_end(self, auditor: Auditor, call: InFlight, result: ExecutionResult) -> ExecutionResult:
        try:
            await auditor.end(result)
        except AuditUnavailable as error:
            outages.note("audit")
            logger.error("the end of call %s cannot be recorded: %s", result.call_id, error)  # noqa: TRY400
            if self._read_only_without_audit and call.is_read_only:
                return result
            # What it did is in its first record; that it did it is not acknowledged.
            what = "it ran, but how it ended" if call.has_run else "nothing was run, and that"
            return replace(
                result,
                status=ExecutionStatus.ERROR,
                error_code=ErrorCode.UNAVAILABLE,
                error=f"{what} could not be recorded: {error}",
                result=None,
                structured=None,
                confirmation=None,
                output_id=None,
            )
        return result

    async def _tell_hooks(self, result: ExecutionResult) -> None:
        if not self._hooks:
            return
        watch = CancelWatch()
        # Hooks get a record of their own: what they do to it changes neither the answer nor the caller's.
        record = replace(
            result,
            result=detached(result.result),
            parameters={name: detached(value) for name, value in result.parameters.items()},
        )
        for hook in tuple(self._hooks):
            try:
                told = hook(record)
                if told is not None:
                    # Shielded: a call that ended is recorded even while its caller goes away.
                    with anyio.move_on_after(HOOK_TIMEOUT_S, shield=True) as scope:
                        await maybe_await(told)
                    if scope.cancelled_caught:
                        logger.error("hook %r took over %g s and was given up", hook, HOOK_TIMEOUT_S)
            except BaseException as error:
                if isinstance(error, anyio.get_cancelled_exc_class()) and watch.is_cancelled():
                    raise
                logger.exception("hook %r failed; call %s is unaffected", hook, result.call_id)


def _started(call: InFlight) -> CallStarted:
    context = call.context
    return CallStarted(
        time_unix_ns=time.time_ns(),
        monotonic_ns=time.monotonic_ns(),
        call_id=context.call_id,
        tool=call.found.tool,
        parameters=call.valid,
        ruling=call.ruling,
        principal=context.principal,
        session_id=context.session_id,
        client=context.client,
        transport=context.transport,
        confirmation_id=call.confirmation_id,
        channel=call.channel,
    )

"""The only door to a tool: one pipeline that every call goes through, from wherever it came.

    find → validate → decide → confirm → slot → deadline → run → shape → hooks

Everything before "slot" is harmless when repeated, because a call that needs a yes comes back as a
question and is executed again from the top with the answer. However a call ends, it ends in one
`ExecutionResult`, and every hook is told of it.
"""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final

import anyio
from anyio.lowlevel import RunVar

from mcp_tools.calling import Callee, CancelWatch, Raised, Returned, detached, maybe_await
from mcp_tools.confirmation.ledger import Binding, ConfirmationLedger, Verdict
from mcp_tools.errors import InvalidArguments, ToolError
from mcp_tools.inflight import InFlight, as_context
from mcp_tools.output.masking import describe_exception
from mcp_tools.output.plain import safe_str, strings_in
from mcp_tools.registry import RegisteredTool, ToolRegistry
from mcp_tools.types import (
    CallContext,
    Confirmation,
    Decision,
    ErrorCode,
    ExecutionResult,
    ExecutionStatus,
    Hook,
    Policy,
    Preview,
    Ruling,
    Tool,
    ToolOutput,
    default_ruling,
)
from mcp_tools.validation import closest_name

logger = logging.getLogger(__name__)

MAX_CONCURRENT_CALLS: Final = 64
MAX_NAME_CHARS: Final = 200
"""Of a tool name in a record; real ones have at most 64, but what is asked for can be anything."""

HOOK_TIMEOUT_S: Final = 5.0
"""An asynchronous hook that takes longer is given up, so that it cannot hold an answer back."""

_slots: RunVar[weakref.WeakKeyDictionary[ToolExecutor, anyio.CapacityLimiter]] = RunVar(
    "mcp_tools_call_slots"
)
# A tool that calls another tool must not wait for a slot: its own could be the last one. So what a tool
# calls, from its own task or from others it starts, counts with the call that it belongs to.
_outer_call: ContextVar[InFlight | None] = ContextVar("mcp_tools_outer_call", default=None)


class ToolExecutor:
    """Runs calls of registered tools.

    Args:
        registry: Where tools are found; it may change while we run.
        policy: Rules that come before a tool's own `requires_confirmation`. None: no rules.
        confirmations: Holds the open questions. None: a new, private one.
        hooks: Told of each finished call, in this order.
        max_concurrent_calls: Calls that run at once; more wait their turn.
        hide_exceptions: A tool's exception reaches the model as a call id instead of its text.
        clock: Monotonic seconds, for durations.
    """

    def __init__(
        self,
        registry: ToolRegistry,
        *,
        policy: Policy | None = None,
        confirmations: ConfirmationLedger | None = None,
        hooks: Iterable[Hook] = (),
        max_concurrent_calls: int = MAX_CONCURRENT_CALLS,
        hide_exceptions: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.confirmations = confirmations if confirmations is not None else ConfirmationLedger()
        self.execution_hooks: list[Hook] = list(hooks)
        self._policy = policy
        self._max_concurrent_calls = max_concurrent_calls
        self._hide_exceptions = hide_exceptions
        self._clock = clock

    def add_hook(self, function: Hook) -> None:
        """Tell `function` (sync or async) of every finished call, before `execute` returns.

        What it raises is logged and changes nothing. A synchronous hook runs on the event loop, so
        it must be quick; an asynchronous one is given 5 seconds.
        """
        self.execution_hooks.append(function)

    def visible_tools(self) -> list[Tool]:
        """Return the tools that may be listed: all but those that a rule denies outright."""
        tools = self.registry.list_tools()
        if self._policy is None:
            return tools
        return [tool for tool in tools if not self._policy.hides(tool)]

    async def execute(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        context: CallContext | Mapping[str, Any] | None = None,
    ) -> ExecutionResult:
        """Run one call through the pipeline.

        Args:
            tool_name: As registered.
            parameters: The arguments as sent; None means none.
            context: Who calls. A mapping such as `{"confirmed": True}` is for embedding programs
                that obtained a yes themselves; its keys are fields of `CallContext`, and others are
                handed on as `context.extra`.
        Returns:
            What became of the call. A call that needs a person's yes has not run: its
            `confirmation` is the question, and the answer comes as `context.approval`.
        Raises:
            TypeError: `context["confirmed"]` is neither True nor False; nothing was run.
        Cancelling it cancels the tool, records the call as cancelled, and then goes on, also when the
        tool turned the cancellation into an exception of its own.
        """
        call = self._call(tool_name, parameters, context)
        try:
            result = await self._pipeline(call)
            if result.error_code in _TOOL_FAILED:
                await call.watch.reraise()
        except anyio.get_cancelled_exc_class():
            call.context.cancelled.set()
            await self._tell(self._end(call, ErrorCode.CANCELLED, "the call was withdrawn"))
            raise
        except Exception:
            logger.exception(
                "call %s of %s failed inside mcp_tools", call.context.call_id, safe_str(tool_name)
            )
            message = f"internal error; the server's log has it under call id {call.context.call_id}"
            result = self._end(call, ErrorCode.INTERNAL_ERROR, message)
        await self._tell(result)
        return result

    async def needs_confirmation(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        context: CallContext | Mapping[str, Any] | None = None,
    ) -> bool:
        """Say whether this is a call that a person is asked about, whether or not they were already.

        It is not run and hooks are not told. A call that would be refused anyway needs nobody; neither
        does one that breaks on our side, which `execute` will report.
        """
        call = self._call(tool_name, parameters, context)
        try:
            return await self._prepare(call) is None and call.decided.decision is Decision.ASK
        except Exception:
            logger.debug("call of %s cannot be decided", call.tool_name, exc_info=True)
            return False

    async def record_refusal(
        self, result: ExecutionResult, *, code: ErrorCode, message: str, channel: str | None
    ) -> ExecutionResult:
        """Close the question that `result` carries with a no, and tell the hooks.

        Args:
            result: What `execute` returned, with its `confirmation`.
            code: `DECLINED`, `DENIED`, `CANCELLED` or `CONFIRMATION_INVALID`.
            message: For the model: who refused and whether asking again can help.
            channel: How the no came in; None if nobody could be asked.
        Returns:
            The result to give the caller. The question can no longer be answered.
        """
        if result.confirmation is not None:
            self.confirmations.discard(result.confirmation.id)
        refused = replace(
            result,
            status=_STATUS[code],
            error=message,
            error_code=code,
            confirmation=None,
            channel=channel,
        )
        await self._tell(refused)
        return refused

    # --- the pipeline, in order ---------------------------------------------------------------

    async def _pipeline(self, call: InFlight) -> ExecutionResult:
        refused = await self._prepare(call) or await self._confirm(call)
        if refused is not None:
            return refused
        outer = _outer_call.get()
        if outer is not None and outer.holds_slot_of is self:
            return await self._run(call)
        limiter = self._limiter()
        try:
            limiter.acquire_on_behalf_of_nowait(call)
        except anyio.WouldBlock:
            await limiter.acquire_on_behalf_of(call)
        call.holds_slot_of = self
        mark = _outer_call.set(call)
        try:
            return await self._run(call)
        finally:
            _outer_call.reset(mark)
            call.holds_slot_of = None
            limiter.release_on_behalf_of(call)

    async def _prepare(self, call: InFlight) -> ExecutionResult | None:
        """Find, validate, decide. Returns a refusal, or None when the call may go on."""
        entry = self.registry.find(call.tool_name) if isinstance(call.tool_name, str) else None
        if entry is None or (self._policy is not None and self._policy.hides(entry.tool)):
            return self._end(call, ErrorCode.UNKNOWN_TOOL, self._unknown_tool(call.tool_name))
        call.entry = entry
        if not isinstance(call.sent, Mapping):
            message = f"arguments must be an object, not {type(call.sent).__name__}"
            return self._end(call, ErrorCode.INVALID_ARGUMENTS, message)
        try:
            call.arguments = entry.validate(call.sent)
        except InvalidArguments as error:
            return self._end(call, ErrorCode.INVALID_ARGUMENTS, str(error))
        except BaseException as error:  # a validator of the tool's own, with a bug in it
            return self._end(call, ErrorCode.TOOL_EXCEPTION, self._describe(call, entry, error))
        return await self._decide(call, entry)

    async def _decide(self, call: InFlight, entry: RegisteredTool) -> ExecutionResult | None:
        ruling = by_default = default_ruling(entry.tool)
        if self._policy is not None:
            call.context = replace(call.context, screen=self._policy.screen(entry.tool))
            if entry.subjects is None:
                subjects: Any = strings_in(call.valid)
            else:
                subjects = await self._ask_tool(call, entry, entry.subjects)
                if isinstance(subjects, ExecutionResult):
                    return subjects
            ruling = self._policy.decide(entry.tool, subjects, call.context)
        call.ruling = ruling
        if ruling.decision is Decision.DENY:
            message = f"{entry.tool.name} is denied by {ruling.reason}; retrying will not help"
            return self._end(call, ErrorCode.DENIED, message)
        if entry.must_ask is not None and (ruling.decision is Decision.ALLOW or ruling == by_default):
            # Also where the tool asks anyway: then this is the better reason to show a person.
            why = await self._ask_tool(call, entry, entry.must_ask)
            if isinstance(why, ExecutionResult):
                return why
            if why:
                call.ruling = Ruling(decision=Decision.ASK, reason=str(why))
        return None

    async def _confirm(self, call: InFlight) -> ExecutionResult | None:
        """Returns the question or a refusal, or None when the call may go on."""
        if call.decided.decision is not Decision.ASK:
            return None
        entry, context = call.found, call.context
        if context.confirmed is True:
            call.channel = "embedding program"
            call.context = replace(context, asked=True, approved_state=None)
            return None
        preview: Any = Preview(text="")
        if entry.preview is not None:
            preview = await self._ask_tool(call, entry, entry.preview)
            if isinstance(preview, ExecutionResult):
                if call.decided == default_ruling(entry.tool):
                    return preview
                # A person was to be asked first, by rule: until then not even the reason may tell what
                # the target holds, or a call that fails on purpose reads it piece by piece.
                message = (
                    f"this call cannot be done as it is; why is not told before a person was asked, which "
                    f"{call.decided.reason} demands"
                )
                return replace(preview, error=message)
            if preview is None:
                if call.decided == default_ruling(entry.tool):
                    return None
                preview = Preview(text="this call says that it changes nothing")
        binding = Binding(
            tool_name=entry.tool.name,
            registration=entry.id,
            arguments=call.sent,
            principal=context.principal,
            session_id=context.session_id,
            state=preview.state,
        )
        if context.approval is None:
            message = f"a person must confirm this call first ({call.decided.reason}); nothing was done"
            return self._question(call, ErrorCode.CONFIRMATION_REQUIRED, message, preview, binding)
        verdict = self.confirmations.redeem(context.approval.confirmation_id, binding)
        call.channel = context.approval.channel
        if verdict is Verdict.ACCEPTED:
            call.context = replace(context, asked=True, approved_state=preview.state)
            return None
        message = f"the confirmation does not hold: it is {verdict.value}; nothing was done"
        if verdict is Verdict.UNKNOWN:
            return self._end(call, ErrorCode.CONFIRMATION_INVALID, message)
        return self._question(call, ErrorCode.CONFIRMATION_INVALID, message, preview, binding)

    async def _run(self, call: InFlight) -> ExecutionResult:
        entry = call.found
        outcome = await self._within_deadline(call, entry, entry.run)
        if isinstance(outcome, ExecutionResult):
            return outcome
        value, structured = outcome.value, None
        if entry.shape_output is not None:
            promised = value.structured if isinstance(value, ToolOutput) else value
            structured, problem = entry.shape_output(promised)
            if problem is not None:
                name, call_id = entry.tool.name, call.context.call_id
                logger.error("call %s: result of %s does not fit: %s", call_id, name, problem)
                message = f"{name} ran, but its result does not fit its output schema: {problem}"
                return self._end(call, ErrorCode.TOOL_EXCEPTION, message)
        return replace(self._result(call, ExecutionStatus.SUCCESS, result=value), structured=structured)

    # --- helpers ------------------------------------------------------------------------------

    async def _within_deadline(
        self, call: InFlight, entry: RegisteredTool, function: Callee
    ) -> Returned | ExecutionResult:
        """Call the tool or one of its helpers; whatever it raises becomes a result."""
        limit_s = entry.tool.timeout_seconds
        outcome: Returned | Raised | None = None
        with anyio.move_on_after(None if limit_s == math.inf else limit_s) as scope:
            outcome = await function.call(call.valid, call.context)
        if isinstance(outcome, Raised) and scope.cancel_called:
            outcome = None  # what the tool made of our deadline
        match outcome:
            case Returned():
                return outcome
            case Raised(error=ToolError() as error):
                return self._end(call, ErrorCode.TOOL_ERROR, safe_str(error))
            case Raised(error=error):
                return self._end(call, ErrorCode.TOOL_EXCEPTION, self._describe(call, entry, error))
        call.context.cancelled.set()
        message = f"{entry.tool.name} was stopped after {limit_s:g} s"
        if not function.is_async:
            message = (
                f"no answer from {entry.tool.name} after {limit_s:g} s; its function may still be running"
            )
        return self._end(call, ErrorCode.TIMED_OUT, message)

    async def _ask_tool(self, call: InFlight, entry: RegisteredTool, helper: Callee) -> Any:
        outcome = await self._within_deadline(call, entry, helper)
        return outcome.value if isinstance(outcome, Returned) else outcome

    def _question(
        self, call: InFlight, code: ErrorCode, message: str, preview: Preview, binding: Binding
    ) -> ExecutionResult:
        tool = call.found.tool
        question = Confirmation(
            id=self.confirmations.issue(binding),
            tool_name=tool.name,
            title=tool.title or tool.name,
            parameters=call.valid,
            preview=preview.text,
            reason=call.decided.reason,
            principal=call.context.principal,
            expires_in_s=self.confirmations.ttl_s,
            can_be_allowed=call.decided == default_ruling(tool),
            left_out=preview.left_out,
            shows=preview.shows,
        )
        return replace(self._end(call, code, message), confirmation=question)

    def _describe(self, call: InFlight, entry: RegisteredTool, error: BaseException) -> str:
        logger.warning("call %s: %s raised %s", call.context.call_id, entry.tool.name, type(error).__name__)
        logger.debug("call %s: traceback", call.context.call_id, exc_info=error)
        if self._hide_exceptions:
            return f"the tool failed; the server's log has it under call id {call.context.call_id}"
        return describe_exception(error)

    def _unknown_tool(self, name: object) -> str:
        known = [tool.name for tool in self.visible_tools()]
        close = closest_name(name, known)
        shown = safe_str(name)[:100]
        if close is not None:
            return f"there is no tool {shown!r}; did you mean {close!r}?"
        return f"there is no tool {shown!r}; " + (
            f"there are: {', '.join(known[:50])}" if known else "none is registered"
        )

    def _end(self, call: InFlight, code: ErrorCode, message: str) -> ExecutionResult:
        return self._result(call, _STATUS[code], error=message, error_code=code)

    def _result(
        self,
        call: InFlight,
        status: ExecutionStatus,
        *,
        result: Any = None,
        error: str | None = None,
        error_code: ErrorCode | None = None,
    ) -> ExecutionResult:
        context = call.context
        return ExecutionResult(
            status=status,
            result=result,
            error=error,
            duration_ms=(self._clock() - call.started_at) * 1000,
            tool_name=safe_str(call.tool_name)[:MAX_NAME_CHARS],
            parameters=call.recorded_arguments(),
            call_id=context.call_id,
            error_code=error_code,
            ruling=call.ruling,
            principal=context.principal,
            session_id=context.session_id,
            client=context.client,
            transport=context.transport,
            channel=call.channel,
        )

    async def _tell(self, result: ExecutionResult) -> None:
        if not self.execution_hooks:
            return
        watch = CancelWatch()
        # Hooks get a record of their own: what they do to it changes neither the answer nor the caller's.
        record = replace(
            result,
            result=detached(result.result),
            parameters={name: detached(value) for name, value in result.parameters.items()},
        )
        for hook in tuple(self.execution_hooks):
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

    def _call(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None,
        context: CallContext | Mapping[str, Any] | None,
    ) -> InFlight:
        # Our own copy: the caller may go on changing what it passed.
        sent = {} if parameters is None else parameters
        sent = {name: detached(value) for name, value in sent.items()} if isinstance(sent, Mapping) else sent
        return InFlight(tool_name, sent, as_context(context), self._clock())

    def _limiter(self) -> anyio.CapacityLimiter:
        # Per event loop: one executor may serve several `asyncio.run` in turn.
        try:
            limiters = _slots.get()
        except LookupError:
            limiters = weakref.WeakKeyDictionary()
            _slots.set(limiters)
        limiter = limiters.get(self)
        if limiter is None:
            limiter = limiters[self] = anyio.CapacityLimiter(self._max_concurrent_calls)
        return limiter


_TOOL_FAILED: Final = (ErrorCode.TOOL_ERROR, ErrorCode.TOOL_EXCEPTION)

_STATUS: Final = {
    ErrorCode.UNKNOWN_TOOL: ExecutionStatus.ERROR,
    ErrorCode.INVALID_ARGUMENTS: ExecutionStatus.VALIDATION_ERROR,
    ErrorCode.DENIED: ExecutionStatus.PERMISSION_DENIED,
    ErrorCode.DECLINED: ExecutionStatus.PERMISSION_DENIED,
    ErrorCode.CONFIRMATION_REQUIRED: ExecutionStatus.PERMISSION_DENIED,
    ErrorCode.CONFIRMATION_INVALID: ExecutionStatus.PERMISSION_DENIED,
    ErrorCode.TIMED_OUT: ExecutionStatus.TIMEOUT,
    ErrorCode.TOOL_ERROR: ExecutionStatus.ERROR,
    ErrorCode.TOOL_EXCEPTION: ExecutionStatus.ERROR,
    ErrorCode.INTERNAL_ERROR: ExecutionStatus.ERROR,
    ErrorCode.CANCELLED: ExecutionStatus.CANCELLED,
    ErrorCode.RATE_LIMITED: ExecutionStatus.RATE_LIMITED,
}

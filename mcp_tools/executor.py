"""The only door to a tool: one pipeline that every call goes through, from wherever it came.

    find → rates and budgets → validate → decide → confirm → slot → note the intent → deadline → run →
    shape → fit → settle → note the outcome → observers and hooks

Everything before "note the intent" is harmless when repeated, because a call that needs a yes comes back
as a question and is executed again from the top with the answer. However a call ends, it ends in one
`ExecutionResult`, and everybody who is to know is told of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final

import anyio

from mcp_tools.admission import Admission
from mcp_tools.calling import Callee, Raised, Returned, Runnable, attempts, detached
from mcp_tools.confirmation.ledger import Binding, ConfirmationLedger, Verdict
from mcp_tools.errors import InvalidArguments, ToolError
from mcp_tools.inflight import MAX_NAME_CHARS, STATUS, InFlight, as_context
from mcp_tools.once import Once
from mcp_tools.output.masking import describe_exception
from mcp_tools.output.plain import safe_str, strings_in
from mcp_tools.recording import Recording
from mcp_tools.registry import RegisteredTool, ToolRegistry
from mcp_tools.slots import Slots
from mcp_tools.types import (
    Auditor,
    CallContext,
    Confirmation,
    Decision,
    ErrorCode,
    ExecutionResult,
    Hook,
    Limiter,
    LimitRefusal,
    LimitsUnavailable,
    Observer,
    Policy,
    Preview,
    ResultFitter,
    Ruling,
    Tool,
    ToolOutput,
    default_ruling,
)
from mcp_tools.validation import closest_name

logger = logging.getLogger(__name__)

MAX_CONCURRENT_CALLS: Final = 64
# A tool that calls another tool must not wait for a slot: its own could be the last one. So what a tool
# calls, from its own task or from others it starts, counts with the call that it belongs to.
_outer_call: ContextVar[InFlight | None] = ContextVar("mcp_tools_outer_call", default=None)


class ToolExecutor:
    """Runs calls of registered tools.

    Args:
        registry: Where tools are found; it may change while we run.
        policy: Rules that come before a tool's own `requires_confirmation`. None: no rules.
        confirmations: Holds the open questions. None: a new, private one.
        limiter: Rates, concurrency and budgets. None: only `max_concurrent_calls`.
        auditor: Keeps a durable record of each call, from before it runs. None: there is none.
        read_only_without_audit: Tools that are marked read-only run also where that record cannot be written.
        fitter: Makes results fit what their reader can take. None: they stay as they are.
        observers: Told of beginnings and ends.
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
        limiter: Limiter | None = None,
        auditor: Auditor | None = None,
        read_only_without_audit: bool = False,
        fitter: ResultFitter | None = None,
        observers: Iterable[Observer] = (),
        hooks: Iterable[Hook] = (),
        max_concurrent_calls: int = MAX_CONCURRENT_CALLS,
        hide_exceptions: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.confirmations = confirmations if confirmations is not None else ConfirmationLedger()
        self.execution_hooks: list[Hook] = list(hooks)
        self._policy = policy
        self._admission = Admission(limiter)
        self._fitter = fitter
        self._recording = Recording(
            auditor=auditor,
            read_only_without_audit=read_only_without_audit,
            observers=observers,
            hooks=self.execution_hooks,
        )
        self._once = Once(clock=clock)
        self._slots = Slots(max_concurrent_calls)
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
            await self._finish(call, call.end(ErrorCode.CANCELLED, "the call was withdrawn"))
            raise
        except Exception:
            logger.exception(
                "call %s of %s failed inside mcp_tools", call.context.call_id, safe_str(tool_name)
            )
            message = f"internal error; the server's log has it under call id {call.context.call_id}"
            result = call.end(ErrorCode.INTERNAL_ERROR, message)
        return await self._finish(call, result)

    async def refuse(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None,
        context: CallContext | Mapping[str, Any] | None,
        message: str,
    ) -> ExecutionResult:
        """Record a call that is malformed around its arguments, so that nothing can be done with it.

        It counts against limits as others do.

        Args:
            message: For the model: what is wrong.
        """
        call = self._call(tool_name, parameters, context)
        call.entry = self._entry(call)
        try:
            refused = await self._admit(call)
        except anyio.get_cancelled_exc_class():
            await self._finish(call, call.end(ErrorCode.CANCELLED, "the call was withdrawn"))
            raise
        return await self._finish(call, refused or call.end(ErrorCode.INVALID_ARGUMENTS, message))

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
            call.entry = self._entry(call)
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
        asked = result.confirmation.id if result.confirmation is not None else result.confirmation_id
        refused = replace(
            result,
            status=STATUS[code],
            error=message,
            error_code=code,
            confirmation=None,
            confirmation_id=asked,
            channel=channel,
        )
        return await self._recording.end(self._call(result.tool_name, None, None), refused)

    # --- the pipeline, in order ---------------------------------------------------------------

    async def _pipeline(self, call: InFlight) -> ExecutionResult:
        call.entry = self._entry(call)
        if (refused := await self._admit(call) or await self._prepare(call)) is not None:
            return refused
        if (result := await self._once.join(call) or await self._confirm(call)) is not None:
            return result
        outer = _outer_call.get()
        is_inner = outer is not None and outer.holds_slot_of is self
        async with self._admission.slot(call):
            return await (self._run(call) if is_inner else self._run_in_slot(call))

    async def _run_in_slot(self, call: InFlight) -> ExecutionResult:
        await self._slots.acquire(call)
        call.holds_slot_of = self
        mark = _outer_call.set(call)
        try:
            return await self._run(call)
        finally:
            _outer_call.reset(mark)
            call.holds_slot_of = None
            self._slots.release(call)

    def _entry(self, call: InFlight) -> RegisteredTool | None:
        """Return the tool, or None where there is none for this caller."""
        entry = self.registry.find(call.tool_name) if isinstance(call.tool_name, str) else None
        hidden = entry is not None and self._policy is not None and self._policy.hides(entry.tool)
        return None if hidden else entry

    async def _admit(self, call: InFlight) -> ExecutionResult | None:
        """Rates and budgets. Returns a refusal, or None when the call may go on."""
        # What came with a person's answer was counted when it was asked about; made-up answers were not.
        approval = call.context.approval
        again = (
            approval is not None
            and call.entry is not None
            and self.confirmations.asks_about(approval.confirmation_id, _binding(call, None))
        )
        match await self._admission.refusal(call, again=again):
            case LimitRefusal() as refusal:
                refused = call.end(ErrorCode.RATE_LIMITED, refusal.message)
                return replace(refused, retry_after_s=refusal.retry_after_s, limits_left=refusal.left)
            case LimitsUnavailable() as error:
                message = f"nothing was run, because its limits cannot be looked up: {error}"
                return call.end(ErrorCode.UNAVAILABLE, message)
        return None

    async def _prepare(self, call: InFlight) -> ExecutionResult | None:
        """Validate and decide. Returns a refusal, or None when the call may go on."""
        entry = call.entry
        if entry is None:
            return call.end(ErrorCode.UNKNOWN_TOOL, self._unknown_tool(call.tool_name))
        if not isinstance(call.sent, Mapping):
            message = f"arguments must be an object, not {type(call.sent).__name__}"
            return call.end(ErrorCode.INVALID_ARGUMENTS, message)
        try:
            call.arguments = entry.validate(call.sent)
        except InvalidArguments as error:
            return call.end(ErrorCode.INVALID_ARGUMENTS, str(error))
        except BaseException as error:  # a validator of the tool's own, with a bug in it
            return call.end(ErrorCode.TOOL_EXCEPTION, self._describe(call, entry, error))
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
            return call.end(ErrorCode.DENIED, message)
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
                preview = Preview(text="this call says that it changes nothing", is_needed=False)
            if not preview.is_needed and call.decided == default_ruling(entry.tool):
                return None
        binding = _binding(call, preview.state)
        if context.approval is None:
            message = f"a person must confirm this call first ({call.decided.reason}); nothing was done"
            return self._question(call, ErrorCode.CONFIRMATION_REQUIRED, message, preview, binding)
        verdict = self.confirmations.redeem(context.approval.confirmation_id, binding)
        call.confirmation_id = safe_str(context.approval.confirmation_id)[:MAX_NAME_CHARS]
        call.channel = context.approval.channel
        if verdict is Verdict.ACCEPTED:
            call.context = replace(context, asked=True, approved_state=preview.state)
            return None
        message = f"the confirmation does not hold: it is {verdict.value}; nothing was done"
        if verdict is Verdict.UNKNOWN:
            return call.end(ErrorCode.CONFIRMATION_INVALID, message)
        return self._question(call, ErrorCode.CONFIRMATION_INVALID, message, preview, binding)

    async def _run(self, call: InFlight) -> ExecutionResult:
        entry = call.found
        if (problem := await self._recording.begin(call)) is not None:
            return call.end(ErrorCode.UNAVAILABLE, problem)
        call.has_run = True
        outcome = await self._within_deadline(call, entry, entry.run, retries=entry.tool.retries)
        if isinstance(outcome, ExecutionResult):
            return await self._fit(call, outcome)
        value, structured = outcome.value, None
        if entry.shape_output is not None:
            promised = value.structured if isinstance(value, ToolOutput) else value
            structured, problem = entry.shape_output(promised)
            if problem is not None:
                name, call_id = entry.tool.name, call.context.call_id
                logger.error("call %s: result of %s does not fit: %s", call_id, name, problem)
                message = f"{name} ran, but its result does not fit its output schema: {problem}"
                return call.end(ErrorCode.TOOL_EXCEPTION, message)
        return await self._fit(call, call.succeed(value, structured))

    async def _fit(self, call: InFlight, result: ExecutionResult) -> ExecutionResult:
        if self._fitter is None:
            return result
        return await self._fitter.fit(result, call.found.tool, call.context)

    async def _finish(self, call: InFlight, result: ExecutionResult) -> ExecutionResult:
        """Settle what was reserved, tell everybody, and let those who joined go on."""
        try:
            try:
                # Shielded: nobody else gives back what this call holds.
                with anyio.CancelScope(shield=True):
                    result = await self._admission.settle(call, result)
            except anyio.get_cancelled_exc_class():
                # `Task.cancel` of asyncio goes through shields. What ended is recorded all the same.
                await self._recording.end(call, result)
                raise
            result = await self._recording.end(call, result)
        finally:  # or whoever joined would wait for ever
            self._once.end(call, result)
        return result

    # --- helpers ------------------------------------------------------------------------------

    async def _within_deadline(
        self, call: InFlight, entry: RegisteredTool, function: Runnable, *, retries: int = 0
    ) -> Returned | ExecutionResult:
        """Call the tool or one of its helpers; whatever it raises becomes a result."""
        limit_s = entry.tool.timeout_seconds
        outcome: Returned | Raised | None = None
        with anyio.move_on_after(None if limit_s == math.inf else limit_s) as scope:
            outcome = await attempts(function, call.valid, call.context, retries)
        if isinstance(outcome, Raised) and scope.cancel_called:
            outcome = None  # what the tool made of our deadline
        match outcome:
            case Returned():
                return outcome
            case Raised(error=ToolError() as error):
                failed = call.end(ErrorCode.TOOL_ERROR, safe_str(error))
                return replace(failed, retry_after_s=error.retry_after_s)
            case Raised(error=error):
                return call.end(ErrorCode.TOOL_EXCEPTION, self._describe(call, entry, error))
        call.context.cancelled.set()
        message = f"{entry.tool.name} was stopped after {limit_s:g} s"
        if not function.is_async:
            message = (
                f"no answer from {entry.tool.name} after {limit_s:g} s; its function may still be running"
            )
        return call.end(ErrorCode.TIMED_OUT, message)

    async def _ask_tool(self, call: InFlight, entry: RegisteredTool, helper: Callee) -> Any:
        outcome = await self._within_deadline(call, entry, helper)
        return outcome.value if isinstance(outcome, Returned) else outcome

    def _question(
        self, call: InFlight, code: ErrorCode, message: str, preview: Preview, binding: Binding
    ) -> ExecutionResult:
        tool = call.found.tool
        call.confirmation_id = self.confirmations.issue(binding)
        question = Confirmation(
            id=call.confirmation_id,
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
        return replace(call.end(code, message), confirmation=question)

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

    def _call(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None,
        context: CallContext | Mapping[str, Any] | None,
    ) -> InFlight:
        # Our own copy: the caller may go on changing what it passed.
        sent = {} if parameters is None else parameters
        sent = {name: detached(value) for name, value in sent.items()} if isinstance(sent, Mapping) else sent
        return InFlight(tool_name, sent, as_context(context), self._clock)


def _binding(call: InFlight, state: str | None) -> Binding:
    return Binding(
        tool_name=call.found.tool.name,
        registration=call.found.id,
        arguments=call.sent,
        principal=call.context.principal,
        session_id=call.context.session_id,
        state=state,
    )


_TOOL_FAILED: Final = (ErrorCode.TOOL_ERROR, ErrorCode.TOOL_EXCEPTION)

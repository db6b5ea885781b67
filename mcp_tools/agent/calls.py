"""Run the tool calls of one turn, and give each of them an answer, however the turn ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import anyio

from mcp_tools.agent.types import BadCall, Confirm, OnCall, OnProgress, OnResult, Turn
from mcp_tools.batch import AsyncToolExecutor, StreamingToolExecutor
from mcp_tools.calling import tell
from mcp_tools.executor import ToolExecutor
from mcp_tools.inflight import as_context
from mcp_tools.types import (
    CallContext,
    ErrorCode,
    ExecutionResult,
    ExecutionStatus,
    ToolCall,
    new_call_id,
)

logger = logging.getLogger(__name__)

TRANSPORT: Final = "agent"
TELL_S: Final = 5.0
RUN: Final = "the run"
"""What a callback that fails does not stop."""
CUT: Final = (
    "not run: your answer was cut off for want of tokens, so this call may be incomplete. Send it again, and "
    "ask for less in one answer"
)

MAX_CALLS: Final = 128
"""Of one turn."""
TOO_MANY: Final = f"not run: at most {MAX_CALLS} calls of one answer are. Send it again if it is still needed"


class Tools(Protocol):
    """What the agent needs of a `ToolSystem`: the door to the tools, and how many run at once."""

    @property
    def executor(self) -> ToolExecutor: ...

    @property
    def async_executor(self) -> AsyncToolExecutor: ...


class Calls:
    """The tool calls of one turn and what became of them so far.

    Args:
        turn: Whose calls.
        tools: What runs them.
        confirm: Puts a question to a person. None: as the batch executor of `tools` does.
        on_call, on_result, on_progress: Told of each call as it starts and ends, and of how far it is.
        context: Shared by all calls.
    """

    def __init__(
        self,
        turn: Turn,
        tools: Tools,
        *,
        confirm: Confirm | None,
        on_call: OnCall | None,
        on_result: OnResult | None,
        on_progress: OnProgress | None,
        context: CallContext | Mapping[str, Any] | None,
    ) -> None:
        self._turn = turn
        self._tools = tools
        # The one that `execute_calls` would use.
        self._confirm = confirm if confirm is not None else tools.async_executor.confirm
        self._on_call = on_call
        self._on_result = on_result
        self._on_progress = on_progress
        self._context = agent_context(context)
        self._started: dict[str, float] = {}
        self._is_over_full = False
        self.results: dict[str, ExecutionResult] = {}

    async def run(self, is_enough: Callable[[ExecutionResult], bool] | None = None) -> None:
        """Run them: safe ones at once, those that need a yes one after another.

        Args:
            is_enough: Asked of each result. Once it says so, what runs is cancelled and nothing more starts.

        Cancelling it cancels what runs; `results` then holds what had ended, and `withdraw` answers the rest.
        """
        if self._turn.is_cut:
            for call in self._turn.calls:
                self.results.setdefault(call.id, self._not_run(call, CUT, ErrorCode.INVALID_ARGUMENTS))
            return
        good: dict[str, ToolCall] = {}
        for call in self._turn.calls:
            if call.id in good or call.id in self.results:
                # An answer belongs to an id, so the second of two calls cannot have one of its own.
                logger.warning("a model gave two calls of one turn the same id; only the first is run")
            elif len(good) + len(self.results) >= MAX_CALLS:
                await self._refuse_rest(call)
            elif isinstance(call, BadCall):
                await self._refuse(call)
            else:
                good[call.id] = call
        batch = StreamingToolExecutor(
            self._tools.executor, self._tools.async_executor.max_concurrent, confirm=self._confirm
        )
        with anyio.CancelScope() as scope:

            async def call_ended(call: ToolCall, result: ExecutionResult) -> None:
                await self._call_ended(call, result)
                if is_enough is not None and is_enough(result):
                    scope.cancel()

            await batch.execute_with_streaming(
                list(good.values()),
                on_start=self._call_started,
                on_complete=call_ended,
                on_progress=self._on_progress,
                context=self._context,
            )

    def withdraw(self, why: str) -> list[ToolCall]:
        """Answer each call that has no answer yet: it was stopped, or never started.

        Args:
            why: The reason as a sentence without its full stop, for the model.
        Returns:
            Those that had started, for `tell_of`.
        """
        tools = self._tools.executor.visible_tools()
        reading = {tool.name for tool in tools if tool.annotations.read_only_hint}
        stopped = []
        for call in self._turn.calls:
            if call.id in self.results:
                continue
            started_s = self._started.get(call.id)
            if started_s is None:
                self.results[call.id] = self._not_run(call, f"not run: {why}", ErrorCode.CANCELLED)
                continue
            effect = "which changes nothing" if call.name in reading else "and part of it may have happened"
            stop = self._not_run(call, f"stopped while it ran, {effect}: {why}", ErrorCode.CANCELLED)
            took_ms = (anyio.current_time() - started_s) * 1000
            self.results[call.id] = replace(stop, duration_ms=took_ms)
            stopped.append(as_call(call))
        return stopped

    async def tell_of(self, stopped: Sequence[ToolCall]) -> None:
        """Tell who was told of their start. A limit has ended them; nobody may hold the run up any more."""
        with anyio.move_on_after(TELL_S):
            for call in stopped:
                await tell(self._on_result, call, self.results[call.id], unaffected=RUN)

    def in_order(self) -> Iterator[tuple[ToolCall, ExecutionResult]]:
        """Yield each call with its answer, in the order in which they were asked for."""
        seen: set[str] = set()
        for call in self._turn.calls:
            if call.id in self.results and call.id not in seen:
                seen.add(call.id)
                yield as_call(call), self.results[call.id]

    async def _refuse(self, bad: BadCall) -> None:
        call = as_call(bad)
        await tell(self._on_call, call, unaffected=RUN)
        context = replace(self._context, call_id=new_call_id())
        self.results[bad.id] = await self._tools.executor.refuse(bad.name, None, context, bad.problem)
        await tell(self._on_result, call, self.results[bad.id], unaffected=RUN)

    async def _refuse_rest(self, call: ToolCall | BadCall) -> None:
        if not self._is_over_full:
            self._is_over_full = True  # recorded once, and not as often as a model likes
            await self._refuse(BadCall(id=call.id, name=call.name, problem=TOO_MANY))
        else:
            self.results[call.id] = self._not_run(call, TOO_MANY, ErrorCode.INVALID_ARGUMENTS)

    async def _call_started(self, call: ToolCall) -> None:
        self._started[call.id] = anyio.current_time()
        await tell(self._on_call, call, unaffected=RUN)

    async def _call_ended(self, call: ToolCall, result: ExecutionResult) -> None:
        self.results[call.id] = result
        await tell(self._on_result, call, result, unaffected=RUN)

    def _not_run(self, call: ToolCall | BadCall, message: str, code: ErrorCode) -> ExecutionResult:
        is_cancelled = code is ErrorCode.CANCELLED
        return ExecutionResult(
            status=ExecutionStatus.CANCELLED if is_cancelled else ExecutionStatus.VALIDATION_ERROR,
            error=message,
            error_code=code,
            tool_name=call.name[:200],
            parameters=as_call(call).arguments,
            principal=self._context.principal,
            session_id=self._context.session_id,
            client=self._context.client,
            transport=TRANSPORT,
        )


def agent_context(context: CallContext | Mapping[str, Any] | None) -> CallContext:
    """Return what all calls of a run share: a yes can belong to one call only."""
    return replace(as_context(context), transport=TRANSPORT, approval=None, confirmed=False)


def as_call(call: ToolCall | BadCall) -> ToolCall:
    """Return the call as it is told of; one that could not be read has no arguments."""
    return call if isinstance(call, ToolCall) else ToolCall(id=call.id, name=call.name, arguments={})

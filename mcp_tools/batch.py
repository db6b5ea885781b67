"""Many calls at once: safe ones in parallel, those that need a yes one after another.

A model may ask for several tools in one turn. Calls that need nobody start at once and do not wait
for a person; the others form one queue in the order given, each with its own question.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from mcp_tools.calling import CancelWatch, maybe_await, tell
from mcp_tools.errors import DuplicateCallId
from mcp_tools.executor import ToolExecutor
from mcp_tools.inflight import as_context
from mcp_tools.types import (
    Approval,
    CallContext,
    Confirmation,
    ErrorCode,
    ExecutionResult,
    ToolCall,
    new_call_id,
)

logger = logging.getLogger(__name__)

MAX_CONCURRENT: Final = 10
Context = CallContext | Mapping[str, Any] | None
Confirm = Callable[[Confirmation], bool | Awaitable[bool]]
"""Puts one question to a person; True means yes. Only `True` itself counts."""


class AsyncToolExecutor:
    """Runs a batch of calls through a `ToolExecutor`.

    Args:
        executor: The door they all go through.
        max_concurrent: Calls of one batch that run at the same time.
        confirm: Puts a question to a person. None: a call that needs one comes back with its
            `confirmation` set, and nothing of it was done.
    """

    def __init__(
        self, executor: ToolExecutor, max_concurrent: int = MAX_CONCURRENT, *, confirm: Confirm | None = None
    ) -> None:
        if max_concurrent < 1:
            raise ValueError(f"max_concurrent is {max_concurrent}; at least 1 is needed")
        self.executor = executor
        self.max_concurrent = max_concurrent
        self.confirm = confirm

    async def execute_calls(
        self, calls: Sequence[ToolCall], context: Context = None
    ) -> dict[str, ExecutionResult]:
        """Run all calls and return the results by call id, in the order of the calls.

        Args:
            calls: Their ids must differ.
            context: Shared by all; each call gets its own `call_id`, and an `approval` in it is
                ignored, since it can belong to one call only.
        Raises:
            DuplicateCallId: Two calls share an id; none was run.
        Cancelling it cancels every call that runs and starts no other.
        """
        return await self._run(calls, context, _Watcher())

    async def _run(
        self, calls: Sequence[ToolCall], context: Context, watcher: _Watcher
    ) -> dict[str, ExecutionResult]:
        _refuse_duplicate_ids(calls)
        shared = as_context(context)
        contexts = {call.id: watcher.context_for(call, shared) for call in calls}
        finished: dict[str, ExecutionResult] = {}
        limiter = anyio.CapacityLimiter(self.max_concurrent)

        async def run_one(call: ToolCall) -> None:
            await watcher.started(call)
            finished[call.id] = await self._execute(call, contexts[call.id])
            await watcher.completed(call, finished[call.id])

        decided = {call.id: anyio.Event() for call in calls}
        asks: set[str] = set()

        async def run_if_safe(call: ToolCall) -> None:
            async with limiter:
                if await self.executor.needs_confirmation(call.name, call.arguments, contexts[call.id]):
                    asks.add(call.id)
                decided[call.id].set()
                if call.id not in asks:
                    await run_one(call)

        async def run_queue() -> None:
            # One at a time, so it needs no place under the limit, and holds none while a person thinks.
            for call in calls:
                await decided[call.id].wait()
                if call.id in asks:
                    await run_one(call)

        async with anyio.create_task_group() as tasks:
            for call in calls:
                tasks.start_soon(run_if_safe, call)
            tasks.start_soon(run_queue)
        return {call.id: finished[call.id] for call in calls}

    async def _execute(self, call: ToolCall, context: CallContext) -> ExecutionResult:
        result = await self.executor.execute(call.name, call.arguments, context)
        if result.confirmation is None or self.confirm is None:
            return result
        watch = CancelWatch()
        answer: object
        try:
            answer = await maybe_await(self.confirm(result.confirmation))
        except BaseException:
            if watch.is_cancelled():
                raise
            logger.exception("the confirm callback failed; call %s is refused", result.call_id)
            answer = False
        if answer is not True:
            message = "the person declined; do not retry this call unless they ask for it"
            return await self.executor.record_refusal(
                result, code=ErrorCode.DECLINED, message=message, channel="callback"
            )
        approval = Approval(confirmation_id=result.confirmation.id, channel="callback")
        return await self.executor.execute(call.name, call.arguments, replace(context, approval=approval))


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One thing that happened in a batch.

    `result` is set when `kind` is `completed`; `progress`, `total` and `message` when it is `progress`.
    """

    kind: Literal["started", "progress", "completed"]
    call: ToolCall
    result: ExecutionResult | None = None
    progress: float | None = None
    total: float | None = None
    message: str | None = None


class StreamingToolExecutor:
    """Runs a batch and tells of each call as it starts and ends. Arguments: see `AsyncToolExecutor`."""

    def __init__(
        self, executor: ToolExecutor, max_concurrent: int = MAX_CONCURRENT, *, confirm: Confirm | None = None
    ) -> None:
        self._batch = AsyncToolExecutor(executor, max_concurrent, confirm=confirm)

    async def execute_with_streaming(
        self,
        calls: Sequence[ToolCall],
        on_start: Callable[[ToolCall], Any] | None = None,
        on_complete: Callable[[ToolCall, ExecutionResult], Any] | None = None,
        context: Context = None,
        *,
        on_progress: Callable[[ToolCall, float, float | None, str | None], Any] | None = None,
    ) -> dict[str, ExecutionResult]:
        """Run all calls; see `AsyncToolExecutor.execute_calls`.

        Args:
            on_start: Called with the call just before it is executed. Sync or async.
            on_complete: Called with the call and its result as soon as it ended. Sync or async.
            on_progress: Called with the call and what its tool says of its progress; the context's own too.

        A callback that raises is logged and breaks nothing.
        """
        return await self._batch._run(calls, context, _Callbacks(on_start, on_complete, on_progress))

    @asynccontextmanager
    async def stream(
        self, calls: Sequence[ToolCall], context: Context = None
    ) -> AsyncIterator[MemoryObjectReceiveStream[StreamEvent]]:
        """Run all calls while the body iterates over what happens.

            async with executor.stream(calls) as events:
                async for event in events:
                    ...

        A context manager, so that leaving the loop early cancels what still runs.

        Raises:
            DuplicateCallId: Two calls share an id; none was run.
        """
        _refuse_duplicate_ids(calls)
        send, receive = anyio.create_memory_object_stream[StreamEvent](max_buffer_size=2 * len(calls))

        async def run() -> None:
            async with send:
                await self._batch._run(calls, context, _Events(send))

        failed: Exception | None = None
        async with receive, anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            try:
                yield receive
            except Exception as error:
                failed = error  # raised as it is, not in the group that a task group makes of it
            tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed


class _Watcher:
    """Told of what happens in a batch; this one wants to know nothing."""

    def context_for(self, call: ToolCall, shared: CallContext) -> CallContext:
        return replace(shared, call_id=new_call_id(), approval=None)

    async def started(self, call: ToolCall) -> None:
        return

    async def completed(self, call: ToolCall, result: ExecutionResult) -> None:
        return


class _Callbacks(_Watcher):
    def __init__(
        self,
        on_start: Callable[..., Any] | None,
        on_complete: Callable[..., Any] | None,
        on_progress: Callable[..., Any] | None,
    ) -> None:
        self._on_start = on_start
        self._on_complete = on_complete
        self._on_progress = on_progress

    def context_for(self, call: ToolCall, shared: CallContext) -> CallContext:
        own = super().context_for(call, shared)
        if self._on_progress is None:
            return own

        async def on_progress(
            progress: float, total: float | None = None, message: str | None = None
        ) -> None:
            await tell(self._on_progress, call, progress, total, message, unaffected="the batch")
            await shared.report_progress(progress, total, message)

        return replace(own, on_progress=on_progress)

    async def started(self, call: ToolCall) -> None:
        await tell(self._on_start, call, unaffected="the batch")

    async def completed(self, call: ToolCall, result: ExecutionResult) -> None:
        await tell(self._on_complete, call, result, unaffected="the batch")


class _Events(_Watcher):
    def __init__(self, send: MemoryObjectSendStream[StreamEvent]) -> None:
        self._send = send

    def context_for(self, call: ToolCall, shared: CallContext) -> CallContext:
        async def on_progress(
            progress: float, total: float | None = None, message: str | None = None
        ) -> None:
            # Dropped where the reader is slow: progress must not hold the work up.
            with suppress(anyio.WouldBlock):
                event = StreamEvent(
                    kind="progress", call=call, progress=progress, total=total, message=message
                )
                self._send.send_nowait(event)
            await shared.report_progress(progress, total, message)

        return replace(super().context_for(call, shared), on_progress=on_progress)

    async def started(self, call: ToolCall) -> None:
        await self._send.send(StreamEvent(kind="started", call=call))

    async def completed(self, call: ToolCall, result: ExecutionResult) -> None:
        await self._send.send(StreamEvent(kind="completed", call=call, result=result))


def _refuse_duplicate_ids(calls: Sequence[ToolCall]) -> None:
    seen: set[str] = set()
    for call in calls:
        if call.id in seen:
            raise DuplicateCallId(call.id)
        seen.add(call.id)

"""Many calls at once: parallel where nobody is asked, in order where somebody is."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from mcp_tools import (
    AsyncToolExecutor,
    CallContext,
    Confirmation,
    ErrorCode,
    ExecutionResult,
    ExecutionStatus,
    StreamEvent,
    StreamingToolExecutor,
    ToolCall,
    ToolExecutor,
    ToolRegistry,
)
from mcp_tools.errors import DuplicateCallId
from mcp_tools.policy import RulePolicy


class Bench:
    """`meet` returns once `parties` calls of it run at the same time; `change` needs a yes."""

    def __init__(self, parties: int = 1) -> None:
        self.registry = ToolRegistry()
        self.records: list[ExecutionResult] = []
        self.executor = ToolExecutor(self.registry, hooks=[self.records.append])
        self.changed: list[str] = []
        self.running = self.most = 0
        everybody_here = anyio.Event()

        @self.registry.register
        async def meet(name: str) -> str:
            self.running += 1
            self.most = max(self.most, self.running)
            if self.running >= parties:
                everybody_here.set()
            await everybody_here.wait()
            await anyio.sleep(0.001)
            self.running -= 1
            return name

        @self.registry.register(requires_confirmation=True)
        async def change(name: str) -> str:
            self.changed.append(name)
            return name

        @self.registry.register
        async def forever() -> None:
            await anyio.sleep_forever()


def call(call_id: str, name: str = "meet") -> ToolCall:
    return ToolCall(call_id, name, {"name": call_id})


async def test_safe_calls_run_in_parallel_and_keep_their_order() -> None:
    bench = Bench(parties=3)
    with anyio.fail_after(5):
        results = await AsyncToolExecutor(bench.executor).execute_calls([call("c"), call("a"), call("b")])
    assert {call_id: result.result for call_id, result in results.items()} == {"c": "c", "a": "a", "b": "b"}
    assert list(results) == ["c", "a", "b"]


async def test_the_limit_holds() -> None:
    bench = Bench(parties=2)
    with anyio.fail_after(5):
        await AsyncToolExecutor(bench.executor, max_concurrent=2).execute_calls(
            [call(str(i)) for i in range(8)]
        )
    assert bench.most == 2
    with pytest.raises(ValueError, match="at least 1"):
        AsyncToolExecutor(bench.executor, max_concurrent=0)


async def test_duplicate_ids_are_refused_and_nothing_runs() -> None:
    bench = Bench()
    calls = [call("a"), call("b"), call("a")]
    with pytest.raises(DuplicateCallId, match="'a'"):
        await AsyncToolExecutor(bench.executor).execute_calls(calls)
    with pytest.raises(DuplicateCallId):
        async with StreamingToolExecutor(bench.executor).stream(calls):
            pass
    assert bench.records == []


async def test_safe_calls_do_not_wait_for_a_person() -> None:
    bench = Bench()
    safe_done, asked = anyio.Event(), []

    async def confirm(question: Confirmation) -> bool:
        asked.append(question.parameters["name"])
        await safe_done.wait()  # the person thinks until the safe call has long returned
        return True

    async def tell(result: ExecutionResult) -> None:
        if result.tool_name == "meet":
            safe_done.set()

    bench.executor.add_hook(tell)
    batch = AsyncToolExecutor(bench.executor, max_concurrent=1, confirm=confirm)
    with anyio.fail_after(5):
        results = await batch.execute_calls([call("x", "change"), call("safe"), call("y", "change")])
    assert asked == ["x", "y"]
    assert bench.changed == ["x", "y"]
    assert [result.result for result in results.values()] == ["x", "safe", "y"]


@pytest.mark.parametrize("answer", [False, None, 1, "yes", ValueError("broken")], ids=repr)
async def test_only_true_is_a_yes(answer: Any) -> None:
    async def confirm(question: Confirmation) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    bench = Bench()
    results = await AsyncToolExecutor(bench.executor, confirm=confirm).execute_calls([call("x", "change")])
    assert results["x"].error_code is ErrorCode.DECLINED
    assert bench.changed == []
    assert len(bench.executor.confirmations) == 0


async def test_without_anybody_to_ask_the_question_comes_back() -> None:
    bench = Bench()
    results = await AsyncToolExecutor(bench.executor).execute_calls(
        [call("x", "change"), call("y", "change")]
    )
    ids = {result.confirmation.id for result in results.values() if result.confirmation}
    assert len(ids) == 2
    assert bench.changed == []


async def test_an_embedding_programs_yes_runs_changes_in_order() -> None:
    bench = Bench()
    calls = [call(str(i), "change") for i in range(5)]
    await AsyncToolExecutor(bench.executor).execute_calls(calls, {"confirmed": True})
    assert bench.changed == ["0", "1", "2", "3", "4"]
    assert [record.status for record in bench.records] == [ExecutionStatus.SUCCESS] * 5


async def test_each_call_has_its_own_call_id() -> None:
    bench = Bench()
    context = CallContext(principal="ann")
    results = await AsyncToolExecutor(bench.executor).execute_calls([call("a"), call("b")], context)
    assert len({result.call_id for result in results.values()} | {context.call_id}) == 3
    assert {result.principal for result in results.values()} == {"ann"}


async def test_cancelling_a_batch_cancels_and_records_each_call() -> None:
    bench = Bench()
    calls = [ToolCall(str(i), "forever", {}) for i in range(3)]
    with anyio.move_on_after(0.05):
        await AsyncToolExecutor(bench.executor).execute_calls(calls)
    assert [record.status for record in bench.records] == [ExecutionStatus.CANCELLED] * 3


def test_works_in_one_event_loop_after_another() -> None:
    bench = Bench()
    batch = AsyncToolExecutor(bench.executor)
    for _ in range(2):
        assert asyncio.run(batch.execute_calls([call("a")]))["a"].result == "a"
    assert anyio.run(batch.execute_calls, [call("a")], backend="asyncio")["a"].is_success


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_streaming_callbacks(kind: str) -> None:
    bench = Bench()
    seen: list[tuple[Any, ...]] = []

    def on_start(started: ToolCall) -> None:
        seen.append(("start", started.id))

    def on_complete(ended: ToolCall, result: ExecutionResult) -> None:
        seen.append(("complete", ended.id, result.result))

    async def on_start_async(started: ToolCall) -> None:
        on_start(started)

    async def on_complete_async(ended: ToolCall, result: ExecutionResult) -> None:
        on_complete(ended, result)

    callbacks = (on_start, on_complete) if kind == "sync" else (on_start_async, on_complete_async)
    results = await StreamingToolExecutor(bench.executor).execute_with_streaming([call("a")], *callbacks)
    assert seen == [("start", "a"), ("complete", "a", "a")]
    assert results["a"].result == "a"


async def test_a_raising_callback_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()

    def broken(*_: Any) -> None:
        raise SystemExit("callback")

    results = await StreamingToolExecutor(bench.executor).execute_with_streaming([call("a")], broken, broken)
    assert results["a"].is_success
    assert caplog.text.count("the batch goes on") == 2


async def test_events_come_as_they_happen_with_progress() -> None:
    bench = Bench()

    @bench.registry.register
    async def counts(context: CallContext) -> str:
        await context.report_progress(1, 3, "one")
        return "counted"

    events: list[StreamEvent] = []
    with anyio.fail_after(5):
        async with StreamingToolExecutor(bench.executor).stream([ToolCall("a", "counts", {})]) as stream:
            async for event in stream:
                events.append(event)
    assert [event.kind for event in events] == ["started", "progress", "completed"]
    assert (events[1].progress, events[1].total, events[1].message) == (1, 3, "one")
    assert events[2].result is not None
    assert events[2].result.result == "counted"


async def test_safe_calls_start_together_however_long_deciding_takes() -> None:
    registry = ToolRegistry()
    deciding, everybody = 0, anyio.Event()

    async def must_ask() -> None:
        nonlocal deciding
        deciding += 1
        if deciding == 4:
            everybody.set()
        await everybody.wait()  # returns only if all four are decided at the same time

    registry.register("slow", must_ask=must_ask)(lambda: "ran")
    calls = [ToolCall(str(i), "slow", {}) for i in range(4)]
    with anyio.fail_after(5):
        results = await AsyncToolExecutor(ToolExecutor(registry)).execute_calls(calls)
    assert all(result.is_success for result in results.values())


async def test_a_broken_policy_breaks_the_calls_and_not_the_batch() -> None:
    class Broken(RulePolicy):
        def decide(self, *_: Any) -> Any:
            raise ZeroDivisionError

    registry = ToolRegistry()
    registry.register("tool")(lambda: None)
    executor = ToolExecutor(registry, policy=Broken())
    results = await AsyncToolExecutor(executor).execute_calls([ToolCall("a", "tool", {})])
    assert results["a"].error_code is ErrorCode.INTERNAL_ERROR


async def test_what_the_body_of_a_stream_raises_comes_out_as_it_is() -> None:
    bench = Bench()
    with pytest.raises(ValueError, match="mine"):
        async with StreamingToolExecutor(bench.executor).stream([call("a")]):
            raise ValueError("mine")


async def test_leaving_the_stream_early_cancels_the_rest() -> None:
    bench = Bench()
    with anyio.fail_after(5):
        async with StreamingToolExecutor(bench.executor).stream([ToolCall("a", "forever", {})]) as stream:
            async for event in stream:
                assert event.kind == "started"
                break
    # The call may not have been reached yet; if it was, it was recorded as cancelled.
    assert all(record.status is ExecutionStatus.CANCELLED for record in bench.records)

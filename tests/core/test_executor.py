"""The pipeline: every call ends in one result, and every hook is told of it."""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import functools
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import jsonschema
import pytest
from pydantic import BaseModel

from mcp_tools import (
    CallContext,
    ErrorCode,
    ExecutionResult,
    ExecutionStatus,
    TextContent,
    Tool,
    ToolError,
    ToolExecutor,
    ToolOutput,
    ToolRegistry,
)
from mcp_tools.policy import RulePolicy


class Setup:
    """A registry, an executor over it, and every record its hook was given."""

    def __init__(self, **options: Any) -> None:
        self.registry = ToolRegistry()
        self.records: list[ExecutionResult] = []
        self.executor = ToolExecutor(self.registry, hooks=[self.records.append], **options)

    async def run(self, name: str = "tool", arguments: Any = None, context: Any = None) -> ExecutionResult:
        with anyio.fail_after(10):
            result = await self.executor.execute(name, arguments, context)
        assert self.records[-1] == result
        return result


@pytest.fixture
def setup() -> Setup:
    return Setup()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_works_in_any_event_loop(backend: str) -> None:
    setup = Setup()
    setup.registry.register("sync")(lambda: threading.get_ident())
    setup.registry.register("late")(functools.partial(anyio.sleep, 60))

    @setup.registry.register(timeout=0.05)
    async def slow() -> None:
        await anyio.sleep(60)

    async def main() -> None:
        assert (await setup.run("sync")).result != threading.get_ident()
        assert (await setup.run("slow")).status is ExecutionStatus.TIMEOUT

    for _ in range(2):  # the same executor in two loops, one after the other
        anyio.run(main, backend=backend)


async def test_sync_functions_run_off_the_loop_with_their_context_variables(setup: Setup) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("caller's")

    @setup.registry.register
    def tool() -> list[Any]:
        return [variable.get(), threading.current_thread() is threading.main_thread()]

    assert (await setup.run()).result == ["caller's", False]


class Callables:
    async def method(self, a: int) -> int:
        return a + 1

    async def __call__(self, a: int) -> int:
        return a + 1


async def plus_one(a: int, by: int = 1) -> int:
    return a + by


async def _returns_coroutine(a: int) -> int:
    return a + 1


def returns_coroutine(a: int) -> Any:
    return _returns_coroutine(a)


@pytest.mark.parametrize(
    "function",
    [
        plus_one,
        Callables().method,
        Callables(),
        functools.partial(plus_one, by=1),
        functools.partial(functools.partial(plus_one), by=1),
        returns_coroutine,
        lambda a: a + 1,
    ],
    ids=["function", "method", "object", "partial", "nested-partial", "returns-coroutine", "lambda"],
)
async def test_callables_of_every_form_are_awaited(setup: Setup, function: Callable[..., Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    setup.registry.add(Tool("tool", "", schema, function))
    assert (await setup.run(arguments={"a": 1})).result == 2


async def test_a_tool_may_ask_for_the_context(setup: Setup) -> None:
    progress: list[tuple[Any, ...]] = []

    async def on_progress(progress_: float, total: float | None = None, message: str | None = None) -> None:
        progress.append((progress_, total, message))

    @setup.registry.register
    async def tool(a: int, ctx: CallContext) -> str:
        await ctx.report_progress(1, 2, "half")
        return f"{ctx.principal}/{ctx.session_id}/{a}"

    @setup.registry.register
    def in_thread(ctx: CallContext | None) -> str:
        assert ctx is not None
        ctx.report_progress_from_thread(2, 2)
        return ctx.call_id

    context = CallContext(principal="ann", session_id="s1", on_progress=on_progress)
    assert (await setup.run("tool", {"a": 3}, context)).result == "ann/s1/3"
    assert (await setup.run("in_thread", {}, context)).result == context.call_id
    assert progress == [(1, 2, "half"), (2, 2, None)]
    assert setup.registry.list_tools()[0].parameters["required"] == ["a"]


async def test_validated_values_are_what_runs_and_what_is_recorded(setup: Setup) -> None:
    class Inner(BaseModel):
        n: int = 4

    seen: list[Any] = []

    @setup.registry.register
    async def tool(inner: Inner, factor: float = 2.0) -> None:
        seen.append((inner, factor))

    result = await setup.run(arguments={"inner": {}})
    assert seen == [(Inner(n=4), 2.0)]
    assert result.parameters == {"inner": Inner(n=4), "factor": 2.0}


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad value"), "ValueError: bad value"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (RecursionError("deep"), "RecursionError: deep"),
        (MemoryError(), "MemoryError"),
        (TimeoutError("its own"), "TimeoutError: its own"),
        (asyncio.CancelledError("its own"), "CancelledError: its own"),
        (StrRaises(), "StrRaises: <StrRaises that cannot be printed>"),
        (
            BaseExceptionGroup("two", [SystemExit(1), ValueError()]),
            "BaseExceptionGroup: two (2 sub-exceptions)",
        ),
        (ToolError("for the model"), "for the model"),
        (ToolError("\ud800"), "\\ud800"),
        (OSError("password=hunter2 x"), "OSError: password=[secret removed] x"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_exceptions_of_every_kind_become_results(
    setup: Setup, kind: str, error: BaseException, text: str
) -> None:
    """ACCEPTANCE B-28."""
    if kind == "async":

        async def tool() -> None:
            raise error
    else:

        def tool() -> None:  # type: ignore[misc]
            raise error

    setup.registry.register(tool)
    result = await setup.run()
    assert (result.status, result.error, result.result) == (ExecutionStatus.ERROR, text, None)
    expected = ErrorCode.TOOL_ERROR if isinstance(error, ToolError) else ErrorCode.TOOL_EXCEPTION
    assert result.error_code is expected


async def test_a_huge_message_is_bounded(setup: Setup) -> None:
    @setup.registry.register
    def tool() -> None:
        raise ValueError("x" * 10_000_000)

    assert len((await setup.run()).error or "") < 2_100


async def test_exceptions_can_be_hidden() -> None:
    setup = Setup(hide_exceptions=True)

    @setup.registry.register
    def tool() -> None:
        raise ValueError("inner workings")

    result = await setup.run()
    assert result.error == f"the tool failed; the server's log has it under call id {result.call_id}"


async def test_early_exits_are_observed_like_successes(setup: Setup) -> None:
    @setup.registry.register(requires_confirmation=True)
    def tool(a: int = 1) -> int:
        return a

    outcomes = [
        (await setup.run("no such tool")).error_code,
        (await setup.run("tool", {"a": "x"})).error_code,
        (await setup.run("tool", [1])).error_code,
        (await setup.run(42)).error_code,  # type: ignore[arg-type]
        (await setup.run("tool")).error_code,
    ]
    assert outcomes == [record.error_code for record in setup.records]
    assert outcomes == [
        ErrorCode.UNKNOWN_TOOL,
        ErrorCode.INVALID_ARGUMENTS,
        ErrorCode.INVALID_ARGUMENTS,
        ErrorCode.UNKNOWN_TOOL,
        ErrorCode.CONFIRMATION_REQUIRED,
    ]


async def test_an_unknown_tool_is_an_error_with_a_suggestion(setup: Setup) -> None:
    setup.registry.register("read_file")(lambda: None)
    result = await setup.run("read_fiel")
    assert result.status is ExecutionStatus.ERROR
    assert result.to_observation() == "Error (error): there is no tool 'read_fiel'; did you mean 'read_file'?"


async def test_a_timeout_names_its_seconds_and_ends_the_work(setup: Setup) -> None:
    ended = anyio.Event()

    @setup.registry.register(timeout=0.05)
    async def tool() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    result = await setup.run()
    assert (result.status, result.error) == (ExecutionStatus.TIMEOUT, "tool was stopped after 0.05 s")
    assert ended.is_set()


async def test_a_sync_tool_that_outlives_its_deadline_is_told_and_admitted(setup: Setup) -> None:
    noticed, release = threading.Event(), threading.Event()

    @setup.registry.register(timeout=0.05)
    def tool(context: CallContext) -> None:
        if context.cancelled.wait(10):
            noticed.set()
        release.set()

    result = await setup.run()
    assert result.status is ExecutionStatus.TIMEOUT
    assert "may still be running" in (result.error or "")
    assert await asyncio.to_thread(release.wait, 10)
    assert noticed.is_set()


async def test_no_deadline_is_possible(setup: Setup) -> None:
    setup.registry.register("tool", timeout=math.inf)(lambda: "done")
    assert (await setup.run()).result == "done"


async def test_cancelling_reaches_the_tool_and_is_recorded(setup: Setup) -> None:
    started, ended = anyio.Event(), anyio.Event()

    @setup.registry.register
    async def tool() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(setup.executor.execute, "tool")
            await started.wait()
            tasks.cancel_scope.cancel()
    assert ended.is_set()
    assert [record.status for record in setup.records] == [ExecutionStatus.CANCELLED]


async def test_native_asyncio_cancellation_is_not_taken_for_the_tools_own(setup: Setup) -> None:
    started = asyncio.Event()

    @setup.registry.register
    async def tool() -> None:
        started.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(setup.executor.execute("tool"))
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [record.status for record in setup.records] == [ExecutionStatus.CANCELLED]


async def test_hooks_sync_and_async_are_told_before_execute_returns(setup: Setup) -> None:
    told: list[str] = []

    async def slow_hook(result: ExecutionResult) -> None:
        await anyio.lowlevel.checkpoint()
        told.append(f"async {result.tool_name}")

    setup.executor.add_hook(slow_hook)
    setup.executor.add_hook(lambda result: told.append(f"sync {result.status.value}"))
    setup.registry.register("tool")(lambda: None)
    await setup.run()
    assert told == ["async tool", "sync success"]


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), asyncio.CancelledError()], ids=repr)
async def test_a_raising_hook_breaks_nothing(
    setup: Setup, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def sync_hook(result: ExecutionResult) -> None:
        raise error

    async def async_hook(result: ExecutionResult) -> None:
        raise error

    setup.executor.execution_hooks[:0] = [sync_hook, async_hook]
    setup.registry.register("tool")(lambda: "fine")
    assert (await setup.run()).result == "fine"
    assert caplog.text.count("hook") >= 2


async def test_a_hook_cannot_change_the_answer_or_what_the_caller_sent(setup: Setup) -> None:
    def meddles(record: ExecutionResult) -> None:
        record.result["forged"] = True
        dict.clear(record.parameters)  # type: ignore[arg-type]

    setup.executor.execution_hooks = [meddles]
    setup.registry.register("tool")(lambda a: {"a": a})
    sent = {"a": [1]}
    result = await setup.executor.execute("tool", sent)
    assert (result.result, result.parameters, sent) == ({"a": [1]}, {"a": [1]}, {"a": [1]})


@pytest.mark.parametrize("claim", ["false", "yes", 1, 0, None])
async def test_only_a_boolean_vouches_for_a_yes(setup: Setup, claim: Any) -> None:
    setup.registry.register("tool", requires_confirmation=True)(lambda: "ran")
    with pytest.raises(TypeError, match="confirmed"):
        await setup.executor.execute("tool", {}, {"confirmed": claim})
    assert setup.records == []


async def test_a_hanging_hook_is_given_up(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_tools.recording.HOOK_TIMEOUT_S", 0.05)

    async def hangs(result: ExecutionResult) -> None:
        await anyio.sleep_forever()

    setup.executor.execution_hooks.insert(0, hangs)
    setup.registry.register("tool")(lambda: "fine")
    assert (await setup.run()).result == "fine"


async def test_a_fault_of_ours_is_a_call_id_and_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class BrokenPolicy(RulePolicy):
        def decide(self, *_: Any) -> Any:
            raise ZeroDivisionError("inner workings")

    setup = Setup(policy=BrokenPolicy())
    ran: list[int] = []
    setup.registry.register("tool")(lambda: ran.append(1))
    result = await setup.run()
    assert (result.status, result.error_code) == (ExecutionStatus.ERROR, ErrorCode.INTERNAL_ERROR)
    assert result.error == f"internal error; the server's log has it under call id {result.call_id}"
    assert ran == []
    assert "inner workings" in caplog.text


async def test_results_are_checked_against_the_output_schema(setup: Setup) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    setup.registry.register("good", output_schema=schema)(lambda: {"n": 1})
    setup.registry.register("bad", output_schema=schema)(lambda: {"n": "1"})
    assert (await setup.run("good")).is_success
    result = await setup.run("bad")
    assert result.error == (
        "bad ran, but its result does not fit its output schema: n: must be of type integer, got '1'"
    )


async def test_a_list_is_structured_under_the_name_its_schema_gives_it(setup: Setup) -> None:
    numbers = {"type": "array", "items": {"type": "integer"}}
    schema = {"type": "object", "properties": {"result": numbers}, "required": ["result"]}
    setup.registry.register("good", output_schema=schema)(lambda: [1, 2])
    setup.registry.register("bad", output_schema=schema)(lambda: ["1"])
    good = await setup.run("good")
    assert (good.result, good.structured) == ([1, 2], {"result": [1, 2]})
    assert (await setup.run("bad")).error_code is ErrorCode.TOOL_EXCEPTION


async def test_calls_above_the_limit_wait_their_turn_and_nested_ones_do_not() -> None:
    setup = Setup(max_concurrent_calls=1)
    running, most = 0, 0

    @setup.registry.register
    async def inner() -> str:
        return "inner"

    @setup.registry.register
    async def tool() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.01)
        running -= 1
        return str((await setup.executor.execute("inner")).result)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(setup.executor.execute, "tool")
    assert most == 1
    assert [r.result for r in setup.records if r.tool_name == "tool"] == ["inner"] * 5


async def test_durations_come_from_the_given_clock() -> None:
    ticks = iter([10.0, 10.25])
    executor = ToolExecutor(ToolRegistry(), clock=lambda: next(ticks))
    assert (await executor.execute("none")).duration_ms == 250


async def test_a_mapping_is_a_context_and_what_is_not_ours_is_handed_on(setup: Setup) -> None:
    @setup.registry.register(requires_confirmation=True)
    def tool(context: CallContext) -> Any:
        return [context.principal, dict(context.extra)]

    context = {"confirmed": True, "principal": "ann", "tenant": 7}
    assert (await setup.run("tool", {}, context)).result == ["ann", {"tenant": 7}]
    misspelt = await setup.run("tool", {}, {"confirmd": True})
    assert misspelt.error_code is ErrorCode.CONFIRMATION_REQUIRED


async def test_a_cancellation_that_a_tool_converts_goes_on(setup: Setup) -> None:
    started = anyio.Event()

    @setup.registry.register
    async def tool() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            raise RuntimeError("aborted") from None

    task = asyncio.create_task(setup.executor.execute("tool"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [record.status for record in setup.records] == [ExecutionStatus.CANCELLED]


async def test_a_deadline_that_a_tool_converts_is_still_a_timeout(setup: Setup) -> None:
    @setup.registry.register(timeout=0.05)
    async def tool() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails_when_cancelled())

    async def fails_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise RuntimeError("aborted")

    assert (await setup.run()).status is ExecutionStatus.TIMEOUT


async def test_an_earlier_cancellation_of_the_task_is_not_taken_for_one_of_the_call(setup: Setup) -> None:
    setup.registry.register("tool")(lambda: 1 / 0)

    async def cleans_up_after_its_cancellation() -> ExecutionResult:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            return await setup.executor.execute("tool")

    task = asyncio.create_task(cleans_up_after_its_cancellation())
    await asyncio.sleep(0)
    task.cancel()
    assert (await task).error_code is ErrorCode.TOOL_EXCEPTION


async def test_a_tool_cannot_rewrite_the_record_or_the_callers_arguments(setup: Setup) -> None:
    schema = {"type": "object", "properties": {"items": {"type": "array"}}}

    def forge(items: list[Any]) -> None:
        items.clear()

    setup.registry.register("typed")(forge)
    setup.registry.add(Tool("by_schema", "", {**schema, "required": ["items"]}, forge))
    for name in ("typed", "by_schema"):
        sent = {"items": ["real", {"n": 1}]}
        result = await setup.run(name, sent)
        assert result.parameters == {"items": ["real", {"n": 1}]}
        assert sent == {"items": ["real", {"n": 1}]}


async def test_functions_that_outlive_their_deadline_are_bounded(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_tools.calling.MAX_ABANDONED_THREADS", 3)
    release = threading.Event()
    begun: list[int] = []

    @setup.registry.register(timeout=0.3)
    def tool() -> None:
        begun.append(1)
        release.wait(20)

    try:
        codes = [(await setup.run()).error_code for _ in range(5)]
    finally:
        release.set()
    assert codes == [ErrorCode.TIMED_OUT] * 3 + [ErrorCode.TOOL_ERROR] * 2
    assert len(begun) == 3
    deadline = time.monotonic() + 10
    while (await setup.run()).error_code is not None:  # until the threads have noticed
        assert time.monotonic() < deadline


class Count(BaseModel):
    n: int
    took: datetime.timedelta = datetime.timedelta(seconds=3)


async def test_structured_results_fit_the_schema_that_is_published(setup: Setup) -> None:
    @setup.registry.register
    def coerced() -> Count:
        return {"n": "5"}  # type: ignore[return-value]

    @setup.registry.register
    def nothing() -> Count:
        return None  # type: ignore[return-value]

    @setup.registry.register
    def pieces() -> Count:
        return ToolOutput(content=[TextContent(text="x")])  # type: ignore[return-value]

    result = await setup.run("coerced")
    assert result.structured == {"n": 5, "took": "PT3S"}
    tool = setup.registry.get("coerced")
    assert tool is not None
    jsonschema.validate(result.structured, tool.output_schema)
    for name in ("nothing", "pieces"):
        assert (await setup.run(name)).error_code is ErrorCode.TOOL_EXCEPTION


def test_a_short_deadline_that_cannot_end_the_work_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    registry = ToolRegistry()
    registry.register("abandoned", timeout=2)(lambda: None)
    assert "'abandoned' is synchronous" in caplog.text
    assert "isolation='process'" in caplog.text
    caplog.clear()
    registry.register("backstop")(lambda: None)

    @registry.register(timeout=2)
    async def ended() -> None: ...

    assert caplog.text == ""

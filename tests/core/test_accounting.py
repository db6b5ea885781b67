"""What must record or limit a call does so in its place in the pipeline, or the call does not run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from mcp_tools import CallContext, ErrorCode, ExecutionResult, ExecutionStatus, ToolExecutor, ToolRegistry
from mcp_tools.types import (
    Approval,
    AuditUnavailable,
    CallStarted,
    LimitRefusal,
    LimitsUnavailable,
    Tool,
    ToolAnnotations,
    Usage,
)


class Everybody:
    """An auditor, a limiter with its lease, an observer and a fitter, which write down what they are told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.results: list[ExecutionResult] = []
        self.begun: list[CallStarted] = []
        self.refusal: LimitRefusal | None = None
        self.failing: set[str] = set()
        self.errors: dict[str, type[Exception]] = {}
        self.settled: list[Usage] = []
        self.again: list[bool] = []

    def _step(self, name: str, error: type[Exception]) -> None:
        self.told.append(name)
        if name in self.failing:
            raise self.errors.get(name, error)(f"{name} is broken; mend it")

    async def begin(self, started: CallStarted) -> None:
        self._step("begin", AuditUnavailable)
        self.begun.append(started)

    async def end(self, result: ExecutionResult) -> None:
        await anyio.lowlevel.checkpoint()
        self._step("end", AuditUnavailable)
        self.results.append(result)

    async def admit(self, tool: Tool | None, context: CallContext, *, again: bool) -> Any:
        self._step("admit", LimitsUnavailable)
        self.again.append(again)
        return self.refusal or self

    @property
    def left(self) -> Mapping[str, float]:
        return {"calls": 7.0}

    async def settle(self, usage: Usage) -> None:
        self._step("settle", LimitsUnavailable)
        self.settled.append(usage)

    async def cancel(self) -> None:
        self._step("cancel", LimitsUnavailable)

    @asynccontextmanager
    async def slot(self, tool: Tool, context: CallContext) -> AsyncIterator[None]:
        self.told.append("slot")
        try:
            yield
        finally:
            self.told.append("slot is free")

    def call_started(self, started: CallStarted) -> None:
        self._step("observe the start", RuntimeError)

    def call_finished(self, result: ExecutionResult) -> None:
        self._step("observe the end", RuntimeError)

    async def fit(self, result: ExecutionResult, tool: Tool, context: CallContext) -> ExecutionResult:
        self.told.append("fit")
        return result


class World:
    def __init__(self, **options: Any) -> None:
        self.all = all_ = Everybody()
        self.registry = ToolRegistry()
        self.executor = ToolExecutor(
            self.registry, auditor=all_, limiter=all_, observers=[all_], fitter=all_, **options
        )
        self.registry.register("work", price_usd=0.5)(self.work)
        self.registry.register("look", annotations=ToolAnnotations(read_only_hint=True))(self.work)
        self.registry.register("ask", requires_confirmation=True)(self.work)
        self.registry.register("fail")(lambda: 1 / 0)
        self.registry.register("late", timeout=0.05)(self.late)

    async def work(self, context: CallContext) -> str:
        self.all.told.append("run")
        context.meter.add(Usage(cost_usd=0.25, sandbox_cpu_s=2.0))
        return "done"

    async def late(self) -> None:
        await anyio.sleep(60)

    async def run(self, name: str, **context: Any) -> ExecutionResult:
        with anyio.fail_after(10):
            return await self.executor.execute(name, {}, CallContext(**context))


@pytest.fixture
def world() -> World:
    return World()


FIRST = ["admit"]
RUN = ["slot", "begin", "observe the start", "run", "fit", "slot is free", "settle", "end", "observe the end"]
REFUSED = ["cancel", "end", "observe the end"]


async def test_each_has_its_place(world: World) -> None:
    result = await world.run("work", session_id="s", client="c 1", transport="http")
    assert world.all.told == FIRST + RUN
    assert result.is_success
    assert world.all.results == [result]
    (started,) = world.all.begun
    assert (started.call_id, started.tool.name, started.client) == (result.call_id, "work", "c 1")


async def test_what_was_used_is_settled_and_told(world: World) -> None:
    result = await world.run("work")
    assert world.all.settled == [Usage(calls=1, cost_usd=0.75, sandbox_cpu_s=2.0)]
    assert result.usage == world.all.settled[0]
    assert result.limits_left == {"calls": 7.0}


@pytest.mark.parametrize(
    ("name", "code"), [("nothing", ErrorCode.UNKNOWN_TOOL), ("ask", ErrorCode.CONFIRMATION_REQUIRED)]
)
async def test_refusals_are_recorded_and_give_back_what_they_reserved(
    world: World, name: str, code: ErrorCode
) -> None:
    result = await world.run(name)
    assert world.all.told == FIRST + REFUSED
    assert world.all.results[0].error_code is code
    assert result.usage is None


@pytest.mark.parametrize(
    ("name", "status"), [("fail", ExecutionStatus.ERROR), ("late", ExecutionStatus.TIMEOUT)]
)
async def test_failures_that_ran_are_settled(world: World, name: str, status: ExecutionStatus) -> None:
    result = await world.run(name)
    assert result.status is status
    assert world.all.settled == [Usage(calls=1)]
    assert world.all.results == [result]


async def test_a_call_that_is_withdrawn_is_recorded_and_settled(world: World) -> None:
    world.registry.remove("late")
    world.registry.register("late")(world.late)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.run, "late")
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert world.all.told[-4:] == ["slot is free", "settle", "end", "observe the end"]
    assert world.all.results[0].status is ExecutionStatus.CANCELLED


async def test_a_call_over_a_limit_is_not_even_validated(world: World) -> None:
    world.all.refusal = LimitRefusal(message="slow down", retry_after_s=2.5, left={"per_minute": 0.0})
    result = await world.run("work")
    assert (result.status, result.error) == (ExecutionStatus.RATE_LIMITED, "slow down")
    assert (result.retry_after_s, result.limits_left) == (2.5, {"per_minute": 0.0})
    assert world.all.told == ["admit", "end", "observe the end"]


async def test_an_open_question_spares_no_other_call_its_rates(world: World) -> None:
    asked = await world.run("ask")
    assert asked.confirmation is not None
    approval = Approval(confirmation_id=asked.confirmation.id)
    await world.run("work", approval=approval)
    await world.run("nothing", approval=approval)
    await world.run("ask", approval=approval, principal="somebody else")
    await world.executor.execute("ask", {"context": 1}, CallContext(approval=approval))
    assert world.all.again == [False] * 5


async def test_an_answer_is_admitted_again_only_if_there_was_its_question(world: World) -> None:
    asked = await world.run("ask")
    assert asked.confirmation is not None
    await world.run("ask", approval=Approval(confirmation_id="made up"))
    done = await world.run("ask", approval=Approval(confirmation_id=asked.confirmation.id, channel="x"))
    assert world.all.again == [False, False, True]
    assert (done.result, done.confirmation_id) == ("done", asked.confirmation.id)
    assert world.all.begun[-1].confirmation_id == asked.confirmation.id
    assert world.all.begun[-1].channel == "x"


async def test_a_no_names_its_question(world: World) -> None:
    asked = await world.run("ask")
    assert asked.confirmation is not None
    await world.executor.record_refusal(asked, code=ErrorCode.DECLINED, message="no", channel="x")
    assert world.all.results[-1].confirmation_id == asked.confirmation.id
    assert world.all.results[0].confirmation_id == asked.confirmation.id


async def test_a_call_that_cannot_be_recorded_does_not_run(world: World) -> None:
    world.all.failing = {"begin"}
    result = await world.run("work")
    assert result.error_code is ErrorCode.UNAVAILABLE
    assert "begin is broken; mend it" in (result.error or "")
    assert "run" not in world.all.told
    assert world.all.told[-3:] == REFUSED
    assert (await world.run("look")).error_code is ErrorCode.UNAVAILABLE


async def test_an_end_that_cannot_be_recorded_is_not_acknowledged(world: World) -> None:
    world.all.failing = {"end"}
    result = await world.run("work")
    assert (result.error_code, result.result) == (ErrorCode.UNAVAILABLE, None)
    assert "it ran" in (result.error or "")
    refused = await world.run("nothing")
    assert refused.error_code is ErrorCode.UNAVAILABLE
    assert "nothing was run" in (refused.error or "")
    asked = await world.run("ask")
    assert asked.confirmation is None


async def test_read_only_tools_can_be_let_run_without_a_record() -> None:
    world = World(read_only_without_audit=True)
    world.all.failing = {"begin", "end"}
    assert (await world.run("look")).result == "done"
    assert (await world.run("work")).error_code is ErrorCode.UNAVAILABLE
    assert world.all.told.count("run") == 1


async def test_a_call_that_cannot_be_counted_does_not_run(world: World) -> None:
    world.all.failing = {"admit"}
    result = await world.run("work")
    assert result.error_code is ErrorCode.UNAVAILABLE
    assert "admit is broken; mend it" in (result.error or "")
    assert world.all.told == ["admit", "end", "observe the end"]


@pytest.mark.parametrize("error", [LimitsUnavailable, ZeroDivisionError])
async def test_what_cannot_be_settled_changes_no_answer(world: World, error: type[Exception]) -> None:
    world.all.failing, world.all.errors = {"settle"}, {"settle": error}
    assert (await world.run("work")).result == "done"


async def test_observers_that_fail_change_no_answer(world: World) -> None:
    world.all.failing = {"observe the start", "observe the end"}
    assert (await world.run("work")).result == "done"


async def test_a_call_that_a_tool_makes_asks_for_a_place_inside_the_tools_own(world: World) -> None:
    @world.registry.register
    async def outer() -> Any:
        return (await world.run("work")).result

    assert (await world.run("outer")).result == "done"
    places = [step for step in world.all.told if step.startswith("slot")]
    assert places == ["slot", "slot", "slot is free", "slot is free"]
    assert len(world.all.results) == 2


async def test_a_task_that_is_cancelled_while_it_settles_leaves_its_record() -> None:
    """`Task.cancel` goes through anyio's shields."""
    world = World()
    settling = asyncio.Event()

    async def settle(usage: Usage) -> None:
        settling.set()
        await asyncio.Event().wait()

    world.all.settle = settle  # type: ignore[method-assign]
    task = asyncio.create_task(world.executor.execute("work"))
    await settling.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [result.status for result in world.all.results] == [ExecutionStatus.SUCCESS]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), -1, 2**63, 10**400])
@pytest.mark.parametrize("unit", ["cost_usd", "sandbox_cpu_s", "output_tokens", "calls"])
async def test_a_tool_that_reports_nonsense_fails_and_is_charged_for_nothing_else(
    unit: str, number: float
) -> None:
    world = World()

    @world.registry.register
    async def odd(context: CallContext) -> None:
        context.meter.add(Usage(**{unit: number}))  # type: ignore[arg-type]

    result = await world.executor.execute("odd")
    assert result.error is not None
    assert "must be from 0 to 10^15" in result.error
    assert world.all.settled == [Usage(calls=1)]
    many = sum([Usage(cost_usd=10**15, output_tokens=10**15)] * 3, start=Usage())
    assert many == Usage(cost_usd=10**15, output_tokens=10**15)

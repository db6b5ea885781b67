"""Limits around real calls, from end to end of the executor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from mcp_tools import CallContext, ErrorCode, ExecutionResult, ExecutionStatus, ToolExecutor, ToolRegistry
from mcp_tools.errors import ToolError
from mcp_tools.limits import StoreLimiter, build_limiter, open_store
from mcp_tools.policy import RulePolicy
from mcp_tools.types import Approval, Usage

registry = ToolRegistry()


@registry.register()
async def work(seconds: float = 0) -> str:
    """Take a while."""
    await anyio.sleep(seconds)
    return "done"


@registry.register()
async def pay(usd: float, context: CallContext) -> str:
    """Cost something."""
    await anyio.sleep(0.001)
    context.meter.add(Usage(cost_usd=usd))
    return "paid"


@registry.register()
async def fail() -> str:
    """Never succeed."""
    raise ToolError("it did not work")


@registry.register(requires_confirmation=True)
async def risk() -> str:
    """Need a yes."""
    return "risked"


class Server:
    """An executor under limits."""

    def __init__(self, limiter: StoreLimiter) -> None:
        self.executor = ToolExecutor(
            registry, limiter=limiter, policy=RulePolicy.parse(deny=["work(forbidden)"])
        )

    async def call(self, name: str, who: str = "ada", **arguments: object) -> ExecutionResult:
        return await self.executor.execute(name, arguments, CallContext(principal=who))


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "limits.sqlite3")


@pytest.fixture
def server(request: pytest.FixtureRequest, place: str) -> Iterator[Server]:
    limiter = build_limiter(request.param, open_store(place))
    yield Server(limiter)
    limiter.close()


def limits(*rules: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("server", [rules], indirect=True, ids=["limits"])


@limits("* per principal: 2 calls / hour")
async def test_a_refusal_is_a_result_that_a_model_can_act_on(server: Server) -> None:
    first = await server.call("work")
    assert first.limits_left == {"* per principal: 2 calls / hour": 1}
    await server.call("work")
    refused = await server.call("work")
    assert refused.status is ExecutionStatus.RATE_LIMITED
    assert refused.error_code is ErrorCode.RATE_LIMITED
    assert refused.retry_after_s is not None
    assert 3_500 < refused.retry_after_s < 3_700
    assert refused.limits_left == {"* per principal: 2 calls / hour": 0}
    assert "try again in 61 minutes" in refused.to_observation() or "60 minutes" in refused.to_observation()
    assert (await server.call("work", who="bob")).is_success


@limits("* per principal: 5 calls / hour")
async def test_calls_that_fail_count_whatever_they_failed_at(server: Server) -> None:
    """R-06"""
    assert (await server.call("fail")).error_code is ErrorCode.TOOL_ERROR
    assert (await server.call("no_such_tool")).error_code is ErrorCode.UNKNOWN_TOOL
    assert (await server.call("work", seconds="long")).error_code is ErrorCode.INVALID_ARGUMENTS
    with anyio.move_on_after(0.02):
        await server.call("work", seconds=60)
    left = (await server.call("work")).limits_left
    assert left == {"* per principal: 5 calls / hour": 0}


@limits("*: 1 at once", "*: 10 usd / day")
async def test_a_cancelled_call_gives_back_its_place(server: Server) -> None:
    with anyio.move_on_after(0.05):
        await server.call("work", seconds=60)
    with anyio.fail_after(10):
        assert (await server.call("work")).is_success


@limits("*: 3 calls / hour")
async def test_a_call_that_comes_again_with_an_answer_counts_once(server: Server) -> None:
    asked = await server.call("risk")
    assert asked.confirmation is not None
    approval = Approval(confirmation_id=asked.confirmation.id)
    context = CallContext(principal="ada", approval=approval)
    answered = await server.executor.execute("risk", {}, context)
    assert answered.is_success
    assert answered.limits_left == {"*: 3 calls / hour": 2}
    # The answer works once, so it is no way around the limit.
    again = await server.executor.execute("risk", {}, context)
    assert again.limits_left == {"*: 3 calls / hour": 1}


@limits("*: 1 usd / day")
async def test_parallel_calls_do_not_overdraw_a_budget_by_more_than_one(server: Server, place: str) -> None:
    """R-07, also after a restart."""
    results: list[ExecutionResult] = []

    async def one() -> None:
        results.append(await server.call("pay", usd=0.3))

    async with anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(one)
    spent = sum(result.usage.cost_usd for result in results if result.usage is not None)
    assert 0.9 <= spent <= 1.3
    after = build_limiter(["*: 1 usd / day"], open_store(place))
    left = (await Server(after).call("work")).limits_left.get("*: 1 usd / day", 0)
    assert left == pytest.approx(max(0.0, 1 - spent), abs=1e-6)
    paid = [each.usage.cost_usd for each in await after.totals(2) if each.tool == "pay"]
    assert sum(paid) == pytest.approx(spent)
    after.close()


@limits("*: 4 at once")
async def test_the_quiet_one_waits_little_however_much_another_sends(server: Server) -> None:
    """R-04: fifty times as many calls of another make its own at most two turns slower."""
    held_s = 0.02

    async def quiet(times: int) -> list[float]:
        taken = []
        for _ in range(times):
            start = time.monotonic()
            assert (await server.call("work", seconds=held_s)).is_success
            taken.append(time.monotonic() - start)
        return taken

    alone = statistics.median(await quiet(8))
    beside: list[float] = []
    ended = 0

    async def flood() -> None:
        nonlocal ended
        await server.call("work", who="flood", seconds=held_s)
        ended += 1

    async with anyio.create_task_group() as group:
        for _ in range(400):
            group.start_soon(flood)
        await anyio.sleep(0.05)
        beside = await quiet(8)
        assert ended < 400  # it was there all the time
        group.cancel_scope.cancel()
    # Without turns each would wait for the 400 in front of it: 100 times as long.
    assert statistics.median(beside) < 2.5 * alone + 0.05


@limits("*: 5 calls / hour")
async def test_a_store_that_fails_refuses_the_call_and_nothing_runs(server: Server, place: str) -> None:
    server.executor._admission._limiter.close()  # type: ignore[union-attr,attr-defined]
    refused = await server.call("work")
    assert refused.error_code is ErrorCode.UNAVAILABLE
    assert refused.usage is None


async def test_what_a_tool_calls_waits_for_places_that_the_tool_does_not_have() -> None:
    tools, running, most = ToolRegistry(), 0, 0

    @tools.register
    async def inner() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.01)
        running -= 1

    @tools.register
    async def outer() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(executor.execute, "inner")

    @tools.register
    async def again(depth: int) -> str:
        return "deep" if depth == 0 else (await executor.execute("again", {"depth": depth - 1})).result

    limits = ["inner: 2 at once", "again: 1 at once", "*: 1 at once", "* per principal: 1 at once"]
    executor = ToolExecutor(tools, limiter=build_limiter(limits))
    with anyio.fail_after(20):
        assert (await executor.execute("outer")).is_success
        assert most == 2
        assert (await executor.execute("again", {"depth": 5})).result == "deep"


async def test_a_task_that_outlives_its_call_has_none_of_its_places() -> None:
    tools, go_on, results = ToolRegistry(), anyio.Event(), []
    async with anyio.create_task_group() as group:

        @tools.register
        async def leaves_a_task() -> None:
            group.start_soon(later)

        @tools.register
        async def holds() -> None:
            await go_on.wait()

        async def later() -> None:
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(0.05):
                results.append(await executor.execute("holds"))
            go_on.set()

        executor = ToolExecutor(tools, limiter=build_limiter(["*: 1 at once"]))
        with anyio.fail_after(20):
            await executor.execute("leaves_a_task")
            assert (await executor.execute("holds")).is_success
    assert results == []

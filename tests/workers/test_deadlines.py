"""A deadline or a cancellation ends the work: its effect cannot happen later."""

from __future__ import annotations

import asyncio
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_tools.calling import Callee, Returned
from mcp_tools.types import CallContext
from mcp_tools.workers import IsolatedCallee
from tests.workers import functions
from tests.workers.conftest import Make, descendants, left_over, reached, settled

HERE = CallContext()
LONG = os.environ.get("MCP_TOOLS_LONG") == "1"
EFFECT_S = 0.8
LATE_S = 0.150
GENEROUS_S = LATE_S if LONG else 1.0  # what is asserted of each while other tests run; see the benchmark


async def begun_and_withdrawn(callee: IsolatedCallee | Callee, marker: Path) -> None:
    """Withdraw a call once its function runs."""
    async with anyio.create_task_group() as group:
        group.start_soon(callee.call, {"marker": str(marker), "seconds": EFFECT_S}, HERE)
        await reached(Path(f"{marker}.begun").exists)
        group.cancel_scope.cancel()


@pytest.mark.parametrize(
    "attacks", [functions.QUIET, *((each,) for each in functions.LOUD)], ids=lambda some: some[0].__name__
)
async def test_no_effect_after_a_cancellation(
    in_process: Make, tmp_path: Path, attacks: tuple[Callable[..., Any], ...]
) -> None:
    before = descendants()
    written: dict[str, list[bool]] = {}

    async def attack(function: Callable[..., Any]) -> None:
        callee = in_process(function)
        allowed, withdrawn = (tmp_path / f"{function.__name__}-{end}" for end in ("allowed", "withdrawn"))
        async with anyio.create_task_group() as group:
            group.start_soon(callee.call, {"marker": str(allowed), "seconds": EFFECT_S / 4}, HERE)
            await begun_and_withdrawn(callee, withdrawn)
        await anyio.sleep(EFFECT_S + 0.2)
        written[function.__name__] = [allowed.exists(), withdrawn.exists()]

    with anyio.fail_after(40):
        async with anyio.create_task_group() as group:
            for function in attacks:
                group.start_soon(attack, function)
    # What nothing ends comes to its effect, so the attack works; what is withdrawn does not.
    assert written == {function.__name__: [True, False] for function in attacks}
    # A worker that was allowed and a fresh one, each below a shim, and nothing that grows.
    assert len(descendants() - before) <= 4 * len(attacks)


async def test_a_thread_does_act_after_a_cancellation(tmp_path: Path) -> None:
    """What the tests above test for: without a worker, the effect comes."""
    with anyio.fail_after(20):
        await begun_and_withdrawn(Callee.of(functions.sleeping, None), tmp_path / "marker")
        await reached((tmp_path / "marker").exists)


@pytest.mark.parametrize(
    "attack",
    [functions.by_a_grandchild, functions.by_a_runaway, functions.by_a_shell],
    ids=lambda a: a.__name__,
)
async def test_nothing_runs_any_more_when_the_cancellation_goes_on(
    in_process: Make, tmp_path: Path, attack: Callable[..., Any]
) -> None:
    before = descendants()
    callee = in_process(attack)
    with anyio.fail_after(20):
        await begun_and_withdrawn(callee, tmp_path / "marker")
        callee.close()
    assert descendants() - before == set()


async def test_killing_the_group_alone_would_not_do(tmp_path: Path) -> None:
    """The grandchild gets away from what most pools do: end the process, or its group."""
    marker = tmp_path / "marker"
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        functions.by_a_grandchild(str(marker), 0.5)
        os._exit(0)
    await reached(Path(f"{marker}.begun").exists)
    os.killpg(child, 9)
    os.waitpid(child, 0)  # noqa: ASYNC222 - it is dead
    await reached(marker.exists)


async def test_a_task_that_is_cancelled_twice_ends_the_work_too(in_process: Make, tmp_path: Path) -> None:
    callee = in_process(functions.deaf)
    marker = tmp_path / "marker"
    task = asyncio.create_task(callee.call({"marker": str(marker), "seconds": EFFECT_S}, HERE))
    await reached(Path(f"{marker}.begun").exists)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await anyio.sleep(EFFECT_S + 0.2)
    assert not marker.exists()


async def test_a_slow_start_is_not_begun_again_by_each_call(in_process: Make) -> None:
    """A deadline shorter than the start of a worker would otherwise never be met."""
    callee = in_process(functions.add)
    with anyio.fail_after(20):
        for _ in range(1000):
            with anyio.move_on_after(0.01):
                assert await callee.call({"a": 1}, HERE) == Returned(2)
                break
        else:
            pytest.fail("no call ever found a worker")


async def timed_out(callee: IsolatedCallee, marker: Path) -> float:
    """Let a deadline strike while the function runs; returns how many seconds later the call was over."""
    deadline_s = math.inf

    async def strike(scope: anyio.CancelScope) -> None:
        nonlocal deadline_s
        await reached(Path(f"{marker}.begun").exists, within_s=20)
        scope.deadline = deadline_s = anyio.current_time() + 0.02

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(strike, scope)
            await callee.call({"marker": str(marker), "seconds": 60}, HERE)
        over_s = anyio.current_time()
    assert scope.cancelled_caught
    return over_s - deadline_s


async def test_a_thousand_timeouts(in_process: Make, tmp_path: Path) -> None:
    """Each ends in time, and nothing of it is left. 60 of them, or with MCP_TOOLS_LONG=1 all."""
    before = left_over()
    count = 1000 if LONG else 60
    kinds = (functions.sleeping, functions.spinning, functions.in_c_with_the_lock, functions.in_c_for_long)
    callees = [in_process(kind) for kind in kinds]
    for callee in callees:
        callee.warm()
    late_s = sorted(
        [await timed_out(callees[number % len(callees)], tmp_path / f"{number}") for number in range(count)]
    )
    p50, p99 = statistics.median(late_s), late_s[int(0.99 * len(late_s))]
    in_time = sum(late <= LATE_S for late in late_s)
    print(
        f"{count} timeouts, ms late: p50 {p50 * 1000:.1f}, p99 {p99 * 1000:.1f}, max {late_s[-1] * 1000:.1f}"
    )
    assert late_s[-1] < GENEROUS_S
    assert in_time >= 0.95 * count
    for callee in callees:
        callee.close()
    names = {path.name for path in tmp_path.iterdir()}  # noqa: ASYNC240
    assert names == {f"{number}.begun" for number in range(count)}  # all had begun, and none acted
    assert settled(lambda: left_over() == before), (before, left_over())

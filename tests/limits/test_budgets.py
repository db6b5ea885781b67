"""Budgets over every store: reserved before a call, settled after it."""

from __future__ import annotations

import random

import anyio
import pytest

from mcp_tools.limits import limiter as limiter_module
from mcp_tools.types import LimitRefusal, Tool, Usage
from tests.limits.calls import SEARCH, admitted, by, refused, run, tool
from tests.limits.conftest import Clock, OpenLimiter

PRICED = tool("priced", price_usd=0.3)
RULE = "*: 1 usd / hour"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls do not wait for others to end."""
    monkeypatch.setattr(limiter_module, "WAIT_FOR_OTHERS_S", 0.0)


async def test_a_priced_call_that_does_not_fit_is_refused_before_it_costs(limiter: OpenLimiter) -> None:
    one = limiter(RULE)
    for _ in range(3):
        await run(one, PRICED, cost_usd=0.3)
    refusal = await refused(one, PRICED)
    assert refusal.left[RULE] == pytest.approx(0.1)
    assert "0.1 of 1 usd left" in refusal.message
    assert "minutes" in refusal.message


async def test_what_a_call_used_replaces_what_it_reserved(limiter: OpenLimiter) -> None:
    one = limiter(RULE)
    await run(one, cost_usd=0.5)  # now 0.5 is what such calls use
    lease = await admitted(one)
    assert lease.left[RULE] == pytest.approx(0.0)
    await lease.settle(Usage(calls=1, cost_usd=0.1))
    assert lease.left[RULE] == pytest.approx(0.4)
    assert (await admitted(one, tool("free"))).left[RULE] == pytest.approx(0.0)


async def test_a_call_that_never_ran_gives_back_what_it_reserved(limiter: OpenLimiter) -> None:
    one = limiter(RULE)
    for _ in range(5):
        lease = await admitted(one, PRICED)
        await lease.cancel()
        assert lease.left[RULE] == pytest.approx(1.0)


async def test_parallel_calls_at_the_edge_are_over_by_at_most_one(limiter: OpenLimiter) -> None:
    """R-07. None of these calls says what it costs before it has ended."""
    one, draw = limiter("*: 1 usd / hour"), random.Random(3)
    spent, most_running, running = 0.0, 0, 0

    async def call() -> None:
        nonlocal spent, running, most_running
        found = await one.admit(SEARCH, by(), again=False)
        if isinstance(found, LimitRefusal):
            return
        running += 1
        most_running = max(running, most_running)
        await anyio.sleep(0.002)
        running -= 1
        cost = draw.uniform(0.08, 0.1)
        spent += cost
        await found.settle(Usage(calls=1, cost_usd=cost))

    await run(one, cost_usd=0.1)
    async with anyio.create_task_group() as group:
        for _ in range(40):
            group.start_soon(call)
    assert most_running > 2
    assert 0.9 - 0.1 <= spent <= 0.9 + 0.1


@pytest.mark.usefixtures("impatient")
async def test_the_first_call_of_a_tool_runs_alone(limiter: OpenLimiter) -> None:
    one = limiter(RULE)
    first = await admitted(one)
    refusal = await refused(one)
    assert refusal.retry_after_s == 1.0
    assert "still run" in refusal.message
    await first.settle(Usage(calls=1, cost_usd=0.01))
    await admitted(one)
    await admitted(one)


async def test_a_call_waits_for_the_first_one_to_end(limiter: OpenLimiter) -> None:
    one = limiter(RULE)
    first = await admitted(one)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(admitted, one)
            await anyio.sleep(0.05)
            await first.settle(Usage(calls=1, cost_usd=0.01))


@pytest.mark.usefixtures("impatient")
async def test_calls_with_a_price_run_beside_each_other_from_the_first(limiter: OpenLimiter) -> None:
    one = limiter(RULE)
    for _ in range(3):
        await admitted(one, PRICED)
    await refused(one, PRICED)


@pytest.mark.usefixtures("impatient")
async def test_a_tool_that_uses_nothing_is_not_held_up_by_others(limiter: OpenLimiter) -> None:
    one, free = limiter(RULE), tool("free")
    await run(one, free)
    await admitted(one)
    for _ in range(10):
        await admitted(one, free)


async def test_an_empty_budget_stops_all_its_tools_until_the_window_has_passed(
    limiter: OpenLimiter, clock: Clock
) -> None:
    one = limiter(RULE)
    await run(one, cost_usd=5)
    refusal = await refused(one, tool("free"))
    assert refusal.left[RULE] == 0
    clock.advance(refusal.retry_after_s or 0)
    await admitted(one)


async def test_a_budget_outlives_a_restart(limiter: OpenLimiter) -> None:
    await run(limiter(RULE), cost_usd=1)
    await refused(limiter(RULE))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("of", [SEARCH, PRICED], ids=["unknown cost", "known price"])
async def test_what_a_dead_process_reserved_is_not_lost_and_does_not_block(
    limiter: OpenLimiter, clock: Clock, of: Tool
) -> None:
    dead = limiter("*: 1 usd / day")
    await admitted(dead, of)
    clock.advance(of.timeout_seconds + 301)
    other = limiter("*: 1 usd / day")
    lease = await admitted(other, tool("another"))
    await lease.cancel()
    assert lease.left["*: 1 usd / day"] == pytest.approx(1 - of.price_usd)


@pytest.mark.parametrize(
    ("unit", "used"),
    [
        ("cpu_seconds", Usage(sandbox_cpu_s=7)),
        ("tokens", Usage(input_tokens=3, output_tokens=4)),
        ("input_tokens", Usage(input_tokens=7, output_tokens=400)),
        ("output_tokens", Usage(input_tokens=400, output_tokens=7)),
    ],
)
async def test_each_unit_counts_its_part_of_the_usage(limiter: OpenLimiter, unit: str, used: Usage) -> None:
    one = limiter(f"* per principal: 10 {unit} / day")
    lease = await admitted(one)
    await lease.settle(used)
    assert lease.left == {f"* per principal: 10 {unit} / day": 3}


async def test_a_lease_ends_once(limiter: OpenLimiter) -> None:
    lease = await admitted(limiter(RULE))
    await lease.settle(Usage(calls=1))
    with pytest.raises(RuntimeError, match="before"):
        await lease.cancel()


async def test_totals_are_kept_for_each_principal_and_tool(limiter: OpenLimiter) -> None:
    one = limiter()
    for _ in range(3):
        await run(one, cost_usd=0.25, input_tokens=5, output_tokens=7, sandbox_cpu_s=0.5)
    await run(one, PRICED, by("bob\udc80"), cost_usd=1)
    await (await admitted(one)).cancel()
    one.close()  # which notes everything
    found: dict[tuple[str, str], Usage] = {}
    for each in await limiter().totals(7):  # midnight may come in between
        pair = each.principal, each.tool
        found[pair] = found.get(pair, Usage()) + each.usage
    used = Usage(calls=3, cost_usd=0.75, input_tokens=15, output_tokens=21, sandbox_cpu_s=1.5)
    assert found == {
        ("ada", "search"): used,
        ("bob\\udc80", "priced"): Usage(calls=1, cost_usd=1),
    }

"""Rates over every store: exactly what is allowed, in any stretch of time, whoever reconnects."""

from __future__ import annotations

import random

import pytest

from tests.limits.calls import SEARCH, admitted, by, count, refused, run, tool
from tests.limits.conftest import Clock, OpenLimiter


async def test_a_window_lets_in_exactly_its_number(limiter: OpenLimiter) -> None:
    assert await count(limiter("*: 10 calls / minute"), 100) == 10


async def test_the_refusal_tells_a_model_what_to_do(limiter: OpenLimiter, clock: Clock) -> None:
    one = limiter("*: 2 calls / minute")
    first = await admitted(one)
    assert first.left == {"*: 2 calls / minute": 1}
    await run(one)
    refusal = await refused(one)
    assert refusal.left == {"*: 2 calls / minute": 0}
    assert refusal.retry_after_s is not None
    assert 60 <= refusal.retry_after_s <= 61.1
    assert "'*: 2 calls / minute'" in refusal.message
    assert "0 of 2 calls left" in refusal.message
    assert "try again in" in refusal.message
    clock.advance(refusal.retry_after_s)
    await admitted(one)


@pytest.mark.parametrize(
    ("rule", "most"), [("*: 20 calls / minute", 20), ("*: 20 calls / minute burst 5", 25)]
)
async def test_no_stretch_of_a_window_has_more_than_allowed(
    limiter: OpenLimiter, clock: Clock, rule: str, most: int
) -> None:
    """R-02: N at the end of one window and N at the start of the next is what fixed windows would allow."""
    one, draw = limiter(rule), random.Random(1)
    let_in: list[float] = []
    start = clock.ticks_s
    while clock.ticks_s < start + 240:
        for _ in range(draw.choice([1, 1, 3, 30])):
            if await count(one, 1):
                let_in.append(clock.ticks_s)
        clock.advance(draw.choice([0.01, 0.5, 2.0, 7.0]))
    for begin in let_in:
        assert sum(begin <= each < begin + 60 for each in let_in) <= most
    assert len(let_in) >= 20 * 4 * 0.9  # and little of it is wasted


async def test_a_bucket_refills_at_its_rate(limiter: OpenLimiter, clock: Clock) -> None:
    one = limiter("*: 60 calls / minute burst 3")
    assert await count(one, 10) == 3
    refusal = await refused(one)
    assert refusal.retry_after_s == pytest.approx(1.0, abs=0.01)
    clock.advance(2)
    assert await count(one, 10) == 2
    clock.advance(1_000)
    assert await count(one, 10) == 3


@pytest.mark.parametrize("rule", ["*: 5 calls / hour", "*: 5 calls / hour burst 5"])
async def test_the_count_outlives_a_restart(limiter: OpenLimiter, rule: str) -> None:
    assert await count(limiter(rule), 3) == 3
    assert await count(limiter(rule), 10) == 2


@pytest.mark.parametrize("rule", ["*: 5 calls / minute", "*: 5 calls / minute burst 5"])
@pytest.mark.parametrize("jump_s", [3_600.0, -3_600.0, 365 * 86_400.0, -365 * 86_400.0])
async def test_setting_the_wall_clock_gives_nothing_and_takes_nothing(
    limiter: OpenLimiter, clock: Clock, rule: str, jump_s: float
) -> None:
    """R-03. A process that saw the time before the jump is not fooled by it."""
    one = limiter(rule)
    assert await count(one, 5) == 5
    clock.wall_s += jump_s
    assert await count(one, 10) == 0
    clock.advance(62)
    assert await count(one, 10) == 5


@pytest.mark.parametrize("jump_s", [-3_600.0, -365 * 86_400.0])
async def test_a_clock_set_back_while_nobody_ran_locks_nobody_out(
    limiter: OpenLimiter, clock: Clock, jump_s: float
) -> None:
    assert await count(limiter("*: 5 calls / minute"), 5) == 5
    clock.wall_s += jump_s
    other = limiter("*: 5 calls / minute")
    assert await count(other, 10) == 0
    clock.advance(62)
    assert await count(other, 10) == 5


async def test_time_asleep_is_time(limiter: OpenLimiter, clock: Clock) -> None:
    one = limiter("*: 5 calls / minute")
    assert await count(one, 10) == 5
    clock.advance(8 * 3_600)  # the clock since boot goes on in suspension
    assert await count(one, 10) == 5


async def test_reconnecting_resets_no_principal(limiter: OpenLimiter) -> None:
    """R-05"""
    one = limiter(
        "* per principal: 3 calls / hour", "* per session: 2 calls / hour", "search: 7 calls / hour"
    )
    assert await count(one, 5, who=by("ada", "first")) == 2  # the session's limit
    assert await count(one, 5, who=by("ada", "second")) == 1  # the principal's
    assert await count(one, 5, who=by("ada", "third")) == 0
    assert await count(one, 5, who=by("bob", "first")) == 2  # another session, whatever its name
    assert await count(one, 5, who=by("bob", "second")) == 1
    assert await count(one, 5, who=by("eve", "first")) == 1  # the tool's
    assert await count(one, 5, of=tool("fetch"), who=by("eve", "first")) == 1


async def test_a_refused_call_takes_nothing_of_any_limit(limiter: OpenLimiter) -> None:
    one = limiter("*: 100 calls / hour", "* per principal: 1 call / hour")
    await admitted(one)
    assert (await refused(one)).left["*: 100 calls / hour"] == 99
    assert (await admitted(one, who=by("bob"))).left["*: 100 calls / hour"] == 98


async def test_per_tool_counts_each_tool(limiter: OpenLimiter) -> None:
    one = limiter("* per tool: 2 calls / hour")
    assert await count(one, 5) == 2
    assert await count(one, 5, of=tool("fetch")) == 2


async def test_an_unknown_tool_counts_for_the_principal(limiter: OpenLimiter) -> None:
    one = limiter("* per principal: 2 calls / hour", "* per tool: 1 call / hour", "*: 1 usd / day")
    await (await admitted(one, None)).cancel()
    await (await admitted(one, None)).cancel()  # a call that never ran keeps its token
    await refused(one, None)


async def test_coming_again_with_an_answer_takes_no_token(limiter: OpenLimiter) -> None:
    one = limiter("*: 1 call / hour", "*: 1 call / hour burst 1", "*: 5 usd / day")
    await (await admitted(one)).cancel()
    lease = await admitted(one, again=True)
    assert lease.left["*: 1 call / hour"] == 0
    await refused(one)


async def test_a_limit_that_is_raised_does_not_begin_anew(limiter: OpenLimiter) -> None:
    assert await count(limiter("*: 2 calls / hour"), 5) == 2
    assert await count(limiter("*: 5 calls / hour"), 5) == 3
    assert await count(limiter("*: 2 calls / hour"), 5) == 0


async def test_a_tool_outside_the_pattern_is_free(limiter: OpenLimiter) -> None:
    one = limiter("search*: 1 call / day")
    assert await count(one, 20, of=tool("read")) == 20
    assert await count(one, 20, of=SEARCH) == 1


async def test_odd_names_are_names(limiter: OpenLimiter) -> None:
    one = limiter("* per principal and session: 1 call / day")
    for name in ("", "\udc80", "a" * 100_000, "a\x00b", "'; DROP TABLE accounts; --"):
        assert await count(one, 3, who=by(name, name)) == 1

"""When a provider is asked again."""

from __future__ import annotations

import pytest

from mcp_tools.builtin.cache import Cache
from mcp_tools.builtin.search.turns import LONGEST_ASKED_REST_S, LONGEST_REST_S, REJECTED_REST_S, Turns
from mcp_tools.builtin.search.types import Failed, Kind


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def down(after: float | None = None) -> Failed:
    return Failed(Kind.UNAVAILABLE, "is down", retry_after_s=after)


async def test_each_failure_makes_it_rest_longer_up_to_a_bound() -> None:
    clock, rests = Clock(), []
    turns = Turns(0, clock=clock)
    for _ in range(10):
        await turns.take()
        rest = turns.failed(down())
        assert rest is not None
        with pytest.raises(Failed, match="rests") as raised:
            await turns.take()
        assert raised.value.retry_after_s == rest and raised.value.is_ours
        rests.append(rest)
        clock.now += rest
    assert rests == [5, 10, 20, 40, 80, 160, 320, LONGEST_REST_S, LONGEST_REST_S, LONGEST_REST_S]
    await turns.take()
    turns.succeeded()
    assert turns.failed(down()) == 5


async def test_what_it_asks_for_is_kept_within_a_bound() -> None:
    clock = Clock()
    turns = Turns(0, clock=clock)
    assert turns.failed(down(2)) == 2
    clock.now += 2
    assert turns.failed(down(2)) == 10, "a provider that fails again and again rests longer than it asks for"
    clock.now += 10
    assert turns.failed(down(1e12)) == LONGEST_ASKED_REST_S


async def test_zero_seconds_are_no_storm() -> None:
    assert Turns(0, clock=Clock()).failed(down(0)) == 1


async def test_failures_that_were_under_way_together_count_once() -> None:
    turns = Turns(0, clock=(clock := Clock()))
    for _ in range(8):
        turns.failed(down())
    clock.now += LONGEST_REST_S
    assert turns.failed(down()) == 10


async def test_our_own_refusal_is_no_failure_of_the_provider() -> None:
    turns = Turns(0, clock=Clock())
    turns.failed(Failed(Kind.RATE_LIMITED, "many wait", is_ours=True))
    await turns.take()


async def test_a_wrong_key_is_not_tried_again_for_minutes() -> None:
    assert Turns(0, clock=Clock()).failed(Failed(Kind.REJECTED, "no")) == REJECTED_REST_S


async def test_a_long_queue_is_refused() -> None:
    turns = Turns(10, clock=Clock())
    await turns.take()
    with pytest.raises(Failed, match="many searches") as raised:
        await turns.take()
    assert raised.value.retry_after_s == 10 and raised.value.kind is Kind.RATE_LIMITED


def test_kept_answers_are_bounded_and_expire() -> None:
    clock = Clock()
    cache: Cache[int] = Cache(seconds=10, entries=2, clock=clock)
    for number in range(3):
        cache.put(number, number)
    assert [cache.get(number) for number in range(3)] == [None, 1, 2] and len(cache) == 2
    clock.now += 10
    assert cache.get(1) is None
    off: Cache[int] = Cache(seconds=0, entries=2)
    off.put(1, 1)
    assert off.get(1) is None

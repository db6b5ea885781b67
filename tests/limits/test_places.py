"""Places: never more than there are, fair between principals, given back however a call ends."""

from __future__ import annotations

import threading
from collections import Counter

import anyio
import anyio.lowlevel
import pytest

from mcp_tools.limits import StoreLimiter, build_limiter, places
from mcp_tools.types import CallContext, Tool
from tests.limits.calls import SEARCH, admitted, by, refused, tool


class Calls:
    """Calls that hold a place until they are told to end."""

    def __init__(self, limiter: StoreLimiter) -> None:
        self.limiter = limiter
        self.running: list[str] = []
        self.order: list[str] = []
        self.most = 0
        self._end = anyio.Semaphore(0)

    async def hold(self, who: str, of: Tool = SEARCH) -> None:
        async with self.limiter.slot(of, by(who)):
            self.running.append(who)
            self.order.append(who)
            self.most = max(self.most, len(self.running))
            try:
                await self._end.acquire()
            finally:
                self.running.remove(who)

    async def end(self, count: int) -> None:
        for _ in range(count):
            self._end.release()
        await anyio.wait_all_tasks_blocked()


async def test_never_more_run_than_there_are_places() -> None:
    calls = Calls(build_limiter(["*: 3 at once"]))
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(calls.hold, "ada")
            await anyio.wait_all_tasks_blocked()
            assert len(calls.running) == 3
            await calls.end(20)
    assert calls.most == 3


async def test_whoever_floods_leaves_others_their_turn() -> None:
    """R-04: fifty times as many calls, and half of the places."""
    calls = Calls(build_limiter(["*: 2 at once"]))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(500):
                group.start_soon(calls.hold, "flood")
            await anyio.wait_all_tasks_blocked()
            for _ in range(10):
                group.start_soon(calls.hold, "ada")
            await anyio.wait_all_tasks_blocked()
            await calls.end(20)
            since = Counter(calls.order[2:22])
            assert since["ada"] >= 9
            await calls.end(490)


async def test_of_one_principal_the_oldest_call_comes_first() -> None:
    limiter, order = build_limiter(["*: 1 at once"]), []

    async def call(number: int) -> None:
        async with limiter.slot(SEARCH, by()):
            order.append(number)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(call, number)
            await anyio.lowlevel.checkpoint()
    assert order == sorted(order)


async def test_a_call_that_waits_for_one_tool_holds_up_no_other() -> None:
    calls = Calls(build_limiter(["search: 1 at once", "*: 3 at once"]))
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(calls.hold, "ada")
            await anyio.wait_all_tasks_blocked()
            group.start_soon(calls.hold, "ada", tool("fetch"))
            await anyio.wait_all_tasks_blocked()
            assert len(calls.running) == 2
            await calls.end(4)
    assert calls.most == 2


async def test_places_of_each_principal_are_its_own() -> None:
    calls = Calls(build_limiter(["* per principal: 1 at once"]))
    async with anyio.create_task_group() as group:
        for name in ("ada", "ada", "bob", "bob"):
            group.start_soon(calls.hold, name)
        await anyio.wait_all_tasks_blocked()
        assert sorted(calls.running) == ["ada", "bob"]
        await calls.end(4)


async def test_a_cancelled_call_frees_its_place_and_leaves_the_line() -> None:
    """R-06"""
    calls = Calls(build_limiter(["*: 1 at once"]))
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            first, second = anyio.CancelScope(), anyio.CancelScope()

            async def within(scope: anyio.CancelScope, who: str) -> None:
                with scope:
                    await calls.hold(who)

            group.start_soon(within, first, "first")
            await anyio.wait_all_tasks_blocked()
            group.start_soon(within, second, "second")
            group.start_soon(calls.hold, "third")
            await anyio.wait_all_tasks_blocked()
            second.cancel()
            await anyio.wait_all_tasks_blocked()
            first.cancel()
            await anyio.wait_all_tasks_blocked()
            assert calls.running == ["third"]
            await calls.end(1)
    assert calls.order == ["first", "third"]


async def test_a_call_cancelled_in_the_moment_of_its_turn_hands_the_place_on() -> None:
    limiter = build_limiter(["*: 1 at once"])

    async def wait(scope: anyio.CancelScope) -> None:
        with scope:
            async with limiter.slot(SEARCH, by()):
                pass

    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()
        async with limiter.slot(SEARCH, by()):
            group.start_soon(wait, scope)
            await anyio.wait_all_tasks_blocked()
        scope.cancel()  # the place was given to the waiter, which has not woken up yet
    with anyio.fail_after(5):
        async with limiter.slot(SEARCH, by()):
            pass


async def test_a_failing_call_frees_its_place() -> None:
    limiter = build_limiter(["*: 1 at once"])
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with limiter.slot(SEARCH, by()):
                raise ZeroDivisionError
    with anyio.fail_after(5):
        async with limiter.slot(SEARCH, by()):
            pass


async def test_a_line_that_is_too_long_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_WAITING_OF_ONE", 3)
    limiter = build_limiter(["*: 1 at once"])
    let_go = anyio.Event()

    async def whole(context: CallContext) -> None:
        lease = await admitted(limiter, who=context)
        async with limiter.slot(SEARCH, context):
            await let_go.wait()
        await lease.cancel()

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(whole, by())
            await anyio.wait_all_tasks_blocked()
        refusal = await refused(limiter)
        assert "too many calls wait" in refusal.message
        assert refusal.retry_after_s == 1.0
        await (await admitted(limiter, who=by("bob"))).cancel()
        let_go.set()
    await (await admitted(limiter)).cancel()


async def test_calls_on_their_way_count_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_WAITING_OF_ONE", 3)
    limiter = build_limiter(["*: 1 at once"])
    leases = [await admitted(limiter) for _ in range(3)]
    await refused(limiter)
    await leases[0].cancel()
    await admitted(limiter)


def test_several_event_loops_share_the_places() -> None:
    limiter = build_limiter(["*: 2 at once"])
    lock, running, most = threading.Lock(), 0, 0

    async def call() -> None:
        nonlocal running, most
        async with limiter.slot(SEARCH, by(threading.current_thread().name)):
            with lock:
                running += 1
                most = max(most, running)
            await anyio.sleep(0.001)
            with lock:
                running -= 1

    async def many() -> None:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(call)

    threads = [
        threading.Thread(target=anyio.run, args=(many,), kwargs={"backend": backend})
        for backend in ("asyncio", "trio", "asyncio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert (running, most) == (0, 2)

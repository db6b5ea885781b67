"""A call that comes again with the same key does not do its work again."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mcp_tools import (
    CallContext,
    ErrorCode,
    ExecutionResult,
    ToolError,
    ToolExecutor,
    ToolRegistry,
)
from mcp_tools.once import KEEP_S, MAX_KEPT_PER_PRINCIPAL
from mcp_tools.types import Approval


class Counter:
    """A tool that counts its effects, and ends when it is told to."""

    def __init__(self) -> None:
        self.effects: list[int] = []
        self.begun, self.may_end = anyio.Event(), anyio.Event()
        self.now = 0.0
        self.records: list[ExecutionResult] = []
        self.registry = ToolRegistry()
        self.executor = ToolExecutor(self.registry, hooks=[self.records.append], clock=lambda: self.now)
        self.registry.register("work")(self.work)
        self.registry.register("ask", requires_confirmation=True)(self.work)

    async def work(self, n: int = 0) -> int:
        self.effects.append(n)
        self.begun.set()
        await self.may_end.wait()
        if n < 0:
            raise ToolError("negative")
        return len(self.effects)

    async def send(self, key: str | None, n: int = 0, **context: Any) -> ExecutionResult:
        with anyio.fail_after(10):
            caller = CallContext(idempotency_key=key, **context)
            return await self.executor.execute("work", {"n": n}, caller)


@pytest.fixture
def counter() -> Counter:
    return Counter()


async def test_without_a_key_every_call_is_an_effect(counter: Counter) -> None:
    counter.may_end.set()
    assert [(await counter.send(None)).result for _ in range(3)] == [1, 2, 3]


async def test_a_call_joins_the_one_that_runs(counter: Counter) -> None:
    results: list[ExecutionResult] = []

    async def send() -> None:
        results.append(await counter.send("k"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await counter.begun.wait()
        for _ in range(20):
            tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        counter.may_end.set()
    assert counter.effects == [0]
    assert [result.result for result in results] == [1] * 21
    assert sum(result.joined for result in results) == 20
    assert len({result.call_id for result in results}) == 21
    assert len(counter.records) == 21
    assert [result.usage for result in results if result.joined] == [None] * 20


async def test_twenty_at_once_are_one_effect(counter: Counter) -> None:
    counter.may_end.set()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(counter.send, "k")
    assert counter.effects == [0]


async def test_one_that_just_ended_is_joined_also_when_it_failed(counter: Counter) -> None:
    counter.may_end.set()
    assert (await counter.send("good")).result == (await counter.send("good")).result == 1
    first, second = await counter.send("bad", -1), await counter.send("bad", -1)
    assert first.error_code is second.error_code is ErrorCode.TOOL_ERROR
    assert (second.error, second.joined) == ("negative", True)
    assert counter.effects == [0, -1]
    counter.now = KEEP_S
    assert (await counter.send("good")).result == 3


async def test_other_arguments_callers_and_registrations_are_other_effects(counter: Counter) -> None:
    counter.may_end.set()
    await counter.send("k")
    await counter.send("k", 1)
    await counter.send("k", principal="bob")
    await counter.send("k", session_id="a client that came back")
    assert counter.effects == [0, 1, 0]
    counter.registry.remove("work")
    counter.registry.register("work")(counter.work)
    await counter.send("k")
    assert counter.effects == [0, 1, 0, 0]


async def test_one_that_was_withdrawn_while_it_ran_is_not_repeated(counter: Counter) -> None:
    """What it did by then is not known; and a function in a thread goes on."""
    joined: list[ExecutionResult] = []

    async def join() -> None:
        joined.append(await counter.send("k"))

    async with anyio.create_task_group() as others, anyio.create_task_group() as tasks:
        tasks.start_soon(counter.send, "k")
        await counter.begun.wait()
        others.start_soon(join)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert (joined[0].error_code, joined[0].joined) == (ErrorCode.TOOL_ERROR, False)
    counter.may_end.set()
    for result in (joined[0], await counter.send("k")):
        assert "was withdrawn while it ran" in (result.error or "")
        assert result.error_code is ErrorCode.TOOL_ERROR
    assert counter.effects == [0]
    assert (await counter.send("another")).result == 2


async def test_a_result_that_is_kept_no_more_is_not_made_again(counter: Counter) -> None:
    counter.may_end.set()
    for number in range(MAX_KEPT_PER_PRINCIPAL + 1):
        await counter.send(f"k{number}")
    again = await counter.send("k0")
    assert "kept no more" in (again.error or "")
    assert (await counter.send("k1")).joined
    assert len(counter.effects) == MAX_KEPT_PER_PRINCIPAL + 1


async def test_more_keys_than_are_remembered_are_refused(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_tools.once.MAX_NAMES_PER_PRINCIPAL", 3)
    counter.may_end.set()
    codes = [(await counter.send(f"k{number}")).error_code for number in range(4)]
    assert codes == [None, None, None, ErrorCode.RATE_LIMITED]
    assert (await counter.send("k3", principal="bob")).is_success
    assert (await counter.send("k0")).joined
    counter.now = KEEP_S
    assert (await counter.send("k3")).is_success


async def test_who_floods_the_table_keeps_no_newcomer_out(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_tools.once.MAX_NAMES_PER_PRINCIPAL", 10)
    monkeypatch.setattr("mcp_tools.once.MAX_NAMES", 30)
    counter.may_end.set()
    for principal in ("a", "b", "c"):
        for number in range(10):
            assert (await counter.send(f"k{number}", principal=principal)).is_success
    assert (await counter.send("k10", principal="a")).error_code is ErrorCode.RATE_LIMITED
    for number in range(7):
        assert (await counter.send(f"k{number}", principal="new")).is_success
    # Four share the table now, and none of them has another's calls forgotten for its own.
    once = counter.executor._once
    assert sorted(once._names.values()) == [7, 7, 8, 8]
    assert (len(once._ended), once._ended.most) == (30, 8)
    assert (await counter.send("k0", principal="new")).joined
    assert (await counter.send("k9", principal="a")).joined
    assert (await counter.send("k0", principal="one more")).is_success
    assert len(once._ended) == 30


async def test_a_call_that_runs_is_never_forgotten(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_tools.once.MAX_NAMES", 1)
    async with anyio.create_task_group() as group:
        group.start_soon(counter.send, "k")
        await counter.begun.wait()
        assert (await counter.send("other", principal="bob")).error_code is ErrorCode.RATE_LIMITED
        counter.may_end.set()
    assert (await counter.send("k")).joined
    assert (await counter.send("other", principal="bob")).is_success


async def test_a_question_is_no_effect_and_its_yes_is_one(counter: Counter) -> None:
    counter.may_end.set()

    async def send(**context: Any) -> ExecutionResult:
        return await counter.executor.execute("ask", {}, CallContext(idempotency_key="k", **context))

    first, second = await send(), await send()
    assert first.confirmation is not None
    assert second.confirmation is not None
    assert first.confirmation.id != second.confirmation.id
    done = await send(approval=Approval(confirmation_id=first.confirmation.id))
    assert (done.result, done.confirmation_id) == (1, first.confirmation.id)
    again = await send(approval=Approval(confirmation_id=first.confirmation.id))
    assert (again.result, again.joined) == (1, True)
    assert counter.effects == [0]


async def test_nothing_is_left_of_what_is_forgotten(counter: Counter) -> None:
    counter.may_end.set()
    for number in range(300):
        await counter.send(f"k{number}", principal=str(number % 7))
    counter.now = KEEP_S
    await counter.send("last", principal="ana")
    once = counter.executor._once
    ended = once._ended
    assert (len(once._running), len(ended), len(once._names)) == (0, 1, 1)
    assert (list(ended._of), ended._holders, ended.most) == (["ana"], {1: {"ana": None}}, 1)

"""How calls begin, wait, are cancelled and end with the sandbox; what of arguments is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
import trio

from sandbox import (
    EndedBy,
    Sandbox,
    SandboxBusy,
    SandboxClosed,
    SandboxConfigError,
)
from tests.contract.backends import AnySandbox, Backend, Boxes

Run = Callable[[Callable[[], Awaitable[Any]]], Any]
both_loops = pytest.mark.parametrize(
    "run", [lambda main: asyncio.run(main()), trio.run], ids=["asyncio", "trio"]
)


def test_it_is_a_sandbox(box: AnySandbox, backend: Backend) -> None:
    def takes(sandbox: Sandbox) -> Sandbox:
        return sandbox

    assert takes(box) is box
    assert box.config.max_memory_mb == 64
    fresh = backend.make()
    assert fresh.level is None, "nothing ran yet"
    fresh.close()


# --- Sync and async ---------------------------------------------------------------------------


@both_loops
def test_a_call_can_be_awaited_on_any_loop_and_several_of_them(run: Run, box: AnySandbox) -> None:
    async def main() -> None:
        with anyio.fail_after(20):
            for session in (None, "of a loop"):
                result = await box.execute("print('a')\n7", session=session)
                assert (result.stdout, result.value) == ("a\n", "7")

    for _ in range(2):
        run(main)
    box.end_session("of a loop")
    assert box.execute_sync("8").value == "8"


async def test_the_loop_runs_on_while_a_call_does(box: AnySandbox) -> None:
    beats = 0
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:

            async def beat() -> None:
                nonlocal beats
                while True:
                    beats += 1
                    await anyio.sleep(0.01)

            group.start_soon(beat)
            await box.execute("import time\ntime.sleep(0.5)")
            group.cancel_scope.cancel()
    assert beats > 20


async def test_both_context_managers_close(backend: Backend) -> None:
    with anyio.fail_after(30):
        async with backend.make(pool_size=1) as box:
            assert (await box.execute("1")).value == "1"
        with pytest.raises(SandboxClosed):
            await box.execute("1")
    with backend.make(pool_size=1) as box:
        pass
    with pytest.raises(SandboxClosed):
        box.execute_sync("1")


# --- At once, in turn -------------------------------------------------------------------------


def test_calls_run_at_once_up_to_the_limit_and_more_wait(boxes: Boxes) -> None:
    """D-26."""
    box = boxes(max_concurrent_calls=2)
    box.execute_sync("1")
    code = "import time\nbegin = time.monotonic()\ntime.sleep(0.4)\nbegin, time.monotonic()"
    with ThreadPoolExecutor(5) as pool:
        spans = [eval(each.value or "") for each in pool.map(lambda _: box.execute_sync(code), range(5))]
    together = [sum(begin < at < end for begin, end in spans) + 1 for at, _ in spans]
    assert max(together) == 2


def test_a_call_without_a_turn_in_time_is_refused(backend: Backend) -> None:
    with (
        backend.make(max_concurrent_calls=1, pool_size=1, queue_seconds=1.5) as box,
        ThreadPoolExecutor(1) as pool,
    ):
        box.execute_sync("1")
        first = pool.submit(box.execute_sync, "import time\ntime.sleep(3)\n'first'")
        time.sleep(0.3)
        began_s = time.monotonic()
        with pytest.raises(SandboxBusy, match="try again"):
            box.execute_sync("1")
        assert 1 < time.monotonic() - began_s < 2.5
        assert first.result(timeout=20).value == "'first'"


def test_calls_at_once_keep_their_results_apart(box: AnySandbox) -> None:
    def call(number: int) -> bool:
        result = box.execute_sync(f"print({number} * 1000)\n{number}", files={"mine": str(number)})
        return (result.stdout, result.value) == (f"{number * 1000}\n", str(number))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(8)))


def test_two_sandboxes_do_not_see_each_other(backend: Backend, box: AnySandbox) -> None:
    """D-22."""
    with backend.make(pool_size=1) as other:
        other.execute_sync("x = 1", session="same")
        result = box.execute_sync("'x' in globals()", session="same")
        assert (result.value, result.session_started) == ("False", True)
        box.end_session("same")
        assert other.execute_sync("x", session="same").value == "1"


# --- Cancelling and closing -------------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("session", [None, "s"])
def test_a_cancelled_call_ends_at_once_and_a_session_is_as_it_was(
    session: str | None, run: Run, box: AnySandbox
) -> None:
    async def main() -> None:
        with anyio.fail_after(30):
            await box.execute("kept = 1", session=session)
            began_s = time.monotonic()
            with anyio.move_on_after(0.4) as scope:
                code = "kept = 2\nimport os, time\nfor _ in range(3): os.fork()\ntime.sleep(60)"
                await box.execute(code, session=session)
            assert scope.cancelled_caught
            assert time.monotonic() - began_s < 2.5
            result = await box.execute("kept" if session else "print('free')", session=session)
            assert (result.value, result.stdout) == (("1", "") if session else (None, "free\n"))
            assert not result.session_started

    run(main)
    box.end_session("s")


def test_closing_ends_calls_in_flight(backend: Backend) -> None:
    box = backend.make(pool_size=1)
    box.execute_sync("import time", session="s")
    box.execute_sync("1")
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(box.execute_sync, "import time\ntime.sleep(60)", session=session)
            for session in (None, "s")
        ]
        time.sleep(0.5)
        began_s = time.monotonic()
        box.close()
        for call in calls:
            with pytest.raises(SandboxClosed):
                call.result(timeout=10)
        assert time.monotonic() - began_s < 5
    for session in (None, "s"):
        with pytest.raises(SandboxClosed):
            box.execute_sync("1", session=session)
    assert box.end_session("s") is False
    box.close()


def test_closing_leaves_no_thread_of_ours(backend: Backend) -> None:
    before = set(threading.enumerate())
    box = backend.make(pool_size=1)
    box.execute_sync("1", session="s")
    box.execute_sync("1")
    box.close()
    end_s = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert left == set()


# --- Arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"code": 5}, "code"),
        ({"code": "x" * (1 << 20) + "xx"}, "code"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
        ({"files": {"../up": "x"}}, "files"),
        ({"files": {"/etc/passwd": "x"}}, "files"),
        ({"files": {"a": 5}}, "files"),
        ({"files": {"a": bytes((16 << 20) + 1)}}, "files"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_arguments_that_make_no_sense_are_refused_and_nothing_runs(
    arguments: dict[str, Any], field: str, box: AnySandbox
) -> None:
    given = {"code": "print('ran')", **arguments}
    with pytest.raises(SandboxConfigError) as refused:
        box.execute_sync(**given)
    assert refused.value.field == field
    with pytest.raises(SandboxConfigError), anyio.fail_after(10):
        await box.execute(**given)


def test_how_a_call_ended_is_not_taken_from_its_own_words(box: AnySandbox) -> None:
    assert box.execute_sync("raise TimeoutError").ended_by is EndedBy.EXCEPTION
    code = """
import os
for fd in range(3, 64):
    try: os.write(fd, b"\\xff" * 64)
    except OSError: pass
os._exit(5)
"""
    result = box.execute_sync(code)
    assert (result.success, result.ended_by, result.return_code) == (False, EndedBy.EXIT, 5)

"""On an event loop: a cancelled call has ended before its cancellation goes on, and limits need no loop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from sandbox import EndedBy, PythonSandbox
from tests.sandbox.life.conftest import Make, started
from tests.sandbox.life.family import eventually, open_descriptors, the_zygote

# Every process of the tree has the lock; it is free once the last one is gone.
TREE = """
import fcntl, os, signal, time
held = open("/work/held", "w")
fcntl.flock(held, fcntl.LOCK_EX)
for number in range(1, 60):
    if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
        signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            pass
os.rename("/work/held", "/work/holding")
time.sleep(60)
"""

BEATS = """
import os, time
while True:
    with open("/work/beat", "w") as file:
        file.write(str(time.monotonic()))
    os.rename("/work/beat", "/work/last beat")
    time.sleep(0.005)
"""

Run = Callable[[Callable[[], Awaitable[Any]]], Any]
both_loops = pytest.mark.parametrize(
    "run", [lambda main: asyncio.run(main()), trio.run], ids=["asyncio", "trio"]
)


def is_free(folder: Path) -> bool:
    with (folder / "holding").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.fixture
def tree(make: Make, tmp_path: Path) -> PythonSandbox:
    tmp_path.chmod(0o777)
    return started(make(working_dir=str(tmp_path)))


async def until(check: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not check():  # noqa: ASYNC110 - it is code in the sandbox that this waits for
            await anyio.sleep(0.002)


@both_loops
@pytest.mark.parametrize("session", [None, "a"])
def test_the_tree_is_dead_before_the_cancellation_goes_on(
    run: Run, tree: PythonSandbox, tmp_path: Path, session: str | None
) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: tree.execute(TREE, session=session))
                await until((tmp_path / "holding").exists)
                assert not is_free(tmp_path)
                began_s = time.monotonic()
                scope.cancel()
        assert is_free(tmp_path)
        assert time.monotonic() - began_s < 0.5
        assert (await tree.execute("print(1)", session=session)).stdout == "1\n"

    run(main)


async def test_a_cancelled_task_of_asyncio_is_dead_too(tree: PythonSandbox, tmp_path: Path) -> None:
    task = asyncio.create_task(tree.execute(TREE))
    await until((tmp_path / "holding").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_free(tmp_path)


@both_loops
@pytest.mark.parametrize("session", [None, "a"])
def test_cancelling_at_any_moment_leaves_the_sandbox_as_it_was(
    run: Run, make: Make, session: str | None
) -> None:
    box = started(make(max_sessions=1))
    box.execute_sync("x = 0", session="a")
    zygote = the_zygote()
    assert eventually(lambda: len(zygote.children()) == 3)
    chance = random.Random(5)
    before: list[int] = []

    async def main() -> None:
        for number in range(24):
            code = ("import time; time.sleep(30)", "while True: pass", "y = 1")[number % 3]
            delay_s = chance.uniform(0, 0.012)
            with anyio.move_on_after(delay_s):
                await box.execute(code, session=session)
            began_s = time.monotonic()
            answer = await box.execute("print(x)" if session else "print(0)", session=session)
            assert (answer.stdout, answer.session_started) == ("0\n", False), (number, delay_s)
            assert time.monotonic() - began_s < 1.5
            if number == 2:
                before.append(open_descriptors())
        assert open_descriptors() <= before[0]

    run(main)
    assert eventually(lambda: len(zygote.children()) == 3)
    assert the_zygote() == zygote


@pytest.mark.parametrize("session", [None, "a"])
async def test_the_code_of_a_call_that_was_cancelled_at_once_never_runs(
    tree: PythonSandbox, tmp_path: Path, session: str | None
) -> None:
    """Also not later, by a process that finds its request."""
    await tree.execute("x = 1", session=session)
    for number in range(20):
        task = asyncio.create_task(
            tree.execute(f"open('/work/{number}', 'w')\nwhile True: pass", session=session)
        )
        for _ in range(number % 4 + 2):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        seen = set(os.listdir(tmp_path))
        assert (await tree.execute("print(1)", session=session)).stdout == "1\n"
        assert set(os.listdir(tmp_path)) == seen


@both_loops
def test_one_who_stops_waiting_for_a_child_takes_none_with_him(run: Run, make: Make) -> None:
    box = started(make(max_concurrent_calls=1, pool_size=1))
    chance = random.Random(3)

    async def main() -> None:
        for _ in range(10):
            async with anyio.create_task_group() as group:
                group.start_soon(box.execute, "import time; time.sleep(0.02)")
                for _ in range(3):

                    async def impatient() -> None:
                        with anyio.move_on_after(chance.uniform(0.0, 0.06)):
                            await box.execute("")

                    group.start_soon(impatient)
            began_s = time.monotonic()
            assert (await box.execute("print(1)")).stdout == "1\n"
            assert time.monotonic() - began_s < 1.0

    run(main)


@both_loops
def test_a_limit_holds_while_the_event_loop_is_blocked(run: Run, tree: PythonSandbox, tmp_path: Path) -> None:
    async def main() -> None:
        results = []

        async def call() -> None:
            results.append(await tree.execute(BEATS, timeout_seconds=0.4))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await until((tmp_path / "last beat").exists)
            began_s = time.monotonic()
            time.sleep(1.2)  # noqa: ASYNC251 - this is the point
        assert results[0].ended_by is EndedBy.TIME
        assert float((tmp_path / "last beat").read_text()) - began_s < 0.4 + 0.2

    run(main)


def test_one_sandbox_serves_one_event_loop_after_another(box: PythonSandbox) -> None:
    zygote = the_zygote()
    assert asyncio.run(box.execute("x = 1", session="a")).success

    async def on_trio() -> str:
        return (await box.execute("print(x)", session="a")).stdout

    assert trio.run(on_trio) == "1\n"
    assert asyncio.run(box.execute("print(x)", session="a")).stdout == "1\n"
    assert the_zygote() == zygote


@both_loops
def test_the_context_manager_closes(run: Run, make: Make) -> None:
    async def main() -> None:
        async with make() as box:
            assert (await box.execute("print(1)")).stdout == "1\n"
            zygote = the_zygote()
        assert zygote.is_gone

    run(main)


async def test_a_loop_that_ends_with_calls_in_flight_ends_them(tree: PythonSandbox, tmp_path: Path) -> None:
    def other_loop() -> None:
        async def main() -> None:
            task = asyncio.create_task(tree.execute(TREE))
            await until((tmp_path / "holding").exists)
            assert not task.done()

        asyncio.run(main())

    await asyncio.to_thread(other_loop)
    assert is_free(tmp_path)

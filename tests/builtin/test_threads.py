"""File work runs in threads of its own; a disk that never answers stops only those who wait for it."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest

from mcp_tools.builtin.workspace.threads import Threads, Withdrawn, Work
from mcp_tools.errors import ToolError

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


async def stuck_call(threads: Threads, disk: threading.Event) -> None:
    """A call that gives up on a disk that does not answer."""
    with anyio.move_on_after(0.02):
        await threads.run(lambda _: disk.wait(30))


@BACKENDS
def test_a_stuck_disk_ends_in_refusals_and_leaves_other_threads_free(backend: str) -> None:
    disk = threading.Event()

    async def scenario() -> None:
        threads = Threads()
        try:
            with anyio.fail_after(20):
                refused: list[BaseException] = []
                while not refused:
                    try:
                        async with anyio.create_task_group() as group:
                            for _ in range(16):
                                group.start_soon(stuck_call, threads, disk)
                    except* ToolError as errors:
                        refused += errors.exceptions
                assert "does not answer" in str(refused[0])
                # Everybody else's threads are free.
                assert await anyio.to_thread.run_sync(lambda: "free") == "free"
                disk.set()
                while True:  # and when the disk is back, so are we
                    try:
                        assert await threads.run(lambda _: "back") == "back"
                        return
                    except ToolError:
                        await anyio.sleep(0.01)
        finally:
            disk.set()

    anyio.run(scenario, backend=backend)


async def test_a_cancelled_change_that_has_not_begun_never_does() -> None:
    threads, may_go_on, ended = Threads(), threading.Event(), threading.Event()
    outcome: list[str] = []

    def change(work: Work) -> None:
        try:
            may_go_on.wait(10)
            work.begin_change()
            outcome.append("changed")
        except Withdrawn:
            outcome.append("withdrawn")
        finally:
            ended.set()

    with anyio.move_on_after(0.05) as scope:
        await threads.run(change)
    assert scope.cancelled_caught
    may_go_on.set()
    assert await anyio.to_thread.run_sync(ended.wait, 5)
    assert outcome == ["withdrawn"]


async def test_a_change_that_has_begun_is_waited_for() -> None:
    threads, begun, outcome = Threads(), threading.Event(), []

    def change(work: Work) -> None:
        work.begin_change()
        begun.set()
        threading.Event().wait(0.2)
        outcome.append("changed")

    async with anyio.create_task_group() as group:
        group.start_soon(threads.run, change)
        await anyio.to_thread.run_sync(begun.wait, 5)
        group.cancel_scope.cancel()
    assert outcome == ["changed"]


async def test_a_deadline_is_seen_by_the_work(files: Any) -> None:
    def loop(work: Work) -> int:
        rounds = 0
        while not work.is_out_of_time:
            rounds += 1
        return rounds

    with anyio.fail_after(5):
        assert await files.workspace.threads.run(loop, deadline_s=0.05) > 0

"""Workers end with their server, whichever way it goes, and nothing else keeps them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import anyio
import pytest

from mcp_tools.calling import Returned
from mcp_tools.types import CallContext
from mcp_tools.workers import isolated
from mcp_tools.workers.limits import WorkerLimits
from mcp_tools.workers.pool import Workers
from tests.workers import functions
from tests.workers.conftest import Make, descendants, exists, left_over, reached, settled

HERE = CallContext()
END_S = 2.0

SERVER = """
import sys, anyio
from mcp_tools.types import CallContext
from mcp_tools.workers import isolated
from tests.workers import functions

async def main(markers):
    async with anyio.create_task_group() as group:
        for marker, function in zip(markers, (functions.deaf, functions.by_a_grandchild, functions.spinning)):
            callee = isolated(function, isolation="process", context_parameter=None, name="it")
            group.start_soon(callee.call, {"marker": marker, "seconds": 60}, CallContext())
        idle = isolated(functions.add, isolation="process", context_parameter=None, name="add")
        await idle.call({"a": 1}, CallContext())
        print("ready", flush=True)

anyio.run(main, sys.argv[1:])
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_no_worker_outlives_its_server(tmp_path: Path, ending: signal.Signals) -> None:
    markers = [tmp_path / str(number) for number in range(3)]
    server = subprocess.Popen([sys.executable, "-c", SERVER, *map(str, markers)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        with server.stdout:
            assert settled(lambda: all(Path(f"{marker}.begun").exists() for marker in markers), 20)
        # Shims, workers, the grandchild; one look at all processes can miss some that are just starting.
        assert settled(lambda: len(descendants(server.pid)) >= 4 * 2 + 1, 20)
        below = descendants(server.pid)
        server.send_signal(ending)
        ended_s = time.monotonic()
        server.wait()
        assert settled(lambda: not any(map(exists, below)), END_S)
        assert time.monotonic() - ended_s < END_S
    finally:
        server.kill()
        server.wait()


FORKED = textwrap.dedent(
    """
    import os, sys, time, anyio
    from mcp_tools.types import CallContext
    from mcp_tools.workers import isolated
    from tests.workers import functions

    callee = isolated(functions.count, isolation="process", context_parameter=None, name="count")

    def call():
        return anyio.run(callee.call, {}, CallContext())

    first = call()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, repr(call()).encode())
        if "stays" in sys.argv:
            time.sleep(20)
        callee.close()
        os._exit(0)
    print(first, call(), os.read(reader, 1000).decode(), child, flush=True)
    if "stays" in sys.argv:
        time.sleep(20)
    os.waitpid(child, 0)
    callee.close()
    """
)


def test_a_fork_of_the_server_has_workers_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    numbers = [int(part.partition("[")[2].partition(",")[0]) for part in done.stdout.split("Returned")[1:]]
    assert numbers == [1, 2, 1]  # its worker is a fresh one, and the server's own goes on


def test_a_fork_that_lives_on_does_not_keep_the_servers_workers() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", FORKED, "stays"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    fork = 0
    try:
        assert server.stdout is not None
        with server.stdout:
            fork = int(server.stdout.readline().split()[-1])
        forks_own = descendants(fork)
        servers_own = descendants(server.pid) - forks_own - {fork}
        assert len(servers_own) == 2
        server.kill()
        server.wait()
        assert settled(lambda: not any(map(exists, servers_own)), END_S)
        assert all(map(exists, forks_own))
    finally:
        server.kill()
        server.wait()
        if fork:
            os.kill(fork, signal.SIGKILL)
            assert settled(lambda: not any(map(exists, forks_own)), END_S)


async def test_closing_ends_calls_in_flight(in_process: Make, tmp_path: Path) -> None:
    callee = in_process(functions.deaf)
    before = descendants()
    outcomes = []

    async def call() -> None:
        outcomes.append(await callee.call({"marker": str(tmp_path / "m"), "seconds": 60}, HERE))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await reached((tmp_path / "m.begun").exists)
            callee.close()
    assert len(outcomes) == 1 and not isinstance(outcomes[0], Returned)
    assert descendants() == before


async def test_nothing_is_left_after_many_calls_and_ends(tmp_path: Path) -> None:
    before = left_over()
    workers = Workers(WorkerLimits(busy_per_tool=3, waiting=2, surplus_idle_s=0.1))
    callees = [
        isolated(each, isolation="process", context_parameter=None, name="it", workers=workers)
        for each in (functions.odd, functions.sleeping)
    ]

    async def some(number: int) -> None:
        what = ("fine", "os exit", "value error", "crash")[number % 4]
        await callees[0].call({"what": what}, HERE)
        with anyio.move_on_after(0.05):
            await callees[1].call({"marker": str(tmp_path / "m"), "seconds": 60}, HERE)

    with anyio.fail_after(50):
        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(some, number)
    for callee in callees:
        callee.close()
    assert settled(lambda: left_over() == before), (before, left_over())

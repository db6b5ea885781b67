"""`python -m benchmarks.workers`: a call in a worker beside one in a thread, and how late a deadline ends it.

Rounds interleave, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anyio

from benchmarks.table import machine, markdown
from benchmarks.workers import subject
from mcp_tools.calling import Callee, Returned
from mcp_tools.types import CallContext
from mcp_tools.workers import IsolatedCallee, isolated
from sandbox import detect

HERE = CallContext()
ARGUMENTS = {"a": 1, "b": 2}
Call = Callable[[], Awaitable[Any]]


def callee(function: Callable[..., Any], isolation: Any) -> IsolatedCallee:
    return isolated(function, isolation=isolation, context_parameter=None, name=function.__name__)


async def seconds_of(call: Call) -> float:
    began_s = time.perf_counter()
    outcome = await call()
    assert outcome in (3, Returned(3)), outcome
    return time.perf_counter() - began_s


async def calls(rounds: int, per_round: int) -> None:
    process = callee(subject.add, "process")
    ways: dict[str, Call] = {
        "thread (no isolation)": lambda: Callee.of(subject.add, None).call(ARGUMENTS, HERE),
        "process": lambda: process.call(ARGUMENTS, HERE),
    }
    sandbox = None
    if detect().level:
        sandbox = walled = callee(subject.add, "sandbox")
        ways["sandbox"] = lambda: walled.call(ARGUMENTS, HERE)
    loop = asyncio.get_running_loop()
    first_s: dict[str, float] = {}
    found: dict[str, list[float]] = defaultdict(list)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        ways["ProcessPoolExecutor"] = lambda: loop.run_in_executor(pool, subject.add, 1, 2)
        for name, call in ways.items():
            first_s[name] = await seconds_of(call)
        await anyio.sleep(0.5)
        for _ in range(rounds):
            for name, call in ways.items():
                for _ in range(per_round):
                    found[name].append(await seconds_of(call))
    print_memory()
    process.close()
    if sandbox is not None:
        sandbox.close()
    rows = [
        [
            name,
            f"{first_s[name] * 1000:.0f}",
            *(f"{value * 1000:.2f}" for value in (statistics.median(taken), quantile(taken, 0.99))),
        ]
        for name, taken in found.items()
    ]
    print(markdown(["a call", "first ms", "p50 ms", "p99 ms"], rows))


def print_memory() -> None:
    """PSS of our own worker and its shim: shared pages are counted in parts."""
    for pid in _children(os.getpid()):
        if b"shim.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            worker = _children(pid)
            sizes = [f"{_pss_mib(each):.1f}" for each in (pid, *worker)]
            print(f"Memory of one worker, MiB PSS: shim {sizes[0]}, worker {', '.join(sizes[1:])}.\n")


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _pss_mib(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.split("Pss:")[1].split()[0]) / 1024


async def timeouts(count: int) -> None:
    """Deadlines that strike 20 ms after the function began."""
    rows = []
    for function in (subject.sleeping, subject.spinning, subject.in_c):
        each = callee(function, "process")
        each.warm()
        with tempfile.TemporaryDirectory() as folder:
            late_s = [await late(each, f"{folder}/{number}") for number in range(count)]
        each.close()
        figures = (statistics.median(late_s), quantile(late_s, 0.99), max(late_s))
        over = sum(seconds > 0.15 for seconds in late_s)
        rows.append([function.__name__, *(f"{value * 1000:.1f}" for value in figures), str(over)])
    print(f"\n{count} timeouts of each kind: how long after its deadline a call was over.\n")
    print(markdown(["function", "p50 ms", "p99 ms", "max ms", "over 150 ms"], rows))


async def late(each: IsolatedCallee, marker: str) -> float:
    deadline_s = math.inf

    async def strike(scope: anyio.CancelScope) -> None:
        nonlocal deadline_s
        while not os.path.exists(marker):  # noqa: ASYNC110, ASYNC240
            await anyio.sleep(0.002)
        scope.deadline = deadline_s = anyio.current_time() + 0.02

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(strike, scope)
            await each.call({"seconds": 60, "marker": marker}, HERE)
        return anyio.current_time() - deadline_s


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[int(part * (len(values) - 1))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=100, help="of each way and round (100)")
    parser.add_argument("--timeouts", type=int, default=100, help="of each kind (100)")
    options = parser.parse_args()
    print(f"{machine()}\n")
    asyncio.run(calls(options.rounds, options.calls))
    asyncio.run(timeouts(options.timeouts))


if __name__ == "__main__":
    main()

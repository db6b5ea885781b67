"""`python -m benchmarks.limits`: what a call pays for its limits, beside the least that this can cost.

One call is one `admit` and one `settle`, with three limits: a window and a bucket of calls, and a budget. The
bare subjects count to a number and do nothing else: a dict; a transaction of SQLite with the same settings,
on the loop's own thread; one increment in Redis. Every round measures every subject once; what is shown is
the median over the rounds.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio

from benchmarks.table import machine, markdown
from mcp_tools.limits import Store, StoreLimiter, build_limiter, open_store
from mcp_tools.limits.memory import MemoryStore
from mcp_tools.types import CallContext, LimitRefusal, Tool, Usage

RULES = [
    "*: 100000000 calls / hour",
    "* per principal: 100000 calls / second burst 1000000",
    "* per principal: 1000000 usd / day",
]
TOOL = Tool("tool", "", {"type": "object"}, print)
CONTEXT = CallContext(principal="ada")
AT_ONCE = 32

Call = Callable[[], Awaitable[None]]
Figures = dict[str, dict[str, list[float]]]


def limited(store: Store) -> tuple[StoreLimiter, Call]:
    limiter = build_limiter(RULES, store)

    async def call() -> None:
        lease = await limiter.admit(TOOL, CONTEXT, again=False)
        assert not isinstance(lease, LimitRefusal)
        await lease.settle(Usage(calls=1))

    return limiter, call


def bare_dict() -> Call:
    counts = {"ada": 0}

    async def call() -> None:
        counts["ada"] += 1

    return call


def bare_sqlite(path: Path) -> tuple[sqlite3.Connection, Call]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE counts (name TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID")
    connection.execute("INSERT INTO counts VALUES ('ada', 0)")

    async def call() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE counts SET count = count + 1 WHERE name = 'ada'")
        connection.execute("COMMIT")

    return connection, call


@contextmanager
def redis_server(folder: str) -> Iterator[str | None]:
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


async def one_by_one(call: Call, times: int) -> float:
    """Median seconds of a call."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


async def together(call: Call, times: int) -> float:
    """Calls a second, of several callers at once."""

    async def caller() -> None:
        for _ in range(times // AT_ONCE):
            await call()

    start = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(caller)
    return times // AT_ONCE * AT_ONCE / (time.perf_counter() - start)


async def measure(subjects: dict[str, Call], rounds: int, times: int) -> Figures:
    figures: Figures = {name: {"us": [], "per_s": []} for name in subjects}
    for call in subjects.values():
        await one_by_one(call, 50)
    for _ in range(rounds):
        for name, call in subjects.items():
            figures[name]["us"].append(await one_by_one(call, times) * 1e6)
            figures[name]["per_s"].append(await together(call, times))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1_000)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        subjects = {"bare dict": bare_dict()}
        limiter, subjects["limits in memory"] = limited(MemoryStore())
        stack.callback(limiter.close)
        connection, subjects["bare SQLite transaction"] = bare_sqlite(Path(folder, "bare"))
        stack.callback(connection.close)
        limiter, subjects["limits in SQLite"] = limited(open_store(str(Path(folder, "limits"))))
        stack.callback(limiter.close)
        url = stack.enter_context(redis_server(folder))
        if url is not None:
            import redis

            client = stack.enter_context(redis.Redis.from_url(url))

            async def increment() -> None:
                client.incr("count")

            subjects["bare INCR in Redis"] = increment
            limiter, subjects["limits in Redis"] = limited(open_store(url))
            stack.callback(limiter.close)
        figures = anyio.run(measure, subjects, options.rounds, options.calls)
    print(f"{machine()}; {options.rounds} rounds of {options.calls} calls\n")
    rows = [
        [name, f"{statistics.median(found['us']):,.1f}", f"{statistics.median(found['per_s']):,.0f}"]
        for name, found in figures.items()
    ]
    print(markdown(["subject", "one call after another, p50 µs", f"{AT_ONCE} at once, calls/s"], rows))


if __name__ == "__main__":
    main()

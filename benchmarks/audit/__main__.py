"""`python -m benchmarks.audit`: what the audit log adds to a call, beside what one fdatasync costs here.

A round makes each kind of call once, then appends one line of a record's size and syncs it, so that a disk
that slows down slows all of them. The log and the bare file are on the same disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict

import anyio

from benchmarks.table import machine, markdown
from mcp_tools import ToolExecutor, ToolRegistry
from mcp_tools.observe.audit import AuditLog
from mcp_tools.types import CallContext

LINE = b"x" * 700 + b"\n"
PLAIN, AUDITED, UNSYNCED, SYNC = "no audit", "audit", "audit, fdatasync left out", "one fdatasync"
TOGETHER = 100


def echo(text: str) -> str:
    """Return the text."""
    return text


async def measure(folder: str, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Return microseconds of each round by name, and calls per second of many at once."""
    registry = ToolRegistry()
    registry.register(echo)
    context = CallContext(principal="local", client="bench 1.0", transport="stdio")
    found: dict[str, list[float]] = defaultdict(list)
    bare = os.open(os.path.join(folder, "bare"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    real = os.fdatasync
    with AuditLog(os.path.join(folder, "log", "audit.jsonl")) as log:
        plain, audited = ToolExecutor(registry), ToolExecutor(registry, auditor=log)

        async def timed(name: str, executor: ToolExecutor) -> None:
            begin = time.perf_counter_ns()
            result = await executor.execute("echo", {"text": "hello"}, context)
            found[name].append((time.perf_counter_ns() - begin) / 1000)
            assert result.is_success, result.error

        for _ in range(rounds):
            await timed(PLAIN, plain)
            await timed(AUDITED, audited)
            os.fdatasync = lambda fd: None
            try:
                await timed(UNSYNCED, audited)
            finally:
                os.fdatasync = real
            begin = time.perf_counter_ns()
            os.write(bare, LINE)
            os.fdatasync(bare)
            found[SYNC].append((time.perf_counter_ns() - begin) / 1000)
        begin = time.perf_counter_ns()
        for _ in range(10):
            async with anyio.create_task_group() as group:
                for _ in range(TOGETHER):
                    group.start_soon(audited.execute, "echo", {"text": "hello"}, context)
        per_s = 10 * TOGETHER / ((time.perf_counter_ns() - begin) / 1e9)
    os.close(bare)
    return found, per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--folder", help="on the disk to measure; default: the working folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder or os.getcwd()) as folder:
        found, per_s = anyio.run(measure, folder, arguments.rounds)
    middle = {name: statistics.median(values) for name, values in found.items()}
    rows = []
    for name, values in found.items():
        added = f"{middle[name] - middle[PLAIN]:.0f}" if name in (AUDITED, UNSYNCED) else ""
        ordered = sorted(values)
        rows.append([name, f"{middle[name]:.0f}", f"{ordered[int(len(ordered) * 0.95)]:.0f}", added])
    print(machine())
    print(markdown(["", "p50 µs", "p95 µs", "added µs"], rows))
    allowed = 2 * middle[SYNC] + 100
    print(f"allowed for all of production's parts: 2 x fdatasync + 100 = {allowed:.0f} µs")
    print(f"{TOGETHER} calls at once: {per_s:.0f} audited calls per second")


if __name__ == "__main__":
    main()

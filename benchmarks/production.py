"""`scripts/bench production`: what records, limits and metrics add to a call over stdio.

One server for each stage, each with all that comes before it; calls of every server alternate, so that what
disturbs one disturbs all. The device is asked in between what one `fdatasync` of a record's size takes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from contextlib import AsyncExitStack

from benchmarks.table import machine, markdown
from benchmarks.wire import StdioServer, module

RULES = ["--deny", "delete_file(**/.git/**)", "--ask", "move_file", "--allow", "echo"]
LIMITS = ["--limit", "* per principal: 1000000 calls / hour", "--limit", "echo: 1000000 calls / minute"]
STAGES = {
    "rules": [],
    "and metrics": ["--metrics-port", "0"],
    "and limits in SQLite": LIMITS,
    "and the audit log": [],
}
RECORD_BYTES = 700
BLOCK_CALLS = 50


def commands(scratch: str) -> dict[str, list[str]]:
    """Name of the stage → how its server is started."""
    found, flags = {}, list(RULES)
    for number, (name, more) in enumerate(STAGES.items()):
        flags += more
        command = module("mcp_tools", "serve", "--tools", "benchmarks.peers.echo:registry", "--no-python")
        store = f"{scratch}/limits-{number}" if LIMITS[0] in flags else "memory://"
        command += ["--log-level", "error", *flags, "--limits-store", store]
        if not more and number:
            command += ["--audit-log", f"{scratch}/audit/log.jsonl"]
        else:
            command.append("--no-audit")
        found[name] = command
    return found


def sync_s(scratch: str, count: int) -> list[float]:
    """Time `count` appends of a record's size, each with `fdatasync`."""
    found = []
    fd = os.open(f"{scratch}/device", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(count):
            started = time.perf_counter()
            os.write(fd, b"x" * RECORD_BYTES)
            os.fdatasync(fd)
            found.append(time.perf_counter() - started)
    finally:
        os.close(fd)
    return found


async def run(scratch: str, blocks: int) -> None:
    """Measure, and print a table."""
    async with AsyncExitStack() as stack:
        servers = {}
        for name, command in commands(scratch).items():
            servers[name] = await stack.enter_async_context(StdioServer(command))
            await servers[name].latencies_s(4 * BLOCK_CALLS)
        took: dict[str, list[float]] = {name: [] for name in servers}
        synced: list[float] = []
        for _ in range(blocks):
            for name, server in servers.items():
                took[name] += await server.latencies_s(BLOCK_CALLS)
            synced += sync_s(scratch, BLOCK_CALLS)
    sync_us = statistics.median(synced) * 1e6
    p50_us = {name: statistics.median(found) * 1e6 for name, found in took.items()}
    least_us = next(iter(p50_us.values()))
    rows = [[name, f"{p50:.0f}", f"{p50 - least_us:+.0f}"] for name, p50 in p50_us.items()]
    print(f"{machine()}; {blocks * BLOCK_CALLS} calls each, one after another.\n")
    print(markdown(["stages", "p50 µs of a call", "more than rules alone, µs"], rows))
    allowed_us = 2 * sync_us + 100
    print(
        f"\nOne fdatasync of {RECORD_BYTES} bytes: p50 {sync_us:.0f} µs; so all may add {allowed_us:.0f} µs."
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench production", description=__doc__)
    parser.add_argument("--blocks", type=int, default=40, help=f"of {BLOCK_CALLS} calls of each server (40)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(run(scratch, arguments.blocks))

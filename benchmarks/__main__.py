"""`scripts/bench`: start, latency, throughput and memory of our server beside its peers.

`scripts/bench sandbox` measures the embedded sandbox instead, `scripts/bench production` what records and
limits add to a call. Both are left out here: what is compared is what all servers do.

Every round measures every server once, so that a machine that slows down slows all of them; what
is reported is the median over the rounds, and the ratio round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import runpy
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

from benchmarks.table import machine, markdown
from benchmarks.wire import HANDSHAKE, MODERN, HttpServer, StdioServer, module

ROOMS = ("audit", "limits", "workers")  # each measures itself
OURS, BARE, MCPSERVER, FASTMCP = "mcp_tools (all tools)", "bare low-level", "MCPServer", "fastmcp"
RULES = [
    "--deny",
    "delete_file(**/.git/**)",
    "--ask",
    "move_file",
    "--allow",
    "echo",
    "--allow",
    "write_file(notes/**)",
]

Figures = dict[str, dict[str, list[float]]]


def servers(scratch: str) -> dict[str, tuple[list[str], list[str]]]:
    """Name → how it is started for stdio and for HTTP."""
    ours = module(
        "mcp_tools", "serve", "--root", scratch, "--tools", "benchmarks.peers.echo:registry", *RULES
    )
    # Quiet, as the others are: what is measured includes hooks, not a log on a terminal.
    ours += ["--log-level", "error", "--no-audit", "--limits-store", "memory://"]
    found = {
        OURS: (ours, [*ours, "--transport", "http", "--port", "{port}"]),
        BARE: (module("benchmarks.peers.bare_lowlevel"), module("benchmarks.peers.bare_lowlevel", "{port}")),
        MCPSERVER: (module("benchmarks.peers.mcpserver"), module("benchmarks.peers.mcpserver", "{port}")),
    }
    if find_spec("fastmcp") is not None:
        found[FASTMCP] = (
            module("benchmarks.peers.fastmcp_one"),
            module("benchmarks.peers.fastmcp_one", "{port}"),
        )
    return found


async def measure_stdio(argv: list[str], calls: int, put: Callable[[str, float], None]) -> None:
    async with StdioServer(argv) as server:
        put("start ms", server.start_ms)
        put("RSS MiB", server.memory_kib() / 1024)
        await server.latencies_s(calls // 4)
        put("stdio p50 ms", statistics.median(await server.latencies_s(calls)) * 1000)
        put("stdio calls/s, 1", await server.calls_per_s(calls, 1))
        put("stdio calls/s, 32", await server.calls_per_s(2 * calls, 32))


async def measure_http(argv: list[str], calls: int, put: Callable[[str, float], None]) -> None:
    for era, name in ((HANDSHAKE, "HTTP"), (MODERN, "HTTP modern")):
        async with HttpServer(argv, era=era) as server:
            await server.latencies_s(calls // 4)
            put(f"{name} p50 ms", statistics.median(await server.latencies_s(calls)) * 1000)
            put(f"{name} calls/s, 1", await server.calls_per_s(calls, 1))
            put(f"{name} calls/s, 32", await server.calls_per_s(2 * calls, 32))


async def measure_growth(argv: list[str], calls: int) -> dict[str, float]:
    """Memory and descriptors of our server over many calls, after a warm-up of as many again."""
    async with StdioServer(argv) as server:
        await server.calls_per_s(calls, 32)
        before_kib, before_fds = server.memory_kib(), server.descriptors()
        await server.calls_per_s(calls, 32)
        grown_bytes = (server.memory_kib() - before_kib) * 1024
        return {
            "bytes per call": grown_bytes / calls,
            "descriptors more": server.descriptors() - before_fds,
        }


async def run(rounds: int, calls: int, growth_calls: int, only: str) -> None:
    figures: Figures = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as scratch:
        everyone = servers(scratch)
        for _ in range(rounds):
            for name, (stdio, http) in everyone.items():
                steps: list[Awaitable[None]] = []

                def put(figure: str, value: float, name: str = name) -> None:
                    figures[figure][name].append(value)

                if only in ("all", "stdio"):
                    steps.append(measure_stdio(stdio, calls, put))
                if only in ("all", "http"):
                    steps.append(measure_http(http, calls, put))
                for step in steps:
                    await step
        if figures:
            print_table(figures, list(everyone))
        if only in ("all", "growth") and growth_calls:
            growth = await measure_growth(everyone[OURS][0], growth_calls)
            print(f"\nOver {growth_calls:,} calls on stdio, after as many to warm up: ", end="")
            print(", ".join(f"{value:.1f} {figure}" for figure, value in growth.items()))


def print_table(figures: Figures, names: list[str]) -> None:
    print(f"{machine()}. Medians; (ours / it), round by round.\n")
    rows = []
    for figure, by_server in figures.items():
        cells = [figure]
        for name in names:
            values = by_server[name]
            text = f"{statistics.median(values):,.{0 if 'calls/s' in figure else 2}f}"
            if name != OURS:
                ratio = statistics.median(o / v for o, v in zip(by_server[OURS], values, strict=True))
                text += f" ({ratio:.2f})"
            cells.append(text)
        rows.append(cells)
    print(markdown(["figure", *names], rows))


def main() -> None:
    if sys.argv[1:2] == ["sandbox"]:
        from benchmarks.sandbox.__main__ import main as sandbox

        sandbox(sys.argv[2:])
        return
    if sys.argv[1:2] == ["production"]:
        from benchmarks.production import main as production

        production(sys.argv[2:])
        return
    if sys.argv[1:2] and sys.argv[1] in ROOMS:
        runpy.run_module(f"benchmarks.{sys.argv.pop(1)}", run_name="__main__")
        return
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("only", nargs="?", choices=["all", "stdio", "http", "growth"], default="all")
    parser.add_argument("--rounds", type=int, default=5, help="how often each server is started (5)")
    parser.add_argument("--calls", type=int, default=400, help="calls per figure and round (400)")
    parser.add_argument("--growth-calls", type=int, default=10_000, help="0 leaves the growth out (10000)")
    options: Any = parser.parse_args()
    asyncio.run(run(options.rounds, options.calls, options.growth_calls, options.only))


if __name__ == "__main__":
    main()

"""Callees that are closed at the end, and a look at what is left of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import anyio
import pytest

from mcp_tools.workers import IsolatedCallee, isolated
from mcp_tools.workers.limits import WorkerLimits
from mcp_tools.workers.pool import Workers


class Make(Protocol):
    def __call__(
        self, function: Callable[..., Any], *, context: str | None = None, limits: WorkerLimits | None = None
    ) -> IsolatedCallee: ...


@pytest.fixture
def in_process() -> Iterator[Make]:
    made: list[IsolatedCallee] = []
    before = left_over()

    def make(
        function: Callable[..., Any], *, context: str | None = None, limits: WorkerLimits | None = None
    ) -> IsolatedCallee:
        callee = isolated(
            function,
            isolation="process",
            context_parameter=context,
            name=function.__name__,
            workers=Workers(limits),
        )
        made.append(callee)
        return callee

    yield make
    for callee in made:
        callee.close()
    assert settled(lambda: left_over() == before), (before, left_over())


def descendants(pid: int | None = None) -> set[int]:
    """Every process below `pid` (this one), however deep."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    found: set[int] = set()
    fresh = {os.getpid() if pid is None else pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"  # ours to look at only: who reaps what is left of a server differs


def left_over() -> dict[str, Any]:
    """What a careless pool leaves behind."""
    return {
        "processes": descendants(),
        "threads": {t.name for t in threading.enumerate() if t.name.startswith("mcp-tools")},
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


async def reached(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait, with the event loop going on."""
    with anyio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110 - what happens in other processes sets no event here
            await anyio.sleep(0.005)


def settled(holds: Callable[[], bool], within_s: float = 5.0) -> bool:
    end_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True

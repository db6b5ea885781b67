"""Our sandbox as a subject, at each level, in sessions, with pandas preloaded."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.sandbox.accounting import is_filtered_and_asleep, leaves, pss_mib
from benchmarks.sandbox.peers import clean_python
from benchmarks.sandbox.subject import PANDAS_SNIPPET, NotAvailable, Subject
from sandbox import IsolationLevel, PythonSandbox, SandboxConfig, SandboxUnavailable
from sandbox.select import detect

OVERRUN_LIMIT_S = 0.5
FULL_POOL_LIMIT_S = 20.0
SETTLE_S = 0.3
LOOK_S = 0.002


class Ours(Subject):
    """A call in a fresh child, or in a session of the caller's own."""

    def __init__(
        self, scratch: Path, cgroup: str | None, *, level: IsolationLevel, in_session: bool = False
    ) -> None:
        super().__init__(scratch, cgroup)
        self.level = level
        self.in_session = in_session

    def config(self) -> SandboxConfig:
        # The interpreter that REF is, whichever one runs the benchmark.
        python = Path(clean_python(self.scratch))
        return SandboxConfig(maximum_level=self.level, packages=str(python.parent.parent))

    async def open(self) -> None:
        self.sandbox = PythonSandbox(self.config())
        try:
            result = await self.sandbox.execute(self.snippet)
        except SandboxUnavailable as reason:
            raise NotAvailable(str(reason)) from None
        if result.isolation is not self.level:
            raise NotAvailable(f"this machine gives {result.isolation}")

    async def call(self, caller: int) -> str:
        session = f"caller {caller}" if self.in_session else None
        result = await self.sandbox.execute(self.snippet, session=session)
        return result.stdout if result.success else f"{result.ended_by}: {result.error} {result.stderr}"

    async def close(self) -> None:
        self.sandbox.close()

    async def more(self) -> dict[str, float]:
        if self.in_session:
            return {}
        return {
            "idle child PSS MiB": await self._idle_pss_mib(),
            "start to full pool ms": self._start_to_full_pool_ms(),
            "timeout overrun ms": await self._overrun_ms(),
            "level detection ms": detect(self.config()).walls_seconds * 1000,
        }

    async def _overrun_ms(self) -> float:
        started = time.perf_counter()
        result = await self.sandbox.execute("while True: pass", timeout_seconds=OVERRUN_LIMIT_S)
        taken_s = time.perf_counter() - started
        if result.ended_by != "time":
            raise RuntimeError(f"an endless loop was ended by {result.ended_by}")
        return (taken_s - OVERRUN_LIMIT_S) * 1000

    async def _idle_pss_mib(self) -> float:
        await asyncio.sleep(SETTLE_S)
        waiting = waiting_children()
        if len(waiting) != self.config().pool_size:
            raise RuntimeError(f"{len(waiting)} warm children instead of {self.config().pool_size}")
        return statistics.mean(pss_mib(pid) for pid in waiting)

    def _start_to_full_pool_ms(self) -> float:
        """From nothing to the moment when the last child of the pool waits for code."""
        before = waiting_children()
        deadline = time.monotonic() + FULL_POOL_LIMIT_S
        with PythonSandbox(self.config()) as sandbox:
            started = time.perf_counter()
            sandbox.warm()
            while len(waiting_children() - before) < sandbox.config.pool_size:
                if time.monotonic() > deadline:
                    raise RuntimeError("the pool does not fill")
                time.sleep(LOOK_S)
            return (time.perf_counter() - started) * 1000


def waiting_children() -> set[int]:
    """Processes below us that have none below themselves, are behind a seccomp filter, and sleep."""
    return {pid for pid in leaves(os.getpid()) if is_filtered_and_asleep(pid)}


class OursWithPandas(Ours):
    snippet = PANDAS_SNIPPET

    def config(self) -> SandboxConfig:
        return SandboxConfig(maximum_level=self.level, packages=sys.prefix, preload=("pandas",))

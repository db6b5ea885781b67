"""D-16: after many calls, and after many killed at a random moment, nothing is left.

A tenth of what `python -m benchmarks.sandbox.soak` does.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from benchmarks.sandbox.soak import State, soak
from sandbox import IsolationLevel, PythonSandbox, SandboxConfig, SandboxUnavailable

SYSTEM_PYTHON = "/usr/bin/python3"
WITHIN_S = 120.0


@pytest.fixture(scope="module")
def packages() -> Iterator[str | None]:
    """An empty environment of the system's interpreter: below L4 everyone must be able to read it."""
    if not Path(SYSTEM_PYTHON).exists():
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        subprocess.run([SYSTEM_PYTHON, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
        yield folder


def needs(level: IsolationLevel, config: SandboxConfig) -> None:
    with PythonSandbox(config) as sandbox:
        try:
            found = sandbox.execute_sync("").isolation
        except SandboxUnavailable as reason:
            pytest.skip(f"needs a machine that gives {level}: {reason}")
    if found is not level:
        pytest.skip(f"needs a machine that gives {level}: it gives {found}")


async def test_nothing_is_left_of_a_thousand_calls_and_a_hundred_killed_ones(packages: str | None) -> None:
    config = SandboxConfig(packages=packages, minimum_level=IsolationLevel.L2)
    with anyio.fail_after(WITHIN_S):
        assert await soak(config, calls=1000, killed=100) == []


@pytest.mark.parametrize("level", [IsolationLevel.L3, IsolationLevel.L2], ids=str)
async def test_nothing_is_left_at_lower_levels_either(level: IsolationLevel, packages: str | None) -> None:
    config = SandboxConfig(packages=packages, maximum_level=level)
    needs(level, config)
    with anyio.fail_after(WITHIN_S):
        assert await soak(config, calls=60, killed=20) == []


async def test_nothing_is_left_of_replaced_zygotes(packages: str | None) -> None:
    config = SandboxConfig(packages=packages, recycle_calls=25)
    with anyio.fail_after(WITHIN_S):
        assert await soak(config, calls=100, killed=20, sessions=False) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_what_is_left_would_be_seen() -> None:
    """The control: each kind of leftover, made on purpose."""
    before = State.take()
    child = os.fork()
    if not child:
        os._exit(0)
    folder = tempfile.mkdtemp(prefix=f"mcp-sandbox-{os.getpid()}-")
    ends = os.pipe()
    kept = mmap.mmap(-1, 20_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # the heap may have room
    kept.write(os.urandom(20_000_000))
    try:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        added = before.added(State.take(), 10_000, 1024)
    finally:
        os.waitpid(child, 0)
        os.rmdir(folder)
        for end in ends:
            os.close(end)
    assert added[:4] == ["1 more processes", "1 more zombies", "2 more descriptors", "1 more folders"]
    assert [what for what in added[4:] if what.endswith("bytes per call more in server_bytes")]
    kept.close()

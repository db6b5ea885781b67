"""The file tools under attack: both ways of opening, and in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.file_tools import OPENERS, FileTools, open_tools


@pytest.fixture(params=OPENERS)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileTools]:
    """Both ways of opening withstand the same attacks."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    tools = open_tools(root, outside, request.param)
    with tools.workspace:
        yield tools


@pytest.fixture
def one_way(tmp_path: Path) -> Iterator[FileTools]:
    """Where the way of opening does not matter."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    tools = open_tools(root, outside)
    with tools.workspace:
        yield tools


PROGRAM = """
import asyncio, os, sys, time
from mcp_tools.builtin.files import register_file_tools
from mcp_tools.builtin.workspace import Workspace
from mcp_tools.executor import ToolExecutor
from mcp_tools.registry import ToolRegistry

registry = ToolRegistry()
workspace = Workspace.open([sys.argv[1]], sweep_at_start=False)
register_file_tools(registry, workspace)
executor = ToolExecutor(registry)

async def execute(name, **arguments):
    return await executor.execute(name, arguments, {"confirmed": True})

async def call(name, **arguments):
    return (await execute(name, **arguments)).to_observation()

def peak():
    # Not ru_maxrss, which a child inherits from the process that started it.
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0])

async def main():
    base = peak()
"""


@pytest.fixture
def run_tools() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code with the tools over a root in a process of its own, with an ordinary user's rights."""

    def run(
        root: Path, body: str, *, prefix: Sequence[str] = (), exit_code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        program = PROGRAM + textwrap.indent(textwrap.dedent(body), "    ")
        program += "\n    print('grew', peak() - base)\nasyncio.run(main())\n"
        # Root may do everything; these are the rights that others do not have.
        drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*prefix, *drop, sys.executable, "-c", program, str(root)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert exit_code is None or done.returncode == exit_code, done.stderr
        return done

    return run

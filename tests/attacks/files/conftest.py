"""A workspace in a scratch folder, with the file tools called as everybody calls them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mcp_tools.builtin.files import register_file_tools
from mcp_tools.builtin.workspace import Workspace
from mcp_tools.builtin.workspace.beneath import open_by_walking, open_with_kernel
from mcp_tools.executor import ToolExecutor
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import CallContext, ExecutionResult, ToolOutput

OPENERS = {"kernel": open_with_kernel, "walk": open_by_walking}


@dataclass(frozen=True, slots=True)
class FileTools:
    """The tools over `root`; `outside` is a folder beside it that no tool may reach."""

    root: Path
    outside: Path
    workspace: Workspace
    executor: ToolExecutor

    async def execute(
        self, name: str, /, context: CallContext | None = None, **arguments: Any
    ) -> ExecutionResult:
        """Call a tool; without a context nobody has said yes."""
        return await self.executor.execute(name, arguments, context or CallContext())

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool with a yes, and return its result; structured where there is one."""
        result = await self.execute(name, CallContext(confirmed=True), **arguments)
        assert result.is_success, result.error
        value = result.result
        if isinstance(value, ToolOutput) and value.structured is not None:
            return dict(value.structured)
        return value.model_dump() if hasattr(value, "model_dump") else value

    async def refusal(self, name: str, /, **arguments: Any) -> str:
        """Call a tool with a yes, and return the error it must end in."""
        result = await self.execute(name, CallContext(confirmed=True), **arguments)
        assert not result.is_success, result.result
        assert result.error is not None
        return result.error


def open_tools(root: Path, outside: Path, opener: str = "kernel") -> FileTools:
    workspace = Workspace.open([root], opener=OPENERS[opener], sweep_at_start=False)
    registry = ToolRegistry()
    register_file_tools(registry, workspace)
    return FileTools(root, outside, workspace, ToolExecutor(registry))


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

"""A workspace in a scratch folder, with the file tools called as everybody calls them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

"""A system with a few tools, each with one habit, and what watches its calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mcp_tools import CallContext, ToolError, ToolRegistry, ToolSystem
from mcp_tools.types import Usage

MakeSystem = Callable[..., ToolSystem]


@pytest.fixture
def make_system() -> MakeSystem:
    """Make a system with the tools below; takes what `ToolSystem` takes."""

    def make(**options: Any) -> ToolSystem:
        return ToolSystem(_tools(), **options)

    return make


def _tools() -> ToolRegistry:
    registry = ToolRegistry()

    @registry.register
    async def echo(text: str) -> str:
        """Return the text."""
        return text

    @registry.register
    async def spends(context: CallContext, dollars: float = 0.25) -> str:
        """Report what it used."""
        used = Usage(cost_usd=dollars, sandbox_cpu_s=1.5, input_tokens=1_000, output_tokens=20)
        context.meter.add(used)
        return "spent"

    @registry.register
    async def breaks(how: str = "tool error") -> str:
        """Fail."""
        if how == "tool error":
            raise ToolError("try something else")
        raise RuntimeError("a bug")

    @registry.register(requires_confirmation=True)
    async def asks(path: str) -> str:
        """Ask a person first."""
        return path

    return registry

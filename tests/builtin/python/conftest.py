"""`execute_python` over real sandboxes; starting one takes a tenth of a second, so a module shares its."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_tools import CallContext, ExecutionResult, ToolSystem
from mcp_tools.types import TextContent
from sandbox import SandboxConfig

Systems = Callable[..., ToolSystem]


@pytest.fixture(scope="module")
def systems() -> Iterator[Systems]:
    """Make systems by fields of `SandboxConfig`; the same fields give the same one."""
    made: dict[tuple[tuple[str, Any], ...], ToolSystem] = {}

    def system_with(**fields: Any) -> ToolSystem:
        key = tuple(sorted(fields.items()))
        if key not in made:
            made[key] = ToolSystem.with_builtins(python=SandboxConfig(pool_size=1, **fields))
        return made[key]

    yield system_with
    for system in made.values():
        system.close()


@pytest.fixture(scope="module")
def system(systems: Systems) -> ToolSystem:
    """Nothing allowed: no network, no folder."""
    return systems(timeout_seconds=10.0)


@pytest.fixture(scope="session")
def site_packages() -> str:
    """Where this Python has its packages."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parents[1])


async def run(
    system: ToolSystem, code: str, *, context: CallContext | dict[str, Any] | None = None, **arguments: Any
) -> ExecutionResult:
    """Run code; it must get as far as an answer."""
    result = await system.execute("execute_python", {"code": code, **arguments}, context)
    assert result.is_success, result.error
    return result


def texts(result: ExecutionResult) -> list[str]:
    """Return the pieces of text in an answer."""
    return [piece.text for piece in result.result.content if isinstance(piece, TextContent)]

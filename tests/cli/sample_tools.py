"""Tools for the tests of the command line, loaded with `--tools tests.cli.sample_tools:registry`."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from mcp_tools import CallContext, Preview, ToolError, ToolRegistry

registry = ToolRegistry()


class Point(BaseModel):
    """A place."""

    x: int
    y: int


@registry.register(tags=["echo"])
def echo(
    text: str,
    count: int = 1,
    flag: bool = False,
    items: list[int] | None = None,
    point: Point | None = None,
    either: str | int = "",
    kind: Literal["a", "b"] = "a",
    share: Annotated[float, Field(ge=0, le=1)] = 0.5,
) -> dict[str, Any]:
    """Give back what came in."""
    return {
        "text": text,
        "count": count,
        "flag": flag,
        "items": items,
        "point": None if point is None else [point.x, point.y],
        "either": either,
        "kind": kind,
        "share": share,
    }


@registry.register
def fail(text: str) -> str:
    """Fail with a text for the model."""
    raise ToolError(text)


def _preview(path: str, content: str) -> Preview:
    there = Path(path).read_text() if Path(path).exists() else "nothing"
    return Preview(text=f"{path} has {there}; it would have {content}", state=there)


@registry.register(requires_confirmation=True, preview=_preview)
def put(path: str, content: str) -> str:
    """Write a file, after a question."""
    Path(path).write_text(content)
    return "written"


@registry.register
async def count_to(number: int, context: CallContext) -> str:
    """Report progress."""
    for i in range(number):
        await context.report_progress(i + 1, number, "counting")
    return f"{context.principal} over {context.transport}"


@registry.register(timeout=0.2)
def hang() -> None:
    """Never return."""
    threading.Event().wait()


@registry.register
def process_id() -> int:
    """The process that runs the tools."""
    return os.getpid()


def with_registry(target: ToolRegistry) -> None:
    """Register on the registry that is given, as a package's entry point may."""

    @target.register(name="from_function")
    def from_function() -> str:
        """Say hello."""
        return "hello"


def not_tools() -> None:
    """Takes nothing, so it cannot be what --tools names."""


number = 7

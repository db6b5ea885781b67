"""Tools that a server of these tests is given: some that are limited, slow, large, or cost something."""

from __future__ import annotations

import time
from pathlib import Path

from mcp_tools import CallContext, ToolRegistry, Usage

registry = ToolRegistry()


@registry.register
async def echo(text: str) -> str:
    """Return the text."""
    return text


@registry.register(price_usd=0.25)
async def paid(context: CallContext) -> str:
    """Cost something."""
    context.meter.add(Usage(cost_usd=0.5))
    return "paid"


@registry.register
async def large(lines: int) -> str:
    """Return many lines."""
    return "\n".join(f"line {number}" for number in range(lines))


@registry.register(isolation="process", timeout=0.5)
def late(path: str) -> None:
    """Write a file, too late."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        pass
    Path(path).write_text("it happened")

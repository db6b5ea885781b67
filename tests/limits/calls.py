"""Calls of tools that only exist by name."""

from __future__ import annotations

from typing import Any

from mcp_tools.limits import StoreLimiter
from mcp_tools.types import CallContext, Lease, LimitRefusal, Tool, Usage


def tool(name: str = "search", **fields: Any) -> Tool:
    return Tool(name=name, description="", parameters={"type": "object"}, function=print, **fields)


SEARCH = tool()


def by(principal: str = "ada", session_id: str | None = None) -> CallContext:
    return CallContext(principal=principal, session_id=session_id)


async def admitted(
    limiter: StoreLimiter, of: Tool | None = SEARCH, who: CallContext | None = None, *, again: bool = False
) -> Lease:
    found = await limiter.admit(of, who or by(), again=again)
    assert not isinstance(found, LimitRefusal), found.message
    return found


async def refused(
    limiter: StoreLimiter, of: Tool | None = SEARCH, who: CallContext | None = None
) -> LimitRefusal:
    found = await limiter.admit(of, who or by(), again=False)
    assert isinstance(found, LimitRefusal)
    return found


async def run(
    limiter: StoreLimiter, of: Tool = SEARCH, who: CallContext | None = None, **used: Any
) -> Lease | LimitRefusal:
    """One whole call."""
    found = await limiter.admit(of, who or by(), again=False)
    if not isinstance(found, LimitRefusal):
        await found.settle(Usage(calls=1, **used))
    return found


async def count(limiter: StoreLimiter, times: int, of: Tool = SEARCH, who: CallContext | None = None) -> int:
    """How many of so many calls are let in."""
    results = [await run(limiter, of, who) for _ in range(times)]
    return sum(not isinstance(result, LimitRefusal) for result in results)

"""How many worker processes there may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """How many worker processes there may be.

    Args:
        busy_per_tool: Calls of one tool at once; more wait for their turn, within their deadline.
        waiting: Idle workers of all tools together, 1 or more; over it the longest idle one is ended.
        surplus_idle_s: Seconds after which a tool's idle workers but the last used one are ended.
    """

    busy_per_tool: int = 8
    waiting: int = 16
    surplus_idle_s: float = 30.0

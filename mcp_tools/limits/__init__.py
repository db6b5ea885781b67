"""Rates, budgets and places: how often tools may be called, how much calls may use, how many run at once."""

from __future__ import annotations

from mcp_tools.limits.limiter import StoreLimiter, build_limiter, open_store
from mcp_tools.limits.rules import Limit, parse_limit
from mcp_tools.limits.store import Store, Total

__all__ = ["Limit", "Store", "StoreLimiter", "Total", "build_limiter", "open_store", "parse_limit"]

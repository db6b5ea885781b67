"""`search_web`: search engines behind one protocol, asked in the owner's order until one answers."""

from __future__ import annotations

from mcp_tools.builtin.search.options import SearchOptions
from mcp_tools.builtin.search.register import register_search_tool

__all__ = ["SearchOptions", "register_search_tool"]

"""`search_web`: search engines behind one protocol, asked in the owner's order until one answers."""

from __future__ import annotations

from mcp_tools.builtin.search.options import SearchOptions
from mcp_tools.builtin.search.register import register_search_tool
from mcp_tools.builtin.search.tool import SearchTool

__all__ = ["SearchOptions", "SearchTool", "register_search_tool"]

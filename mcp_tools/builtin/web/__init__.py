"""`fetch_url`: a page of the web as text that is marked as a stranger's."""

from __future__ import annotations

from mcp_tools.builtin.web.register import register_web_tool
from mcp_tools.builtin.web.types import FetchOptions

__all__ = ["FetchOptions", "register_web_tool"]

"""The MCP server. The only room that imports the MCP SDK, and only when something is served."""

from __future__ import annotations

from mcp_tools.server.entry import run, serve

__all__ = ["run", "serve"]

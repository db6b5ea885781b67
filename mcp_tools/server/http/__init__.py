"""MCP over HTTP: streamable HTTP and SSE from one listener. See docs/http.md."""

from mcp_tools.server.http.app import HttpApp, build_app
from mcp_tools.server.http.limits import HttpLimits
from mcp_tools.server.http.serve import Listening, serve_http
from mcp_tools.server.http.tokens import TokenTable, load_tokens

__all__ = ["HttpApp", "HttpLimits", "Listening", "TokenTable", "build_app", "load_tokens", "serve_http"]

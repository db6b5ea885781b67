"""`serve`: expose tools over MCP. Light to import; the SDK is loaded when serving starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mcp_tools.executor import ToolExecutor
from mcp_tools.registry import ToolRegistry

if TYPE_CHECKING:
    from mcp_tools.system import ToolSystem

Transport = Literal["stdio", "sse", "http"]
TRANSPORTS: tuple[Transport, ...] = ("stdio", "sse", "http")


async def serve(
    tools: ToolSystem | ToolExecutor | ToolRegistry,
    transport: Transport = "stdio",
    *,
    name: str = "mcp-tools",
    version: str | None = None,
    instructions: str | None = None,
    confirm_timeout_s: float = 120.0,
    **options: Any,
) -> None:
    """Serve tools over MCP until the client goes away or we are told to stop. Needs asyncio.

    Args:
        tools: A registry is served with the default policy: tools that require confirmation ask.
        transport: `stdio` serves whoever started the process; `http` serves `/mcp` and `/sse`;
            `sse` serves `/sse` only.
        name, version, instructions: What clients are told about the server.
        confirm_timeout_s: Seconds a person has to answer a question.
        options: Of the HTTP transports; see `mcp_tools.server.http.serve_http`.
    Raises:
        ValueError: The transport is unknown.
        RuntimeError: Another stdio server in this process holds the standard streams.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"unknown transport {transport!r}; use one of {', '.join(TRANSPORTS)}")
    from mcp_tools.server.handler import build_server

    server = build_server(
        executor_of(tools),
        name=name,
        version=version,
        instructions=instructions,
        confirm_timeout_s=confirm_timeout_s,
    )
    if transport == "stdio":
        from mcp_tools.server.stdio import serve_stdio

        await serve_stdio(server, **options)
        return
    from mcp_tools.server.http import serve_http

    await serve_http(server, with_streamable=transport == "http", **options)


def executor_of(tools: ToolSystem | ToolExecutor | ToolRegistry) -> ToolExecutor:
    """Return what runs these tools."""
    if isinstance(tools, ToolExecutor):
        return tools
    if isinstance(tools, ToolRegistry):
        return ToolExecutor(tools)
    return tools.executor

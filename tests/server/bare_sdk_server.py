"""The SDK's low-level server on the SDK's own stdio: what the tests show the attacks to work against."""

from __future__ import annotations

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server


async def _list(_context: object, _params: object) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[types.Tool(name="echo", input_schema={"type": "object"})])


async def _call(_context: object, params: types.CallToolRequestParams) -> types.CallToolResult:
    if params.name == "surrogate":
        return types.CallToolResult(content=[types.TextContent(text="a\udc80")])
    if params.name == "exit":
        raise SystemExit(3)
    return types.CallToolResult(content=[types.TextContent(text="x")])


async def main() -> None:
    """Serve until stdin ends."""
    server: Server[dict[str, object]] = Server("bare", on_list_tools=_list, on_call_tool=_call)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


anyio.run(main)

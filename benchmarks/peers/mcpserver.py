"""The SDK's `MCPServer` with one tool."""

import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("mcpserver", log_level="WARNING")


@server.tool()
def echo(text: str) -> str:
    """Echo."""
    return text


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")

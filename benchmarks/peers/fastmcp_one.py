"""fastmcp with one tool."""

import sys

from fastmcp import FastMCP

server = FastMCP("fastmcp")


@server.tool
def echo(text: str) -> str:
    """Echo."""
    return text


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("http", port=int(sys.argv[1]), show_banner=False, log_level="warning")
    else:
        server.run("stdio", show_banner=False, log_level="warning")

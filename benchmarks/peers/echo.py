"""Our echo, for `--tools benchmarks.peers.echo:registry`."""

from mcp_tools import ToolRegistry

registry = ToolRegistry()


@registry.register
async def echo(text: str) -> str:
    """Echo."""
    return text

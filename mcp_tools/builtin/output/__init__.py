"""The tool that reads whole results, of which only a part was sent."""

from mcp_tools.builtin.output.register import register_output_tool

__all__ = ["register_output_tool"]

"""The file tools: reading, writing, editing, moving and searching files in the allowed folders."""

from mcp_tools.builtin.files.register import register_file_tools

__all__ = ["register_file_tools"]

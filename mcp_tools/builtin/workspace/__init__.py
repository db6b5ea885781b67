"""The allowed folders: the only code that opens, changes or lists anything in them."""

from mcp_tools.builtin.workspace.roots import Located, Root, Target, Workspace

__all__ = ["Located", "Root", "Target", "Workspace"]

"""Flags, environment and TOML files → frozen `Settings`, read once at the edge.

Flags win over `MCP_TOOLS_*` variables, those over the owner's file, that over the defaults. The rule
lists (`deny`, `ask`, `allow`) are the exception: what any of these give adds up, so that a rule in the
owner's file is not lost because a flag gives another.

The owner's file is the first of `--config`, `$MCP_TOOLS_CONFIG` and `mcp_tools.toml` in the user's
config folder. `./mcp_tools.toml` belongs to whoever wrote the project in it, perhaps a stranger, so it
can only narrow what the owner allows: each setting below says how, and most refuse.
"""

from __future__ import annotations

from mcp_tools.config.load import FILE_NAME, load_settings, user_config_folder, user_state_folder
from mcp_tools.config.settings import SETTINGS, Settings

__all__ = ["FILE_NAME", "SETTINGS", "Settings", "load_settings", "user_config_folder", "user_state_folder"]

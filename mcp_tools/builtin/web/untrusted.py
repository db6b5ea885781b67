"""Texts of strangers, with their lines kept: nothing invisible in them, and their end cannot be forged."""

from __future__ import annotations

from mcp_tools.builtin.search.untrusted import mark
from mcp_tools.output.visible import is_all_seen, is_unseen

__all__ = ["clean", "mark"]


def clean(text: str) -> str:
    """Return the text without zero-width, bidirectional, tag and control characters; lines and tabs stay."""
    if is_all_seen(text):
        return text
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        char if char in "\n\t" else " " if char.isspace() else "" if is_unseen(char) else char
        for char in lines
    )

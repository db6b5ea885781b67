"""Characters that are not seen, written out so that no literal text can look the same."""

from __future__ import annotations

from typing import Final

from mcp_tools.output.visible import is_all_seen, is_unseen

OPENING: Final = "⟦"
"""Only our own notes start with it: where it stands in the text itself it is written out too."""

_NAMES: Final = {"\r": "⟦CR⟧"}  # stands at each line end of many files, so it gets the short form


def marked(text: str, *, own_notes: bool = False) -> str:
    """Write out what is not seen as `⟦U+202E⟧`, spaces other than the plain one too. Tabs stay.

    Args:
        own_notes: The text has been through this already, so that its `⟦` are notes and stay.
    """
    if is_all_seen(text) and (own_notes or OPENING not in text):
        return text
    return "".join(_mark(char) if _needs_mark(char, own_notes) else char for char in text)


def _needs_mark(char: str, own_notes: bool) -> bool:
    if char == "\t":
        return False
    return (char == OPENING and not own_notes) or not char.isprintable() or is_unseen(char)


def _mark(char: str) -> str:
    return _NAMES.get(char) or f"⟦U+{ord(char):04X}⟧"


def without_middle(text: str, max_chars: int) -> str:
    """Cut a long text in its middle and say how much is missing there: the end of a path names the file."""
    if len(text) <= max_chars:
        return text
    note = f"⟦{len(text) - max_chars:,} characters not shown⟧"
    return f"{text[: max_chars // 3]}{note}{text[len(text) - (max_chars - max_chars // 3) :]}"

"""Characters that are not seen, written out so that no literal text can look the same."""

from __future__ import annotations

import re
from typing import Final

from mcp_tools.output.visible import is_all_seen, is_unseen

OPENING: Final = "⟦"
"""Only our own notes start with it: where it stands in the text itself it is written out too."""

MAX_BLANKS: Final = 16
"""Of blanks or tabs in one run inside a line. More would push what follows out of sight."""

_MAX_INDENT_BLANKS: Final = 40
_LONG_RUN: Final = re.compile(rf"[ \t]{{{MAX_BLANKS + 1},}}")
_DIFF_MARKS: Final = ("+", "-", " ")

_NAMES: Final = {"\r": "⟦CR⟧"}  # stands at each line end of many files, so it gets the short form


def marked(text: str, *, own_notes: bool = False) -> str:
    """Write out what is not seen as `⟦U+202E⟧`, spaces other than the plain one too. Tabs stay.

    Of blanks and tabs, a run of more than 16 becomes `⟦3,000 spaces⟧`; up to 40 blanks of indentation stay.

    Args:
        text: One line.
        own_notes: The text has been through this already, so that its `⟦` are notes and stay. A first
            character `+`, `-` or blank is the mark of a diff, and the line begins after it.
    """
    text = _seen(text, own_notes)
    if own_notes and text.startswith(_DIFF_MARKS):
        return text[0] + _LONG_RUN.sub(_run, text[1:])
    return _LONG_RUN.sub(_run, text)


def counted(spaces: int, tabs: int = 0) -> str:
    """Return the note that stands for a run of blanks."""
    counts = [
        f"{count:,} {word}{'s' if count > 1 else ''}"
        for count, word in ((spaces, "space"), (tabs, "tab"))
        if count
    ]
    return f"{OPENING}{', '.join(counts)}⟧"


def _run(run: re.Match[str]) -> str:
    blanks = run.group()
    tabs = blanks.count("\t")
    spaces = len(blanks) - tabs
    if run.start() == 0 and spaces <= _MAX_INDENT_BLANKS and tabs <= MAX_BLANKS:
        return blanks
    return counted(spaces, tabs)


def _seen(text: str, own_notes: bool) -> str:
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

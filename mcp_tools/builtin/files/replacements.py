"""Exact replacements in a text: all of them or none. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from mcp_tools.errors import ToolError

MAX_NAMED_LINES: Final = 10
_MAX_COUNTED: Final = 10_000


class Replacement(Protocol):
    """One exact replacement."""

    @property
    def oldText(self) -> str: ...  # noqa: N802 (the wire's name)

    @property
    def newText(self) -> str: ...  # noqa: N802


class _Span(NamedTuple):
    start: int
    end: int
    number: int


def apply(text: str, edits: Sequence[Replacement]) -> str:
    """Replace each `oldText`, found in the text as it was before any of them.

    Raises:
        ToolError: One occurs not at all or several times, changes nothing, or two overlap. The text
            says which edit, how often, and in which lines.
    """
    spans: list[_Span] = []
    for number, edit in enumerate(edits, start=1):
        if not edit.oldText:
            raise ToolError(f"edit {number}: oldText is empty; give the exact text to replace")
        if edit.oldText == edit.newText:
            raise ToolError(f"edit {number}: oldText and newText are the same, so it changes nothing")
        starts = _occurrences(text, edit.oldText)
        if not starts:
            raise ToolError(
                f"edit {number}: oldText does not occur in the file{_near_miss(text, edit.oldText)}"
            )
        if len(starts) > 1:
            raise ToolError(
                f"edit {number}: oldText occurs {len(starts):,} times ({_lines(text, starts)}); add text "
                "around it, so that it occurs once"
            )
        spans.append(_Span(starts[0], starts[0] + len(edit.oldText), number))
    spans.sort()
    for one, other in itertools.pairwise(spans):
        if other.start < one.end:
            first, second = sorted((one.number, other.number))
            raise ToolError(f"edits {first} and {second} overlap; join them into one edit")
    pieces: list[str] = []
    position = 0
    for span in spans:
        pieces += [text[position : span.start], edits[span.number - 1].newText]
        position = span.end
    return "".join([*pieces, text[position:]])


def _occurrences(text: str, wanted: str) -> list[int]:
    starts: list[int] = []
    position = text.find(wanted)
    while position >= 0 and len(starts) < _MAX_COUNTED:
        starts.append(position)
        position = text.find(wanted, position + 1)
    return starts


def _lines(text: str, starts: Sequence[int]) -> str:
    named, line, position = [], 1, 0
    for start in starts[:MAX_NAMED_LINES]:
        line += text.count("\n", position, start)
        position = start
        named.append(str(line))
    more = ", …" if len(starts) > MAX_NAMED_LINES else ""
    return f"lines {', '.join(named)}{more}"


def _near_miss(text: str, wanted: str) -> str:
    """Say what is there instead, where that can be told; empty otherwise."""
    if "\r\n" in text and "\r\n" not in wanted and wanted.replace("\n", "\r\n") in text:
        return ": its lines end in CRLF; send \\r\\n where oldText (and newText) has \\n"
    if "\r\n" in wanted and wanted.replace("\r\n", "\n") in text:
        return ": its lines end in \\n alone; send \\n where oldText (and newText) has \\r\\n"
    lines = text.split("\n")
    first = next((line.strip() for line in wanted.split("\n") if line.strip()), "")
    if first:
        at = [number for number, line in enumerate(lines, start=1) if line.strip() == first]
        if at:
            return (
                f"; its first line does, apart from spaces around it, at line {at[0]}, which reads "
                f"{lines[at[0] - 1][:200]!r}. Read the file again and copy the text exactly"
            )
    return "; read it again and copy the text exactly, spaces and line ends included"

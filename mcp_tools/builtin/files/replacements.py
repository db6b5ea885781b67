"""Exact replacements in a text: all of them or none. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from mcp_tools.errors import ToolError

MAX_OLD_CHARS: Final = 1024 * 1024
"""Of all `oldText` together."""

MAX_SEARCHED_CHARS: Final = 512 * 1024 * 1024
"""The text's length times the number of edits: a few seconds at the worst."""

MAX_COUNTED: Final = 100
MAX_NAMED_LINES: Final = 10

_BLOCK_CHARS: Final = 1024 * 1024
"""Searched in one step: a search holds up every other thread, some milliseconds at this size."""

_MAX_COUNTED_CHARS: Final = 10_000
"""Longer texts are told to occur more than once, not how often: each look costs their length."""

_MAX_NEAR_MISS_CHARS: Final = 2 * 1024 * 1024


class Replacement(Protocol):
    """One exact replacement."""

    @property
    def oldText(self) -> str: ...  # noqa: N802 (the wire's name)

    @property
    def newText(self) -> str: ...  # noqa: N802


class Span(NamedTuple):
    """Where a replacement goes; `number` is its edit's, from 1."""

    start: int
    end: int
    number: int
    new: str


def located(text: str, edits: Sequence[Replacement], check: Callable[[], None]) -> list[Span]:
    """Find each `oldText` in the text as it is before any of them, in the text's order.

    Occurrences that overlap count: "aa" occurs twice in "aaa", so it names no place.
    Args:
        check: Called now and then; raises when nobody waits for the answer any more.
    Raises:
        ToolError: One occurs not at all or several times, changes nothing, two overlap, or it is too
            much. The text says which edit, how often, and in which lines.
    """
    _check_sizes(text, edits)
    spans: list[Span] = []
    for number, edit in enumerate(edits, start=1):
        if not edit.oldText:
            raise ToolError(f"edit {number}: oldText is empty; give the exact text to replace")
        if edit.oldText == edit.newText:
            raise ToolError(f"edit {number}: oldText and newText are the same, so it changes nothing")
        limit = MAX_COUNTED if len(edit.oldText) <= _MAX_COUNTED_CHARS else 2
        found = _occurrences(text, edit.oldText, check)
        starts = list(itertools.islice(found, 2))
        if not starts:
            raise ToolError(
                f"edit {number}: oldText does not occur in the file{_near_miss(text, edit.oldText)}"
            )
        if len(starts) > 1:
            starts += itertools.islice(found, limit - 2)
            times = f"{'at least ' if len(starts) == limit else ''}{len(starts)} times"
            raise ToolError(
                f"edit {number}: oldText occurs {times} ({_lines(text, starts)}); add text around it, so "
                "that it occurs once"
            )
        spans.append(Span(starts[0], starts[0] + len(edit.oldText), number, edit.newText))
    spans.sort()
    for one, other in itertools.pairwise(spans):
        if other.start < one.end:
            first, second = sorted((one.number, other.number))
            raise ToolError(f"edits {first} and {second} overlap; join them into one edit")
    return spans


def applied(text: str, spans: Sequence[Span]) -> str:
    """Return the text with these replacements made."""
    pieces: list[str] = []
    position = 0
    for span in spans:
        pieces += [text[position : span.start], span.new]
        position = span.end
    return "".join([*pieces, text[position:]])


def _check_sizes(text: str, edits: Sequence[Replacement]) -> None:
    size = sum(len(edit.oldText) for edit in edits)
    if size > MAX_OLD_CHARS:
        raise ToolError(
            f"edits: oldText is {size:,} characters in all, at most {MAX_OLD_CHARS:,} are searched for; name "
            "only the lines that change, or replace the file with write_file"
        )
    most = MAX_SEARCHED_CHARS // max(len(text), 1)
    if len(edits) > most:
        raise ToolError(
            f"edits: {len(edits)} are too many at once for a file of {len(text):,} characters; send at most "
            f"{most}, then the others"
        )


def _occurrences(text: str, wanted: str, check: Callable[[], None]) -> Iterator[int]:
    position = 0
    block = max(_BLOCK_CHARS, 2 * len(wanted))
    while position <= len(text) - len(wanted):
        check()
        # Python searches for a long text in linear time, whatever it holds.
        found = text.find(wanted, position, position + block)
        if found >= 0:
            yield found
            position = found + 1
        else:
            position += block - len(wanted) + 1


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
    if len(text) > _MAX_NEAR_MISS_CHARS:
        return "; read it again and copy the text exactly, spaces and line ends included"
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

"""Lines of a file that match, found block by block in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from mcp_tools.builtin.workspace.problems import escaped
from mcp_tools.builtin.workspace.threads import Work

BLOCK_BYTES: Final = 1024 * 1024
"""Lines are searched in blocks of this size. A longer line is searched in pieces."""

BINARY_PROBE_BYTES: Final = 8 * 1024
MAX_LINE_CHARS: Final = 300
_BEFORE_CHARS: Final = 100

Finder = Callable[[bytes], list[tuple[int, int]]]
"""Given whole lines: (index, column in characters) of each line that matches."""


class Line(NamedTuple):
    """A matching line: its number (the first is 1), and what is shown of it."""

    number: int
    text: str


def literal_finder(wanted: str, *, ignore_case: bool) -> Finder:
    """Find lines that contain a text."""
    if "\n" in wanted:
        return lambda _: []  # lines are searched one by one, so that none can match
    if ignore_case:
        folded = wanted.casefold()

        def find_folded(lines: bytes) -> list[tuple[int, int]]:
            texts = lines.decode("utf-8", "surrogateescape").split("\n")
            columns = ((i, text.casefold().find(folded)) for i, text in enumerate(texts))
            return [(i, column) for i, column in columns if column >= 0]

        return find_folded
    needle = wanted.encode()

    def find(lines: bytes) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        index, counted_to = 0, 0
        position = lines.find(needle)
        while position >= 0:
            start = lines.rfind(b"\n", 0, position) + 1
            index += lines.count(b"\n", counted_to, start)
            counted_to = start
            found.append((index, len(lines[start:position].decode("utf-8", "surrogateescape"))))
            end = lines.find(b"\n", position)
            position = lines.find(needle, end) if end >= 0 else -1
        return found

    return find


def matching_lines(fd: int, find: Finder, work: Work, note: Callable[[str], None]) -> Iterator[Line]:
    """Yield the lines of an open file that match.

    Args:
        note: Told why the file is not wholly searched, if so.
    """
    number, rest, position = 1, b"", 0
    while True:
        block = os.pread(fd, BLOCK_BYTES, position)
        if position == 0 and b"\0" in block[:BINARY_PROBE_BYTES]:
            note("are binary and were skipped")
            return
        position += len(block)
        lines, rest = _whole_lines(rest + block, is_last=not block)
        if lines:
            texts: list[bytes] | None = None
            # Without its last line break, after which an empty line would seem to follow.
            for index, column in find(lines.removesuffix(b"\n")):
                texts = texts if texts is not None else lines.split(b"\n")
                yield Line(number + index, _excerpt(texts[index], column))
            number += lines.count(b"\n")
        if not block:
            return
        if work.is_out_of_time:
            note("were not searched to their end, because time was up")
            return


def _whole_lines(content: bytes, *, is_last: bool) -> tuple[bytes, bytes]:
    """Split into whole lines and the beginning of the next; a line over a block is taken in pieces."""
    if is_last:
        return content, b""
    end = content.rfind(b"\n") + 1
    if end == 0 and len(content) > BLOCK_BYTES:
        return content, b""
    return content[:end], content[end:]


def _excerpt(line: bytes, column: int) -> str:
    text = line.decode("utf-8", "backslashreplace").rstrip("\r")
    start = max(0, column - _BEFORE_CHARS) if len(text) > MAX_LINE_CHARS else 0
    cut = text[start : start + MAX_LINE_CHARS]
    before = "…" if start > 0 else ""
    after = "…" if start + len(cut) < len(text) else ""
    return before + "\t".join(escaped(piece) for piece in cut.split("\t")) + after

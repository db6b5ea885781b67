"""Lines of a long text that match, found block by block in bounded memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Final, NamedTuple

from mcp_tools.output.preview import boundary

BLOCK_CHARS: Final = 1_000_000
"""Lines are searched in blocks of this size. A longer line is searched in parts."""

MAX_LINE_CHARS: Final = 300
_BEFORE_CHARS: Final = 100

Find = Callable[[str], list[tuple[int, int]]]
"""Given whole lines: (index, column) of each one that matches."""


class Line(NamedTuple):
    """Where a matching line begins in the whole, and what is shown of it.

    None instead of a text: time was up, and nothing from here on was searched.
    """

    offset: int
    text: str | None


def literal_finder(wanted: str, *, ignore_case: bool) -> Find:
    """Find lines that contain a text."""
    pattern = re.compile(re.escape(wanted), re.IGNORECASE if ignore_case else 0)

    def find(lines: str) -> list[tuple[int, int]]:
        if pattern.search(lines) is None:
            return []
        matches = ((index, pattern.search(line)) for index, line in enumerate(lines.split("\n")))
        return [(index, match.start()) for index, match in matches if match is not None]

    return find


def regex_finder(stack: ExitStack, pattern: str, *, ignore_case: bool) -> Find:
    """Find lines that match a regular expression, in a process of its own, which ends with `stack`.

    Raises:
        ToolError: The pattern is not valid; while searching: it takes too long.
    """
    # Imported on use: few outputs are ever searched.
    from mcp_tools.builtin.files.regex_process import RegexProcess

    process = stack.enter_context(RegexProcess(pattern, ignore_case=ignore_case))
    return lambda lines: process.search(lines.encode())


def matching_lines(
    pieces: Iterable[str], find: Find, offset: int, within_s: float, is_cancelled: Callable[[], bool]
) -> Iterator[Line]:
    """Yield the lines of a text that match.

    Args:
        pieces: The text, from `offset` of the whole on.
        within_s: Seconds, after which the last `Line` says where it stopped.
    """
    deadline = time.monotonic() + within_s
    for block in _blocks(pieces):
        if time.monotonic() > deadline or is_cancelled():
            yield Line(offset, None)
            return
        # Without its last line break, after which an empty line would seem to follow.
        found = find(block.removesuffix("\n"))
        if found:
            lines = block.split("\n")
            start, at = offset, 0
            for index, column in found:
                start += sum(len(line) + 1 for line in lines[at:index])
                at = index
                yield Line(start, _excerpt(lines[index], column))
        offset += len(block)


def _blocks(pieces: Iterable[str]) -> Iterator[str]:
    """Yield whole lines, as many as are in a million characters, or a part of a line that is longer."""
    waiting: list[str] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= BLOCK_CHARS:
            block = "".join(waiting)
            end = block.rfind("\n") + 1 or len(block)
            yield block[:end]
            waiting, size = [block[end:]], len(block) - end
    rest = "".join(waiting)
    if rest:
        yield rest


def _excerpt(line: str, column: int) -> str:
    line = line.removesuffix("\r")
    if len(line) <= MAX_LINE_CHARS:
        return line
    start = boundary(line, max(0, column - _BEFORE_CHARS))
    end = boundary(line, start + MAX_LINE_CHARS)
    return ("…" if start else "") + line[start:end] + ("…" if end < len(line) else "")

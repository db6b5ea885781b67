"""Parts of a text file, whatever its size, in bounded memory: first lines, last lines, a range."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from mcp_tools.builtin.files.text import decode, trimmed_to_characters
from mcp_tools.builtin.workspace.problems import FileProblem
from mcp_tools.builtin.workspace.snapshot import (
    BLOCK_BYTES,
    SETTLE_S,
    TRIES,
    is_settled,
    is_unchanged,
)
from mcp_tools.builtin.workspace.threads import Work

PAGE_BYTES: Final = 100_000
"""Text returned at once. Some clients show a model no more than 25,000 tokens of a result."""

SCAN_S: Final = 8.0


class Page(NamedTuple):
    """Text as it is in the file, and what to say about what is missing of what was asked; or None."""

    text: str
    notice: str | None


def read_page(fd: int, path: str, find: Callable[[int, int], tuple[int, bytes, str | None]]) -> Page:
    """Read a page, again if the file was changed meanwhile.

    Args:
        find: Given the descriptor and the size, returns where the page starts, its bytes, its notice.
    Raises:
        FileProblem: It is not UTF-8, or kept being changed (growing at its end is no change).
    """
    smallest: int | None = None
    for _ in range(TRIES):
        before = os.fstat(fd)
        was_settled = is_settled(before)
        start, content, notice = find(fd, before.st_size)
        after = os.fstat(fd)
        if was_settled and is_unchanged(before, after):
            return Page(decode(content, path, starts_at=start), notice)
        smallest = before.st_size if smallest is None else min(smallest, before.st_size)
        time.sleep(SETTLE_S)
    if smallest is not None and os.fstat(fd).st_size > smallest:
        grew = f"the file is growing: its first {before.st_size:,} bytes were read, the last line may be half"
        return Page(decode(content, path, starts_at=start), "; ".join(filter(None, (notice, grew))))
    raise FileProblem(path, "is being rewritten right now, so its lines would be a mixture; try again")


def last_lines(fd: int, size_bytes: int, count: int) -> tuple[int, bytes, str | None]:
    """The last `count` lines, or as many of them as a page holds."""
    start = max(0, size_bytes - PAGE_BYTES)
    content = _pread(fd, min(PAGE_BYTES, size_bytes), start)
    body_end = len(content) - 1 if content.endswith(b"\n") else len(content)
    position = body_end
    for _ in range(count):
        position = content.rfind(b"\n", 0, position)
        if position < 0:
            break
    if position >= 0:
        return start + position + 1, content[position + 1 :], None
    if start == 0:
        return 0, content, None
    first_break = content.find(b"\n", 0, body_end)
    if first_break >= 0:
        if _pread(fd, 1, start - 1) != b"\n":
            start, content = start + first_break + 1, content[first_break + 1 :]
        held = content.count(b"\n") + (not content.endswith(b"\n"))
        return start, content, f"a page holds {PAGE_BYTES:,} bytes: these are the last {held:,} lines"
    trimmed = trimmed_to_characters(content)
    lost = content.find(trimmed) if trimmed else 0
    return start + lost, trimmed, f"the last line is longer than {PAGE_BYTES:,} bytes: this is its end only"


def line_range(
    fd: int, path: str, offset: int, limit: int | None, work: Work
) -> tuple[int, bytes, str | None]:
    """`limit` lines from line `offset` (the first is 1), or as many as a page holds.

    Raises:
        FileProblem: The file has fewer lines, or is too big to count to there in time.
    """
    position, line = 0, 1
    ends_in_break = True
    while line < offset:
        block = os.pread(fd, BLOCK_BYTES, position)
        if not block:
            count = line - 1 if ends_in_break else line
            raise FileProblem(path, f"has {count:,} lines; line {offset:,} is beyond its end")
        if work.is_out_of_time:
            raise FileProblem(
                path,
                f"line {offset:,} was not reached in {SCAN_S:g} s (line {line:,} was); use tail or "
                "grep_files",
            )
        breaks = block.count(b"\n")
        if line + breaks < offset:
            line += breaks
            position += len(block)
            ends_in_break = block.endswith(b"\n")
            continue
        index = -1
        for _ in range(offset - line):
            index = block.index(b"\n", index + 1)
        position += index + 1
        line = offset
    if offset > 1 and not os.pread(fd, 1, position):
        raise FileProblem(path, f"has {offset - 1:,} lines; line {offset:,} is beyond its end")
    return _lines_from(fd, position, offset, limit)


def _lines_from(fd: int, start: int, line: int, count: int | None) -> tuple[int, bytes, str | None]:
    content = _pread(fd, PAGE_BYTES + 1, start)
    end = -1
    for _ in range(count if count is not None else content.count(b"\n") + 1):
        found = content.find(b"\n", end + 1)
        if found < 0:
            break
        end = found
    else:
        return start, content[: end + 1], None
    if len(content) <= PAGE_BYTES:
        return start, content, None
    whole = content[: content.rfind(b"\n", 0, PAGE_BYTES) + 1]
    if not whole:
        return (
            start,
            trimmed_to_characters(content[:PAGE_BYTES]),
            f"line {line:,} is longer than {PAGE_BYTES:,} bytes: this is its beginning only; grep_files can "
            "look into the rest",
        )
    shown = whole.count(b"\n")
    return (
        start,
        whole,
        f"a page holds {PAGE_BYTES:,} bytes: these are lines {line:,} to {line + shown - 1:,}; continue with "
        f"offset={line + shown}",
    )


def _pread(fd: int, size_bytes: int, start: int) -> bytes:
    blocks: list[bytes] = []
    while size_bytes > 0:
        block = os.pread(fd, size_bytes, start)
        if not block:
            break
        blocks.append(block)
        start += len(block)
        size_bytes -= len(block)
    return b"".join(blocks)

"""A unified diff a person can trust: nothing in it can hide, and what was cut is said. Pure."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from mcp_tools.builtin.workspace.problems import escaped

MAX_LINES: Final = 200
MAX_CHARS: Final = 16_000
MAX_LINE_CHARS: Final = 500
CONTEXT_LINES: Final = 3

_MAX_MATCHED_LINES: Final = 1_000
"""Above it `difflib`, which is quadratic, is not asked: the old lines are shown as replaced."""


def unified(old: str, new: str, path: str, *, max_lines: int = MAX_LINES, max_chars: int = MAX_CHARS) -> str:
    """Show the change from `old` to `new`, cut in the middle of nothing and never silently.

    Line ends other than a newline, control and direction-changing characters are written out.
    """
    if old == new:
        return "(the content stays the same)"
    name = escaped(path)
    lines = [f"--- {name}", f"+++ {name}", *_hunks(_split(old), _split(new))]
    kept: list[str] = []
    chars = 0
    for line in lines:
        chars += min(len(line), MAX_LINE_CHARS) + 1
        if len(kept) >= max_lines or chars > max_chars:
            break
        kept.append(_one_line(line))
    cut = len(lines) - len(kept)
    if cut:
        added = sum(line.startswith("+") for line in lines[2:])
        removed = sum(line.startswith("-") for line in lines[2:])
        encoded = new.encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(encoded).hexdigest()
        kept.append(
            f"[{cut:,} more lines of this diff are not shown; in all {added:,} lines added, {removed:,} "
            f"removed; the whole new content is {len(encoded):,} bytes, sha256 {digest}]"
        )
    return "\n".join(kept)


def _split(text: str) -> list[str]:
    # Only "\n" ends a line: splitlines() would also break at form feeds and U+2028.
    lines = text.split("\n")
    last = lines.pop()
    whole = [line + "\n" for line in lines]
    return [*whole, last] if last else whole


def _one_line(line: str) -> str:
    if len(line) > MAX_LINE_CHARS:
        line = f"{line[:MAX_LINE_CHARS]}[… {len(line) - MAX_LINE_CHARS:,} more characters]"
    return "\t".join(escaped(piece) for piece in line.split("\t"))


def _hunks(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    for group in _groups(old, new):
        first, last = group[0], group[-1]
        yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@"
        for tag, old_start, old_end, new_start, new_end in group:
            if tag == "equal":
                yield from _marked(" ", old[old_start:old_end])
                continue
            yield from _marked("-", old[old_start:old_end])
            yield from _marked("+", new[new_start:new_end])


_Opcode = tuple[str, int, int, int, int]


def _groups(old: Sequence[str], new: Sequence[str]) -> Iterator[list[_Opcode]]:
    """Yield the changes that lie close together, each group with its context before and after."""
    group: list[_Opcode] = []
    for tag, i, j, k, m in _opcodes(old, new):
        if tag != "equal":
            group.append((tag, i, j, k, m))
            continue
        is_last = (j, m) == (len(old), len(new))
        if group and (j - i > 2 * CONTEXT_LINES or is_last):
            end = min(j - i, CONTEXT_LINES)
            yield [*group, ("equal", i, i + end, k, k + end)]
            group = []
        if not is_last:
            # Between two changes of one group all equal lines are kept, before the first only some.
            start = 0 if group else max(0, j - i - CONTEXT_LINES)
            group.append(("equal", i + start, j, k + start, m))
    if group:
        yield group


def _opcodes(old: Sequence[str], new: Sequence[str]) -> Iterator[_Opcode]:
    shortest = min(len(old), len(new))
    head = 0
    while head < shortest and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < shortest - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    old_end, new_end = len(old) - tail, len(new) - tail
    if head:
        yield ("equal", 0, head, 0, head)
    if max(old_end, new_end) - head > _MAX_MATCHED_LINES:
        yield ("replace", head, old_end, head, new_end)
    else:
        matcher = difflib.SequenceMatcher(None, old[head:old_end], new[head:new_end])
        for tag, i, j, k, m in matcher.get_opcodes():
            yield (tag, i + head, j + head, k + head, m + head)
    if tail:
        yield ("equal", old_end, len(old), new_end, len(new))


def _range(start: int, end: int) -> str:
    length = end - start
    if length == 1:
        return str(start + 1)
    return f"{start if length == 0 else start + 1},{length}"


def _marked(mark: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield mark + line.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"

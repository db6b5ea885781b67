"""A unified diff a person can trust: nothing in it can hide, and what was cut is said first. Pure."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from mcp_tools.builtin.files.matching import Effort, Run, changed_runs
from mcp_tools.builtin.files.replacements import Span, applied
from mcp_tools.output.marks import marked, without_middle

MAX_LINES: Final = 200
MAX_CHARS: Final = 16_000
MAX_PREVIEW_CHARS: Final = 5_000
"""Of a diff in a question, which has its own limit: what is cut here is cut with knowledge of the diff."""

MAX_LINE_CHARS: Final = 500
MAX_PATH_CHARS: Final = 300
CONTEXT_LINES: Final = 3

_NO_NEWLINE: Final = "\n\\ No newline at end of file"
_CHANGES: Final = (("added", "+"), ("removed", "-"))

Check = Callable[[], None]


class Diff(NamedTuple):
    """`left_out` says which changed lines `text` does not show; empty when it shows them all."""

    text: str
    left_out: str


def whole(
    old: str, new: str, path: str, check: Check, *, max_chars: int = MAX_CHARS, is_end: bool = False
) -> Diff:
    """Show the change from one content to another.

    Line ends other than a newline, control and direction-changing characters are written out
    (`⟦U+202E⟧`). Beyond `max_chars` or 200 lines each hunk keeps its first and last changed line, then
    added lines come before removed ones and those before the lines around them; the first line then
    says what is missing.

    Args:
        check: Called now and then; raises when nobody waits for the answer any more.
        is_end: Both are only the ends of longer contents.
    """
    return _rendered([_Block(0, _lines(old), 0, _lines(new))], new, path, check, max_chars, is_end)


def of_edits(old: str, spans: Sequence[Span], path: str, check: Check, *, max_chars: int = MAX_CHARS) -> Diff:
    """Show replacements in a text as `whole` does, without comparing what lies between them."""
    return _rendered(_blocks(old, spans), applied(old, spans), path, check, max_chars)


class _Block(NamedTuple):
    """Lines that hold a change, and where they begin in both texts."""

    old_start: int
    old: Sequence[str]
    new_start: int
    new: Sequence[str]


def _blocks(old: str, spans: Sequence[Span]) -> Iterator[_Block]:
    groups: list[tuple[int, int, list[Span]]] = []
    for span in spans:
        start, end = _surroundings(old, span)
        if groups and start <= groups[-1][1]:
            first, _, others = groups.pop()
            groups.append((first, end, [*others, span]))
        else:
            groups.append((start, end, [span]))
    position = line = shift = 0
    for start, end, inside in groups:
        line += old.count("\n", position, start)
        position = start
        before = _lines(old[start:end])
        moved = [span._replace(start=span.start - start, end=span.end - start) for span in inside]
        after = _lines(applied(old[start:end], moved))
        yield _Block(line, before, line + shift, after)
        shift += len(after) - len(before)


def _surroundings(text: str, span: Span) -> tuple[int, int]:
    """Return where the context before a span begins and the context after it ends."""
    start = span.start
    for _ in range(CONTEXT_LINES + 1):
        start = text.rfind("\n", 0, start)
        if start < 0:
            break
    end = span.end
    for _ in range(CONTEXT_LINES + 1):
        end = text.find("\n", end) + 1
        if end == 0:
            return start + 1, len(text)
    return start + 1, end


def _lines(text: str) -> list[str]:
    # Only "\n" ends a line: splitlines() would also break at form feeds and U+2028.
    lines = text.split("\n")
    last = lines.pop()
    return [*lines, last + _NO_NEWLINE] if last else lines


class _Part(NamedTuple):
    """Lines of one kind in a hunk: unchanged, removed or added. `partners` are what they replace."""

    mark: str
    lines: Sequence[str]
    partners: Sequence[str] = ()


class _Hunk(NamedTuple):
    header: str
    parts: list[_Part]

    def count(self, mark: str) -> int:
        return sum(len(part.lines) for part in self.parts if part.mark == mark)


def _hunks(block: _Block, check: Check) -> Iterator[_Hunk]:
    group: list[Run] = []
    for run in changed_runs(block.old, block.new, Effort(check)):
        if group and run.old_start - group[-1].old_end > 2 * CONTEXT_LINES:
            yield _hunk(block, group)
            group = []
        group.append(run)
    if group:
        yield _hunk(block, group)


def _hunk(block: _Block, runs: Sequence[Run]) -> _Hunk:
    first, last = runs[0], runs[-1]
    before = min(first.old_start, CONTEXT_LINES)
    after = min(len(block.old) - last.old_end, CONTEXT_LINES)
    old = _range(block.old_start + first.old_start - before, block.old_start + last.old_end + after)
    new = _range(block.new_start + first.new_start - before, block.new_start + last.new_end + after)
    parts: list[_Part] = []
    position = first.old_start - before
    for run in runs:
        removed = block.old[run.old_start : run.old_end]
        added = block.new[run.new_start : run.new_end]
        parts.append(_Part(" ", block.old[position : run.old_start]))
        parts += [_Part("-", removed, added), _Part("+", added, removed)]
        position = run.old_end
    parts.append(_Part(" ", block.old[position : last.old_end + after]))
    return _Hunk(f"@@ -{old} +{new} @@", [part for part in parts if part.lines])


def _range(start: int, end: int) -> str:
    length = end - start
    if length == 1:
        return str(start + 1)
    return f"{start if length == 0 else start + 1},{length}"


def _rendered(
    blocks: Iterable[_Block], new: str, path: str, check: Check, max_chars: int, is_end: bool = False
) -> Diff:
    hunks = [hunk for block in blocks for hunk in _hunks(block, check)]
    if not hunks:
        return Diff("(the content stays the same)", "")
    name = without_middle(marked(path), MAX_PATH_CHARS)
    head = [f"--- {name}", f"+++ {name}"]
    lines, left_out = _complete(hunks, max_chars), ""
    if lines is None:
        lines, left_out = _shortened(hunks, max_chars, check)
    if left_out:
        encoded = new.encode("utf-8", "backslashreplace")
        size = f"{len(encoded):,} bytes, sha256 {hashlib.sha256(encoded).hexdigest()}"
        what = "The new end, without gaps" if is_end else "The whole new content"
        head.insert(0, f"[Not everything is shown. Missing: {left_out}. {what}: {size}]")
    return Diff("\n".join([*head, *lines]), left_out)


def _complete(hunks: Sequence[_Hunk], max_chars: int) -> list[str] | None:
    """Return all lines, or None where they are too many or too long."""
    if sum(len(part.lines) for hunk in hunks for part in hunk.parts) > MAX_LINES:
        return None
    if sum(len(line) for hunk in hunks for part in hunk.parts for line in part.lines) > max_chars:
        return None
    lines: list[str] = []
    for hunk in hunks:
        lines.append(hunk.header)
        for part in hunk.parts:
            lines += [row for line in part.lines for row in _rows(part.mark, line, marked)]
    return lines if _fits(lines, max_chars) else None


def _fits(lines: Sequence[str], max_chars: int) -> bool:
    return len(lines) <= MAX_LINES and sum(len(line) + 1 for line in lines) <= max_chars


class _Place(NamedTuple):
    """A line of the diff; the order of places is the order of the lines."""

    hunk: int
    part: int
    line: int


def _shortened(hunks: Sequence[_Hunk], max_chars: int, check: Check) -> tuple[list[str], str]:
    ranked = heapq.nsmallest(MAX_LINES, _by_importance(hunks, check))
    few, many = 1, len(ranked) + 1  # the most important `few` fit, or there is nothing less to show
    while many - few > 1:
        middle = (few + many) // 2
        lines = _with_gaps(hunks, sorted(place for _, place in ranked[:middle]))
        few, many = (middle, many) if _fits(lines, max_chars) else (few, middle)
    kept = sorted(place for _, place in ranked[:few])
    return _with_gaps(hunks, kept), _left_out(hunks, kept)


def _by_importance(hunks: Sequence[_Hunk], check: Check) -> Iterator[tuple[tuple[int, int], _Place]]:
    for number, hunk in enumerate(hunks):
        check()
        changed = [index for index, part in enumerate(hunk.parts) if part.mark != " "]
        ends = {(changed[0], 0), (changed[-1], len(hunk.parts[changed[-1]].lines) - 1)}
        for index, part in enumerate(hunk.parts):
            last = len(part.lines) - 1
            for line in _outer(last + 1):
                rank = (
                    (0, 0) if (index, line) in ends else ("+- ".index(part.mark) + 1, min(line, last - line))
                )
                yield rank, _Place(number, index, line)


def _outer(count: int) -> Iterable[int]:
    # Lines further inside than this can never be among the few that are shown.
    return range(count) if count <= 2 * MAX_LINES else (*range(MAX_LINES), *range(count - MAX_LINES, count))


def _with_gaps(hunks: Sequence[_Hunk], kept: Sequence[_Place]) -> list[str]:
    """Return the kept lines, with a note wherever changed lines between them are missing."""
    wanted: dict[tuple[int, int], list[int]] = {}
    for place in kept:
        wanted.setdefault((place.hunk, place.part), []).append(place.line)
    shown = {place.hunk for place in kept}
    lines: list[str] = []
    missing = {"-": 0, "+": 0, " ": 0}
    for number, hunk in enumerate(hunks):
        if number in shown:
            lines += [*_gap(missing), hunk.header]
        for index, part in enumerate(hunk.parts):
            position = 0
            for line in wanted.get((number, index), ()):
                missing[part.mark] += line - position
                lines += [*_gap(missing), *_short_rows(part, line)[0]]
                position = line + 1
            missing[part.mark] += len(part.lines) - position
        if number in shown:
            lines += _gap(missing)
    return [*lines, *_gap(missing)]


def _gap(missing: dict[str, int]) -> list[str]:
    added, removed = missing["+"], missing["-"]
    missing.update({"-": 0, "+": 0, " ": 0})
    return (
        [f"[… {added:,} added and {removed:,} removed lines are not shown here]"] if added or removed else []
    )


def _left_out(hunks: Sequence[_Hunk], kept: Iterable[_Place]) -> str:
    """Say which changed lines are not shown whole; empty where all are."""
    shown = {"-": 0, "+": 0, " ": 0}
    cut = 0
    for place in kept:
        part = hunks[place.hunk].parts[place.part]
        shown[part.mark] += 1
        cut += part.mark != " " and _short_rows(part, place.line)[1]
    counts = [(name, sum(hunk.count(mark) for hunk in hunks), shown[mark]) for name, mark in _CHANGES]
    missing = [
        f"{total - there:,} of {total:,} {name} lines" for name, total, there in counts if there < total
    ]
    if cut:
        missing.append(f"parts of {cut:,} long line{'s' if cut > 1 else ''}")
    return ", ".join(missing)


def _rows(mark: str, line: str, write: Callable[[str], str]) -> list[str]:
    text, _, note = line.partition("\n")
    return [mark + write(text), note] if note else [mark + write(text)]


def _short_rows(part: _Part, index: int) -> tuple[list[str], bool]:
    """Return a line as it is shown where room is short, and whether some of it is missing."""
    line = part.lines[index]
    if len(line) <= MAX_LINE_CHARS:
        return _rows(part.mark, line, marked), False
    partner = part.partners[index] if index < len(part.partners) else ""
    return _rows(part.mark, line, lambda text: _pieces(text, partner)), True


def _pieces(text: str, partner: str) -> str:
    """Show both ends of a long line, and where what differs from its partner begins and ends."""
    size = len(text)
    if partner:
        start = _same_start(text, partner)
        end = size - min(_same_start(text[::-1], partner[::-1]), size - start)
        windows = [(0, 100), (start - 20, start + 130), (end - 130, end + 20), (size - 100, size)]
    else:
        windows = [(0, 320), (size - 180, size)]
    pieces: list[str] = []
    position = 0
    for first, last in sorted((max(first, 0), min(last, size)) for first, last in windows):
        if first > position:
            pieces.append(f"⟦{first - position:,} characters not shown⟧")
            position = first
        if last > position:
            pieces.append(marked(text[position:last]))
            position = last
    return "".join(pieces)


def _same_start(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their start."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low

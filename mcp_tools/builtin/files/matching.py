"""Which lines of a text stay and which change, in bounded time. Pure.

Lines that occur once in both texts are matched first (what is called a patience diff), what lies
between them by Myers's shortest edit. Where the effort runs out, the rest counts as replaced: a
longer answer, never a wrong one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

MAX_STEPS: Final = 1_500_000
"""Looks at a line, for one comparison: under a second."""

_MAX_EDITS: Final = 100


class Run(NamedTuple):
    """Old lines `old_start` to `old_end` become new lines `new_start` to `new_end`; ends excluded."""

    old_start: int
    old_end: int
    new_start: int
    new_end: int


class Effort:
    """What comparing may still cost; `check` raises when nobody waits for the answer any more."""

    def __init__(self, check: Callable[[], None], steps: int = MAX_STEPS) -> None:
        self._check = check
        self._left = steps

    def spend(self, steps: int) -> bool:
        """Take `steps`, or return False where that many are not left."""
        self._check()
        if steps > self._left:
            return False
        self._left -= steps
        return True


def changed_runs(old: Sequence[str], new: Sequence[str], effort: Effort) -> Iterator[Run]:
    """Yield the changes from `old` to `new`, in order; all lines between two of them are equal."""
    i = j = 0
    for start, other, count in sorted(_staying(old, new, effort)):
        if start > i or other > j:
            yield Run(i, start, j, other)
        i, j = start + count, other + count
    if i < len(old) or j < len(new):
        yield Run(i, len(old), j, len(new))


_Region = tuple[int, int, int, int]


def _staying(old: Sequence[str], new: Sequence[str], effort: Effort) -> Iterator[tuple[int, int, int]]:
    """Yield stretches that stay, as (start in old, start in new, how many lines)."""
    regions: list[_Region] = [(0, len(old), 0, len(new))]
    while regions:
        a, b, c, d = regions.pop()
        head = 0
        while a + head < b and c + head < d and old[a + head] == new[c + head]:
            head += 1
        if head:
            yield a, c, head
            a, c = a + head, c + head
        tail = 0
        while a < b - tail and c < d - tail and old[b - tail - 1] == new[d - tail - 1]:
            tail += 1
        if tail:
            b, d = b - tail, d - tail
            yield b, d, tail
        if a == b or c == d or not effort.spend(b - a + d - c):
            continue
        anchors = _anchors(old, new, (a, b, c, d))
        if anchors:
            # Each region but the first begins with an anchor, which is then part of its head.
            starts, ends = [(a, c), *anchors], [*anchors, (b, d)]
            regions += [(i, j, k, m) for (i, k), (j, m) in zip(starts, ends, strict=True)]
        else:
            yield from _shortest(old, new, (a, b, c, d), effort)


def _anchors(old: Sequence[str], new: Sequence[str], region: _Region) -> list[tuple[int, int]]:
    """Return the longest ascending series of lines that occur exactly once in both."""
    a, b, c, d = region
    in_old, in_new = _only_once(old, a, b), _only_once(new, c, d)
    pairs = [(i, in_new[line]) for line, i in in_old.items() if line in in_new]
    tops: list[int] = []  # the last place in `new` of the best series of each length, and which pair that is
    which: list[int] = []
    before: list[int] = []
    for number, (_, j) in enumerate(pairs):
        length = bisect_left(tops, j)
        before.append(which[length - 1] if length else -1)
        tops[length : length + 1] = [j]
        which[length : length + 1] = [number]
    series: list[tuple[int, int]] = []
    number = which[-1] if which else -1
    while number >= 0:
        series.append(pairs[number])
        number = before[number]
    return series[::-1]


def _only_once(lines: Sequence[str], start: int, end: int) -> dict[str, int]:
    first: dict[str, int] = {}
    repeated: set[str] = set()
    for index in range(start, end):
        if first.setdefault(lines[index], index) != index:
            repeated.add(lines[index])
    return {line: index for line, index in first.items() if line not in repeated}


def _shortest(
    old: Sequence[str], new: Sequence[str], region: _Region, effort: Effort
) -> Iterator[tuple[int, int, int]]:
    a, b, c, d = region
    # A line that only one side has cannot stay; without them the search is short.
    both = set(old[a:b]) & set(new[c:d])
    left = [i for i in range(a, b) if old[i] in both]
    right = [j for j in range(c, d) if new[j] in both]
    for i, j in _common([old[i] for i in left], [new[j] for j in right], effort):
        yield left[i], right[j], 1


def _common(left: Sequence[str], right: Sequence[str], effort: Effort) -> Iterator[tuple[int, int]]:
    """Yield pairs of equal lines, as far as the effort goes."""
    start, is_affordable = (0, 0), True
    while start[0] < len(left) and start[1] < len(right) and is_affordable:
        pairs, start, is_affordable = _common_near(left, right, start, effort)
        yield from pairs


def _common_near(
    left: Sequence[str], right: Sequence[str], start: tuple[int, int], effort: Effort
) -> tuple[list[tuple[int, int]], tuple[int, int], bool]:
    """Return the pairs that the next 100 edits lead past, where they end, and whether to go on.

    After Myers (1986). The whole way at once would cost the square of its edits.
    """
    from_i, from_j = start
    n, m = len(left) - from_i, len(right) - from_j
    furthest = {1: 0}
    history: list[dict[int, int]] = []
    best, best_edits, is_affordable = (0, 0), 0, True
    for edits in range(min(n + m, _MAX_EDITS) + 1):
        history.append(furthest.copy())
        steps = 0
        for k in range(-edits, edits + 1, 2):
            i = first = _step(furthest, k, edits)
            while i < n and i - k < m and left[from_i + i] == right[from_j + i - k]:
                i += 1
            steps += 1 + i - first
            furthest[k] = i
            if i <= n and i - k <= m and 2 * i - k > sum(best):
                best, best_edits = (i, i - k), edits
        is_affordable = effort.spend(steps)
        if best == (n, m) or not is_affordable:
            break
    pairs: list[tuple[int, int]] = []
    i, j = best
    for edits in reversed(range(best_edits + 1)):
        k = i - j
        first = _step(history[edits], k, edits)
        while i > first:
            i, j = i - 1, j - 1
            pairs.append((from_i + i, from_j + j))
        if edits:
            i, j = (i, j - 1) if _is_down(history[edits], k, edits) else (i - 1, j)
    return pairs, (from_i + best[0], from_j + best[1]), is_affordable


def _is_down(furthest: dict[int, int], k: int, edits: int) -> bool:
    return k == -edits or (k != edits and furthest[k - 1] < furthest[k + 1])


def _step(furthest: dict[int, int], k: int, edits: int) -> int:
    return furthest[k + 1] if _is_down(furthest, k, edits) else furthest[k - 1] + 1

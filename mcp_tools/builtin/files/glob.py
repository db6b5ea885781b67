"""Name patterns as people write them (`*.py`, `src/**/test_?.py`, `*.{js,ts}`), matched in bounded time.

Pure. A pattern is cut into path components, each of which is matched alone, so that no pattern can
make a match take more than (components x components) steps.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from mcp_tools.errors import ToolError

# Not the globs of policy rules (mcp_tools/policy/glob.py). Models write these, as they know them from
# shells and .gitignore: with braces and classes, on a bare name at any depth, `a/**` fitting `a` itself.
# Owners write those, where a bracket is refused because a rule must not mean more or less than it says.
# A shared core would need all of this in the part that decides what is forbidden.

MAX_PATTERN_CHARS: Final = 1_000
MAX_ALTERNATIVES: Final = 64
MAX_COMPONENTS: Final = 64
MAX_EXCLUDED: Final = 128
"""Alternatives of all excluding patterns together: each name of a walk is held against every one."""


class SearchPattern(NamedTuple):
    """A compiled pattern. `None` among the components of an alternative stands for `**`."""

    alternatives: tuple[tuple[re.Pattern[str] | None, ...], ...]

    def matches(self, parts: Sequence[str]) -> bool:
        """Whether the whole relative path matches."""
        return any(_matches(components, parts) for components in self.alternatives)


def compile_glob(pattern: str, *, anywhere: bool = True) -> SearchPattern:
    """Compile a pattern.

    Without a `/` it is matched against the name at any depth (with `anywhere`), otherwise against the
    path from where the search starts. `**` stands for any number of folders, `*` and `?` never for a
    `/`, `{a,b}` for either.
    Raises:
        ToolError: Empty, too long, or with too many alternatives.
    """
    if not pattern.strip("/") or len(pattern) > MAX_PATTERN_CHARS:
        raise ToolError(
            f"a pattern has 1 to {MAX_PATTERN_CHARS:,} characters, for example *.py or src/**/*.ts"
        )
    if pattern.count("/") > MAX_COMPONENTS:
        raise ToolError(f"a pattern has at most {MAX_COMPONENTS} parts between slashes")
    alternatives = []
    for one in _expanded(pattern):
        components: list[re.Pattern[str] | None] = []
        for part in one.strip("/").split("/"):
            if part in ("", "."):
                continue
            if part == "**":
                if not components or components[-1] is not None:  # `**/**` says no more than `**`
                    components.append(None)
                continue
            # fnmatch makes each `*` atomic, so that matching one name cannot take exponential time.
            components.append(re.compile(fnmatch.translate(part)))
        if anywhere and "/" not in one.strip("/"):
            components.insert(0, None)
        alternatives.append(tuple(components))
    return SearchPattern(tuple(alternatives))


def _matches(components: Sequence[re.Pattern[str] | None], parts: Sequence[str]) -> bool:
    # reached[i]: the first i components match the parts so far.
    reached = [True] + [False] * len(components)
    _pass_over(components, reached)
    for part in parts:
        following = [False] * (len(components) + 1)
        for index, component in enumerate(components):
            if not reached[index]:
                continue
            if component is None:
                following[index] = True
            elif component.match(part):
                following[index + 1] = True
        _pass_over(components, following)
        reached = following
        if not any(reached):
            return False
    return reached[-1]


def _pass_over(components: Sequence[re.Pattern[str] | None], reached: list[bool]) -> None:
    for index, component in enumerate(components):
        if component is None and reached[index]:
            reached[index + 1] = True


def _expanded(pattern: str) -> list[str]:
    """Write out `{a,b}`; a brace without its partner stands for itself."""
    finished: list[str] = []
    pending = [pattern]
    while pending:
        if len(pending) + len(finished) > MAX_ALTERNATIVES:
            raise ToolError(f"a pattern's braces stand for at most {MAX_ALTERNATIVES} alternatives")
        one = pending.pop()
        braces = re.search(r"\{([^{}]*,[^{}]*)\}", one)
        if braces is None:
            finished.append(one)
            continue
        pending += [one[: braces.start()] + choice + one[braces.end() :] for choice in braces[1].split(",")]
    return finished


def compile_all(patterns: Sequence[str]) -> tuple[SearchPattern, ...]:
    """Compile patterns that exclude: each also matches the name of a folder at any depth.

    Raises:
        ToolError: One cannot be compiled, or together they stand for more than 128 alternatives.
    """
    compiled = tuple(compile_glob(pattern) for pattern in patterns)
    if sum(len(pattern.alternatives) for pattern in compiled) > MAX_EXCLUDED:
        raise ToolError(
            f"excludePatterns stand for at most {MAX_EXCLUDED} alternatives together; use fewer braces"
        )
    return compiled


def any_matches(patterns: Sequence[SearchPattern], parts: Sequence[str]) -> bool:
    """Whether one of them matches."""
    return any(pattern.matches(parts) for pattern in patterns)

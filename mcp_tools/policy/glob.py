"""Globs matched in one pass over the text, whatever the text is.

A regular expression with several wildcards can be made to run for hours by the argument it is
matched against, and arguments come from a model. So the pattern is a small automaton whose states
are the bits of one integer, and each character costs the same few operations.
"""

from __future__ import annotations

import unicodedata


class Glob:
    """A pattern that must fit a whole text.

    `*` is any run of characters but `/`, `?` one of them, `**` any run at all, and `**/` also
    nothing: `a/**/b` fits `a/b`. A backslash makes the next character stand for itself, as everything
    else does. Time: linear in the text.
    """

    __slots__ = (
        "_accept",
        "_any",
        "_ignore_case",
        "_literals",
        "_not_slash",
        "_skips",
        "_start",
        "_wild",
        "text",
    )

    def __init__(self, text: str, *, ignore_case: bool = False) -> None:
        self.text = text
        self._ignore_case = ignore_case
        source = _folded(text) if ignore_case else text
        self._any = 0  # states that stay on any character
        self._not_slash = 0  # states that stay on any character but "/"
        self._wild = 0  # states that step on any character but "/"
        self._literals: dict[str, int] = {}  # character -> states that step on it
        self._skips: list[tuple[int, int]] = []  # a state -> states reached from it without a character

        state, i = 0, 0
        while i < len(source):
            if source.startswith("**/", i):
                # state --> inside (loops, leaves on "/") --> after, or straight to after
                inside, after = state + 1, state + 2
                self._skips.append((1 << state, (1 << inside) | (1 << after)))
                self._any |= 1 << inside
                self._literals["/"] = self._literals.get("/", 0) | 1 << inside
                state, i = after, i + 3
            elif source.startswith("**", i):
                self._any |= 1 << state
                i += 2
            elif source[i] == "*":
                self._not_slash |= 1 << state
                i += 1
            elif source[i] == "?":
                self._wild |= 1 << state
                state, i = state + 1, i + 1
            else:
                i += source[i] == "\\" and i + 1 < len(source)
                self._literals[source[i]] = self._literals.get(source[i], 0) | 1 << state
                state, i = state + 1, i + 1
        self._accept = 1 << state
        self._start = self._skipped(1)

    def matches(self, text: str) -> bool:
        """Whether the pattern fits the whole of `text`."""
        states = self._start
        for character in _folded(text) if self._ignore_case else text:
            steps = self._literals.get(character, 0)
            stays = self._any
            if character != "/":
                steps |= self._wild
                stays |= self._not_slash
            states = self._skipped((states & steps) << 1 | states & stays)
            if not states:
                return False
        return bool(states & self._accept)

    def _skipped(self, states: int) -> int:
        for origin, reached in self._skips:
            if states & origin:
                states |= reached
        return states


def _folded(text: str) -> str:
    # Also what some disks take for the same name: a composed and a decomposed spelling.
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()

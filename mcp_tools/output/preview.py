"""The head and the tail of a long text, cut where a reader would cut it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_SEQUENCE_CHARS: Final = 64
"""Of one character and all that combines with it. What piles up more than that is cut nevertheless."""

_HEAD_SHARE: Final = 0.7
_LINE_SHARE: Final = 0.25
"""Of a head or a tail, at most this much is given up so that it ends with a whole line."""
_JOINER: Final = "\u200d"
_MAX_FLAG_LETTERS: Final = 10_000  # pairs are told apart only from where their run begins
_TRIES: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A head and a tail of a text, and where the tail begins in it."""

    head: str
    tail: str
    tail_start: int
    total_chars: int

    @property
    def missing_chars(self) -> int:
        """How many characters lie between them."""
        return self.tail_start - len(self.head)


def head_and_tail(text: str, max_chars: int) -> Cut:
    """Cut out the middle, at whole lines where that costs little.

    Args:
        text: Longer than `max_chars`. Encodable as UTF-8.
        max_chars: Of head and tail together; 0 leaves nothing.
    """
    head_chars = int(max_chars * _HEAD_SHARE)
    head_end = line_before(text, head_chars, give_up=int(head_chars * _LINE_SHARE))
    tail_chars = max_chars - head_chars
    tail_start = line_after(text, len(text) - tail_chars, give_up=int(tail_chars * _LINE_SHARE))
    return Cut(head=text[:head_end], tail=text[tail_start:], tail_start=tail_start, total_chars=len(text))


def fitting_chars(tokens_at: Callable[[int], int], *, max_chars: int, max_tokens: int) -> int:
    """Find how many characters are within a number of tokens.

    Args:
        tokens_at: The tokens of a part of so many characters.
    Returns:
        At most `max_chars`; 0 where not even a few characters fit. Close to the most that fit.
    """
    chars = max(0, max_chars)
    for _ in range(_TRIES):
        if chars <= 0:
            break
        tokens = tokens_at(chars)
        if tokens <= max_tokens:
            return chars
        chars = min(chars - 1, int(chars * max_tokens / tokens * 0.97))
    return 0


def line_before(text: str, position: int, *, give_up: int) -> int:
    """Return where to end a part that may reach up to `position`: after a line break, or between characters.

    Args:
        give_up: How many characters may be given up for a whole line.
    """
    if position <= 0:
        return 0
    if position >= len(text):
        return len(text)
    found = text.rfind("\n", max(0, position - give_up), position)
    return found + 1 if found >= 0 else boundary(text, position)


def line_after(text: str, position: int, *, give_up: int) -> int:
    """Return where to begin a part that may begin at `position` or later; see `line_before`."""
    if position <= 0:
        return 0
    if position >= len(text):
        return len(text)
    if text[position - 1] == "\n":
        return position
    found = text.find("\n", position, position + give_up)
    if found >= 0:
        return found + 1
    for later in range(position, min(len(text), position + MAX_SEQUENCE_CHARS) + 1):
        if _is_boundary(text, later):
            return later
    return position


def boundary(text: str, position: int) -> int:
    """Return the last place at or before `position` that is not inside of what is seen as one character.

    Accents stay with their letter, the parts of an emoji together, CR with LF. A sequence of over 64
    characters is cut where it is.
    """
    if position >= len(text):
        return len(text)
    for earlier in range(position, max(0, position - MAX_SEQUENCE_CHARS), -1):
        if _is_boundary(text, earlier):
            return earlier
    return 0 if position <= MAX_SEQUENCE_CHARS else position


def _is_boundary(text: str, position: int) -> bool:
    if position <= 0 or position >= len(text):
        return True
    before, after = text[position - 1], text[position]
    if before.isascii() and after.isascii():
        return not (before == "\r" and after == "\n")
    if before == _JOINER or _is_attached(after):
        return False
    if _is_flag_letter(before) and _is_flag_letter(after):
        return _flag_letters_before(text, position) % 2 == 0
    return not _joins_syllable(before, after)


def _is_attached(char: str) -> bool:
    """Whether it belongs to what stands before it: accents, selectors, joiners, skin tones, tags."""
    if char == _JOINER or "\U0001f3fb" <= char <= "\U0001f3ff" or "\U000e0020" <= char <= "\U000e007f":
        return True
    return unicodedata.category(char) in ("Mn", "Mc", "Me")


def _is_flag_letter(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _flag_letters_before(text: str, position: int) -> int:
    count = 0
    while count < _MAX_FLAG_LETTERS and position > count and _is_flag_letter(text[position - 1 - count]):
        count += 1
    return count


def _joins_syllable(before: str, after: str) -> bool:
    """Whether two Hangul letters are parts of one syllable."""
    if "\u1100" <= before <= "\u115f":
        return "\u1100" <= after <= "\u11a7" or "\uac00" <= after <= "\ud7a3"
    if "\u1160" <= after <= "\u11a7":
        return "\u1160" <= before <= "\u11a7" or "\uac00" <= before <= "\ud7a3"
    return "\u11a8" <= after <= "\u11ff" and (
        "\u1160" <= before <= "\u11ff" or "\uac00" <= before <= "\ud7a3"
    )

"""Which characters a reader does not see, or a terminal acts on. Standard library only."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_UNSEEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})

# Nothing is drawn for these, although Unicode calls them letters, marks or symbols and Python says that
# they print: fillers, joiners, blanks, and the selectors that can carry hidden text.
_PRINTABLE_BUT_UNSEEN: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\uffa0\ufe00-\ufe0f"
    "\U0001d159\U000e0100-\U000e01ef]"
)


def is_unseen(char: str) -> bool:
    """Whether the character is invisible, changes how its neighbours look, or controls a terminal."""
    return unicodedata.category(char) in _UNSEEN_CATEGORIES or _PRINTABLE_BUT_UNSEEN.match(char) is not None


def is_all_seen(text: str) -> bool:
    """Whether each character prints as itself. Fast; spaces other than the plain one do not count as seen."""
    return text.isprintable() and _PRINTABLE_BUT_UNSEEN.search(text) is None

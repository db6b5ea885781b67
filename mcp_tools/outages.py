"""How often this process could not record or count a call: for metrics that wake somebody up."""

from __future__ import annotations

import threading
from typing import Final, Literal

What = Literal["audit", "limits"]

_lock: Final = threading.Lock()
_counted: Final[dict[str, int]] = {"audit": 0, "limits": 0}


def note(what: What) -> None:
    """Note that a beginning or an end could not be kept there. Can be called from any thread."""
    with _lock:
        _counted[what] += 1


def counted() -> dict[str, int]:
    """Return how many could not be kept so far, of each, also of those where none were."""
    with _lock:
        return dict(_counted)

"""Whether a disk is quick enough for an event loop to wait for it."""

from __future__ import annotations

from typing import Final

QUICK_S: Final = 0.005
"""An event loop may stand still for so long: much of what it does anyway takes as long."""
_IN_A_ROW: Final = 10


class Pace:
    """Watches how long pieces of work take that may block.

    Quick means that the last ten took less than 5 ms each: where a disk has been slow once, others than
    the event loop wait for it until it has proved itself.
    """

    __slots__ = ("_quick",)

    def __init__(self) -> None:
        self._quick = 0

    @property
    def is_quick(self) -> bool:
        return self._quick >= _IN_A_ROW

    def note(self, took_s: float) -> None:
        """Count a piece of work; infinite: it failed."""
        self._quick = self._quick + 1 if took_s < QUICK_S else 0

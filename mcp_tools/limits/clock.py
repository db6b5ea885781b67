"""Time for accounts that outlive a process: it does not jump when somebody sets the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

_NO_BOOT: Final = "wall"
_SLACK_S: Final = 2.5
_DRIFT: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What this machine's clocks show.

    Args:
        boot: Names the time since the machine started; `wall` where it cannot be told.
        ticks_s: Seconds of it, those of suspension included.
        wall_s: Seconds since 1970, as somebody set it.
    """

    boot: str
    ticks_s: float
    wall_s: float

    @property
    def is_steady(self) -> bool:
        """Whether the ticks never jump."""
        return self.boot != _NO_BOOT


ReadClock = Callable[[], Reading]


def read_clock() -> Reading:
    """Read the clocks.

    Where the time since boot cannot be had (other systems than Linux) the wall clock stands in for it;
    set back, it then stands still for accounts, and set forward it moves them on.
    """
    wall_s = time.time()
    boot = _boot_id()
    if boot == _NO_BOOT:
        return Reading(boot=boot, ticks_s=wall_s, wall_s=wall_s)
    return Reading(boot=boot, ticks_s=time.clock_gettime(time.CLOCK_BOOTTIME), wall_s=wall_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Where the accounts' time stands; kept beside them.

    Args:
        boot: During which run of the machine it was last looked at.
        offset_s: What to add to its ticks.
        last_s: What it showed then; it never shows less.
        wall_s: What the wall clock showed then.
    """

    boot: str
    offset_s: float
    last_s: float
    wall_s: float

    @classmethod
    def begin(cls, reading: Reading) -> Timeline:
        """Start at the machine's own ticks."""
        return cls(boot=reading.boot, offset_s=0.0, last_s=reading.ticks_s, wall_s=reading.wall_s)

    def at(self, reading: Reading) -> Timeline:
        """Return where it stands now: `last_s` is the time.

        After a restart of the machine only the wall clock says how long it was off; what it shows less
        than before counts as no time at all.
        """
        if reading.boot == self.boot:
            return replace(self, last_s=self.now_s(reading), wall_s=reading.wall_s)
        now_s = self.last_s + max(0.0, reading.wall_s - self.wall_s)
        return Timeline(
            boot=reading.boot, offset_s=now_s - reading.ticks_s, last_s=now_s, wall_s=reading.wall_s
        )

    def now_s(self, reading: Reading) -> float:
        """Return the time, as long as the machine has not started anew since."""
        return max(self.last_s, reading.ticks_s + self.offset_s)


class Witness:
    """Checks another machine's wall clock, such as a Redis server's, by this one's time since boot.

    Args:
        clock: This machine's.
    """

    def __init__(self, clock: ReadClock) -> None:
        self._clock = clock
        self._seen: tuple[str, float, float, float] | None = None

    def expects(self) -> tuple[float, float] | None:
        """Return the least and the most that the other's time can be by now; None: no idea yet."""
        reading = self._clock()
        if self._seen is None or self._seen[0] != reading.boot:
            return None
        _, time_s, asked_s, answered_s = self._seen
        least = max(0.0, reading.ticks_s - answered_s) * (1 - _DRIFT)
        most = max(0.0, reading.ticks_s - asked_s) * (1 + _DRIFT) + _SLACK_S
        return time_s + least, time_s + most

    def saw(self, time_s: float, *, asked: Reading) -> None:
        """Note what the other's time was, some time between `asked` and now."""
        self._seen = (asked.boot, time_s, asked.ticks_s, self._clock().ticks_s)


def _boot_id() -> str:
    global _boot  # noqa: PLW0603 - it cannot change while we run
    if _boot is None:
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                _boot = file.read().strip()
        except OSError:
            _boot = _NO_BOOT
    return _boot


_boot: str | None = None

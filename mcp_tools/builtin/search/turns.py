"""When a provider may be asked again: politely apart, and after a failure not for a while."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import anyio

from mcp_tools.builtin.search.types import Failed, Kind

FIRST_REST_S: Final = 5.0
LONGEST_REST_S: Final = 600.0
LONGEST_ASKED_REST_S: Final = 24 * 3600.0
"""What a provider asks for is kept, up to this: a monthly quota would make it rest for weeks, and the owner
may have paid for more meanwhile."""
REJECTED_REST_S: Final = 300.0
LONGEST_WAIT_S: Final = 4.0


class Turns:
    """The turns of one provider. Shared by tasks of one event loop.

    Args:
        interval_s: Between two requests.
        clock: Seconds that never go back.
    """

    def __init__(self, interval_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._next = -math.inf
        self._rests_until = -math.inf
        self._failures = 0
        self._why: Failed | None = None

    async def take(self, most_s: float = LONGEST_WAIT_S) -> None:
        """Wait for the next turn, for `most_s` at most. The last that waits gives its turn back when it is
        cancelled.

        Raises:
            Failed: It rests after a failure, or too many others wait.
        """
        self.refuse_while_resting()
        now = self._clock()
        turn = max(now, self._next)
        if turn - now > min(most_s, LONGEST_WAIT_S):
            raise Failed(
                Kind.RATE_LIMITED,
                f"many searches wait here already; it is asked once in {self._interval_s:g} s",
                retry_after_s=turn - now,
                is_ours=True,
            )
        self._next = turn + self._interval_s
        if turn > now:
            try:
                await anyio.sleep(turn - now)
            except BaseException:
                if self._next == turn + self._interval_s:  # nobody stands behind
                    self._next = turn
                raise
            # Whoever was before us may have been told to stop.
            self.refuse_while_resting()

    def refuse_while_resting(self) -> None:
        """Do nothing unless it rests.

        Raises:
            Failed: What it failed with, and when it is asked again.
        """
        left = self._rests_until - self._clock()
        if left > 0 and self._why is not None:
            raise Failed(
                self._why.kind,
                f"{self._why.said}; it rests until then and was not asked",
                retry_after_s=left,
                is_ours=True,
            )

    def succeeded(self) -> None:
        """Note an answer: the next failure is the first again."""
        self._failures = 0

    def failed(self, why: Failed) -> float | None:
        """Note a failure.

        Returns:
            After how many seconds it is asked again.
        """
        if why.is_ours:
            return why.retry_after_s
        # The exponent has a bound because 2 to a large one is no float.
        rest: float = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(self._failures, 10))
        now = self._clock()
        # Requests that were under way together fail together, and count once.
        if now >= self._rests_until:
            self._failures += 1
        if why.kind is Kind.REJECTED:
            rest = REJECTED_REST_S
        if why.retry_after_s is not None:
            rest = max(rest if self._failures > 1 else 1.0, min(why.retry_after_s, LONGEST_ASKED_REST_S))
        if (until := now + rest) >= self._rests_until:
            self._rests_until = until
            self._why = why
        return rest

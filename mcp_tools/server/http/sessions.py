"""Who opened which session, and when it ends for lack of use.

The SDK bounds sessions for everybody together only, and does not count SSE sessions at all. Here each
transport has a ledger, and all ledgers take from the same shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcp_tools.server.http.limits import Shares


@dataclass(slots=True)
class _Session:
    principal: str
    idle_since: float
    in_flight: int = 0


class SessionLedger:
    """Open sessions by id, each bound to the principal who opened it.

    Args:
        shares: How many there may be.
        idle_s: Seconds without a request after which a session is over.
        clock: Monotonic seconds.
        on_close: Told the id of each session that is over.
    """

    def __init__(
        self,
        shares: Shares,
        *,
        idle_s: float,
        clock: Callable[[], float],
        on_close: Callable[[str], None] | None = None,
    ) -> None:
        self._shares = shares
        self._on_close = on_close
        self._idle_s = idle_s
        self._clock = clock
        self._sessions: dict[str, _Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def reserve(self, principal: str) -> bool:
        """Set one session aside for this principal; False where none is left.

        Follow it with `open`, or with `forgo` if no session came of it.
        """
        if self._shares.take(principal):
            return True
        self.close_idle()
        return self._shares.take(principal)

    def forgo(self, principal: str) -> None:
        """Give back what `reserve` set aside."""
        self._shares.give_back(principal)

    def open(self, session_id: str, principal: str) -> None:
        """Write down a session that `reserve` made room for."""
        self._sessions[session_id] = _Session(principal, self._clock())

    def enter(self, session_id: str, principal: str) -> bool:
        """Begin a request in a session.

        Returns:
            False if there is no such session, it is over, or somebody else opened it: all three look
            the same to the caller. Otherwise True, to be followed by `leave`.
        """
        session = self._sessions.get(session_id)
        if session is None or session.principal != principal:
            return False
        if self._is_over(session):
            self.close(session_id)
            return False
        session.in_flight += 1
        return True

    def leave(self, session_id: str) -> None:
        """End a request that `enter` began; nothing happens if the session ended meanwhile."""
        if (session := self._sessions.get(session_id)) is not None:
            session.in_flight -= 1
            session.idle_since = self._clock()

    def close(self, session_id: str) -> None:
        """Forget a session; nothing happens if it is not there."""
        if (session := self._sessions.pop(session_id, None)) is not None:
            self._shares.give_back(session.principal)
            if self._on_close is not None:
                self._on_close(session_id)

    def close_all(self) -> None:
        """Close every session."""
        for session_id in list(self._sessions):
            self.close(session_id)

    def _is_over(self, session: _Session) -> bool:
        return session.in_flight == 0 and self._clock() - session.idle_since >= self._idle_s

    def close_idle(self) -> None:
        """Close what has been idle for too long."""
        for session_id in [key for key, session in self._sessions.items() if self._is_over(session)]:
            self.close(session_id)

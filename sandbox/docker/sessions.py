"""Sessions in containers of their own: which there are, and whose turn it is in each."""

from __future__ import annotations

import time

from sandbox.docker.container import Container, ContainerGone
from sandbox.docker.pool import Supply
from sandbox.docker.withdrawal import Withdrawal
from sandbox.errors import SandboxBusy, SandboxClosed, SandboxError

_READY_S = 5.0  # for the process of the next call, after the last one
_LOOK_S = 0.05  # after which a call that was withdrawn meanwhile is let go


class Session:
    """A session; its container is there once somebody had its turn."""

    def __init__(self, tenant: str, name: str) -> None:
        self.key = (tenant, name)
        self.used_s = time.monotonic()
        self.container: Container | None = None
        self.waiting = (
            0  # who want its turn or have it; this and what follows is guarded by the supply's lock
        )
        self.owner: object = None  # of the turn
        self.is_over = False
        self.ended_by_owner = False

    def is_ready(self, until_s: float, withdrawal: Withdrawal) -> bool:
        """Whether a process waits for the next call; for whoever has the turn.

        False where there is no container yet, or none any more, or no such process within a few seconds.

        Args:
            until_s: When the caller's patience ends.

        Raises:
            SandboxBusy: It ended before.
            Cancelled: The call was withdrawn. The session goes on.
        """
        if self.container is None:
            return False
        ready_until_s = time.monotonic() + _READY_S
        while not self.container.next_call:
            withdrawal.check()
            now = time.monotonic()
            try:
                self.container.look_for_ready(min(now + _LOOK_S, until_s, ready_until_s))
            except ContainerGone:
                return False
            if not self.container.next_call and now >= ready_until_s:
                return False
            if not self.container.next_call and now >= until_s:
                raise SandboxBusy(f"session {self.key[1]!r} is not ready for this call; try again later")
        return self.container.is_well()


class Sessions:
    """All sessions of a sandbox, of all tenants."""

    def __init__(self, supply: Supply, limit: int, idle_s: float) -> None:
        self._supply = supply
        self._limit = limit
        self._idle_s = idle_s
        self._sessions: dict[tuple[str, str], Session] = {}

    def enter(self, tenant: str, name: str) -> Session:
        """The session of that name, or a new one; `leave` it.

        Raises:
            SandboxError: There are too many, and all are busy.
        """
        with self._supply.changed:
            if self._supply.closed:
                raise SandboxClosed("the sandbox is closed")
            found = self._sessions.get((tenant, name))
            if found is None:
                while len(self._sessions) >= self._limit:
                    idle = [each for each in self._sessions.values() if each.waiting == 0]
                    if not idle:
                        raise SandboxError(
                            f"there are {self._limit} sessions already, all busy; end one, or call "
                            "without one"
                        )
                    # One tenant's many sessions are no reason to end another's.
                    self._drop(min(idle, key=lambda each: (each.key[0] != tenant, each.used_s)))
                found = self._sessions[tenant, name] = Session(tenant, name)
            found.waiting += 1
            return found

    def leave(self, session: Session) -> None:
        """One who wanted the session's turn is through; one that is over is forgotten."""
        with self._supply.changed:
            session.waiting -= 1
            session.used_s = time.monotonic()
            if session.waiting == 0 and (session.is_over or session.container is None):
                self._drop(session)

    def take_turn(self, session: Session, owner: object) -> bool | None:
        """True once `owner` has the turn; called with the supply's lock."""
        if session.owner is not None:
            return None
        session.owner = owner
        return True

    def pass_turn(self, session: Session) -> None:
        with self._supply.changed:
            session.owner = None
        self._supply.ring()

    def replace(self, session: Session, container: Container | None) -> None:
        """Give the session another container, or none; its last one is let go."""
        with self._supply.changed:
            if session.container is not None:
                self._supply.discard(session.container)
            session.container = container
            if session.is_over and container is not None:  # it was ended meanwhile
                self._supply.discard(container)

    def end(self, tenant: str, name: str) -> bool:
        """End one; whether it was alive."""
        with self._supply.changed:
            found = self._sessions.get((tenant, name))
            if found is None or found.is_over:
                return False
            found.ended_by_owner = True
            alive = found.container is None or found.container.link.is_open()
            self._drop(found)
            return alive

    def sweep(self) -> None:
        """Forget those that were not used for long."""
        now = time.monotonic()
        with self._supply.changed:
            for each in list(self._sessions.values()):
                if each.waiting == 0 and now - each.used_s > self._idle_s:
                    self._drop(each)

    def _drop(self, session: Session) -> None:
        """End it, also under whoever has its turn, who hears of that."""
        session.is_over = True
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        if session.container is not None:
            self._supply.discard(session.container)
        self._supply.ring()

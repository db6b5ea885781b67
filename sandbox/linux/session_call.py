"""One call in a session, from the server's side. Over by its report; otherwise init says how it ended."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sandbox.errors import SandboxDied
from sandbox.linux import memory, wire
from sandbox.linux.call import UNSEEN_NS, Call, hear, measure
from sandbox.linux.handle import Taken
from sandbox.linux.sessions import Session
from sandbox.outcome import Ending
from sandbox.types import EndedBy, SandboxConfig

if TYPE_CHECKING:
    from sandbox.linux.wire import Message

_ANSWER_S = 2.0  # of init or the zygote, when asked
_LOOKS, _LOOK_S = 6, 0.001  # the kernel counts the time of a process that runs on at each of its ticks, 4 ms
_COUNTED_BY_ZYGOTE = ("ooms", "refused_forks")


class SessionCall(Call):
    """A request on its way through a session whose turn the caller has. `close` must be called."""

    def __init__(self, session: Session, request: bytes, *, wall_s: float, config: SandboxConfig) -> None:
        self.session = session
        self._keeps_state = session.zygote.keeps_state
        self._asked = False
        self._known: Message | None = None  # while the zygote is asked for the rest
        self._pid = session.caller() or 0
        self._counted_before_ns = session.counted_ns()
        taken, self._number = _way_in(session, self._pid, wall_s)
        super().__init__(taken, request, wall_s=wall_s, config=config)
        if not self._keeps_state:
            # One process is all there is: nobody but us can end its call, and the session goes with it. What
            # comes from it in the place of init's words is the code's.
            self._asked = True
            self._limit_s = self._act_at_s = self.began_s + wall_s
            self._epoll.unregister(self._status)
            self._epoll.register(taken.pidfd, select.EPOLLIN)

    def _host_pid(self) -> int:
        return self._pid

    def _measured_now(self, said: Message) -> Ending | None:
        """The call is over; its process lives on as the session's state."""
        unseen = Ending(status=None, cpu_ns=0, peak_bytes=0, why=None, ooms=0, refused_forks=0)
        ending = measure(self._pid, self.taken.pidfd, self.taken.cpu_ns, alone=False)
        for _ in range(_LOOKS):
            if ending is not None or not memory.anonymous_bytes(self._pid):
                break
            time.sleep(_LOOK_S)  # it lives, and the kernel has not counted its time yet
            ending = measure(self._pid, self.taken.pidfd, self.taken.cpu_ns, alone=False)
        if ending is None:
            if self._keeps_state and self._pid and not memory.anonymous_bytes(self._pid):
                return None  # it reported and goes, or is gone: init says how
            ending = unseen
        counted_ns = self.session.counted_ns() - self._counted_before_ns
        if counted_ns - ending.cpu_ns > UNSEEN_NS:
            ending = replace(ending, cpu_ns=counted_ns)  # other processes of the call
        if said.get("exception") is None:
            return ending
        self.ended_s = time.monotonic()
        self._ask_zygote({"cpu_ns": ending.cpu_ns, "peak_bytes": ending.peak_bytes})
        return self.ending

    def _leave(self) -> None:
        """The report was read; init ends what goes on nevertheless."""
        if self._keeps_state and self.session.channel is not None:
            try:
                wire.send(self.session.channel, {"reported": self._number})
            except OSError:
                self.session.kill()

    def close(self) -> None:
        super().close()
        self.session.is_settled = True

    def kill(self, why: EndedBy) -> None:
        super().kill(why)
        self._act_at_s = max(self._act_at_s, self._killed_s + _ANSWER_S)

    def _end_processes(self) -> None:
        """Ask init to end the call; the second time, end the session."""
        if self._asked or self.session.channel is None:
            self.session.kill()
            return
        self._asked = True
        try:
            wire.send(self.session.channel, {"kill": self._number})
        except OSError:
            self.session.kill()

    def _wait_for_end(self) -> None:
        until_s = time.monotonic() + _ANSWER_S
        poll = select.poll()
        poll.register(self.taken.pidfd if self.session.lost else self.taken.status, select.POLLIN)
        while poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
            if self.session.lost or self._is_for_this(hear(self.taken.status)):
                break

    def _is_for_this(self, said: Message | None) -> bool:
        return said is None or said.get("call") == self._number  # an earlier call's end may be told late

    def _hear(self) -> None:
        if self._known is not None:
            self._hear_zygote(hear(self._status))
            return
        said = hear(self._status)
        if not self._is_for_this(said):
            return
        self.ended_s = time.monotonic()
        if said is None:
            self._lose()
        elif said.get("status") is not None and said.get("why") in (None, "time") and self.killed is None:
            self._ask_zygote(said)  # a kill that was not ours: did the kernel end a process for its memory?
        else:
            self._conclude(said)

    def _lose(self) -> None:
        """Init is gone, and the session with it; the zygote says why without being asked."""
        self.session.lost = True
        self.ended_s = time.monotonic()
        if self.session.ended_by_owner and self.killed is None:
            self.killed = EndedBy.CANCELLED
        self._ask_zygote({"status": int(signal.SIGKILL)})

    def _ask_zygote(self, known: Message) -> None:
        assert self.session.status is not None
        if self._known is not None:  # asked already, for a call that reported and then ended
            self._known |= known
            return
        self._known = known
        self._epoll.unregister(self._status if self._keeps_state else self.taken.pidfd)
        self._status = self.session.status
        self._epoll.register(self._status, select.EPOLLIN)
        self._limit_s = self._act_at_s = time.monotonic() + _ANSWER_S
        if not self.session.lost:
            try:
                wire.send(self._status, {"measure": True})
            except OSError:
                self._conclude(known)

    def _hear_zygote(self, said: Message | None) -> None:
        assert self._known is not None
        if said is None and self.session.lost and self.killed is None:
            raise SandboxDied("the sandbox's zygote ended during the call; the session was ended with it")
        said = said or {}
        status = said.get("status")
        if self._keeps_state and self.killed is None and isinstance(status, int) and os.WIFEXITED(status):
            # Init's own status is never the code's: it was idle for too long, or could not trust the session.
            raise SandboxDied("the session ended before it could say how the call ended; its state is lost")
        if not self.session.lost:
            said = {key: said[key] for key in _COUNTED_BY_ZYGOTE if key in said}
        self._conclude({**self._known, **said})

    def _overdue(self) -> None:
        if self._known is not None:
            self.unheard = True
            self._conclude(self._known)
        elif time.monotonic() < self._limit_s and self.killed is None:
            self._act_at_s = self._limit_s  # the report is complete, and init's word is not here yet
        elif self.killed is None:
            self.kill(EndedBy.TIME)
        elif not self.session.lost:
            self.session.kill()
            self._act_at_s = time.monotonic() + _ANSWER_S
        else:
            super()._overdue()


def _way_in(session: Session, pid: int, wall_s: float) -> tuple[Taken, int]:
    """Hand the process that waits the ends of new streams for a call; returns ours, and the call's number."""
    assert session.channel is not None
    opened: list[int] = []
    try:
        opened += [end.detach() for end in socket.socketpair()]
        for _ in ("stdout", "stderr"):
            opened += os.pipe2(os.O_CLOEXEC)
        opened += [os.dup(session.channel.fileno())]
        opened += [os.dup(session.pidfd)]
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    ours, theirs, out, out_end, err, err_end, status, pidfd = opened
    try:
        taken = Taken(0, [ours, status, pidfd, out, err], session.zygote, _cpu_ns(pid), is_ours=False)
        return taken, session.begin(wall_s, (theirs, out_end, err_end))
    finally:
        for fd in (theirs, out_end, err_end):
            os.close(fd)


def _cpu_ns(pid: int) -> int:
    try:
        return time.clock_gettime_ns((~pid << 3) | 2) if pid else 0  # see clock_getcpuclockid(3)
    except OSError:
        return 0

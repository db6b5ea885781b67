"""The server's side of sessions: which there are, one call at a time in each, and what became of one."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sandbox.errors import SandboxError
from sandbox.linux import wire
from sandbox.linux.call import Call, Ending, measure
from sandbox.linux.handle import CHILD_FDS, Taken, ZygoteProcess
from sandbox.types import EndedBy, SandboxConfig

if TYPE_CHECKING:
    from sandbox.linux.wire import Message

_WORD_BYTES = 256
_CREDENTIALS = struct.Struct("3i")  # pid, user and group, as the kernel knows them
_ANSWER_S = 1.0  # of the zygote, when asked what it measured


class Session:
    """A running session. Its turn is an eventfd: whoever reads the 1 may make a call."""

    def __init__(self, zygote: ZygoteProcess, tenant: str, name: str) -> None:
        self.zygote: ZygoteProcess | None = zygote
        zygote.hold()
        self.keeps_state = zygote.keeps_state
        self.key = (tenant, name)
        self.used_s = time.monotonic()
        self.lost = False
        self.waiting = 0
        self.turn = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._reply.setblocking(False)
        wire.send(zygote.control, {"session": True}, (theirs.fileno(),))
        theirs.close()
        self.channel: socket.socket | None = None
        self.calls: socket.socket | None = None
        self.call_count = 0
        self._caller = 0
        self.status: socket.socket | None = None
        self.pidfd = -1

    def is_ready(self) -> bool:
        """Whether its processes are there. Never blocks.

        Raises:
            SandboxError: They could not be started.
        """
        if self.channel is not None:
            return True
        try:
            message, fds = wire.receive(self._reply)
        except BlockingIOError:
            return False
        if message is None or len(fds) != CHILD_FDS:
            for fd in fds:
                os.close(fd)
            self.lost = True
            reason = message.get("failed") if message else None
            raise SandboxError(f"the session could not be started: {reason or 'its first process ended'}")
        channel, status, self.pidfd, calls, unused = fds
        os.close(unused)
        self.channel, self.status = socket.socket(fileno=channel), socket.socket(fileno=status)
        self.calls = socket.socket(fileno=calls)
        self.calls.setblocking(False)
        self.status.settimeout(_ANSWER_S)
        return True

    def caller(self) -> int | None:
        """The pid of the process that waits for a call, 0 if it cannot be seen; `None` if none waits yet."""
        assert self.calls is not None
        while True:
            try:
                data, control, _, _ = self.calls.recvmsg(_WORD_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return self._caller if self._waits else None
            except OSError:
                data = b""
            if not data:
                self.lost = True
                return 0
            self._waits, self._caller = True, 0
            for level, kind, payload in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    self._caller = _CREDENTIALS.unpack(payload)[0]

    def begin(self, wall_s: float, fds: tuple[int, ...]) -> int:
        """Hand the sockets of a call to the process that waits, and tell init; returns its number."""
        assert self.channel is not None
        assert self.calls is not None
        self.call_count += 1
        self._waits = False
        try:
            wire.send(self.channel, {"call": self.call_count, "wall_s": wall_s})
            wire.send(self.calls, {"call": self.call_count}, fds)
        except OSError:
            self.lost = True  # the call hears it from the closed channel
        return self.call_count

    _waits = False

    def register(self, epoll: select.epoll) -> None:
        """Add to `epoll` what is readable once `is_ready` or `caller` should be tried again."""
        epoll.register((self.calls or self._reply).fileno(), select.EPOLLIN)

    def take_turn(self) -> bool:
        try:
            os.eventfd_read(self.turn)
        except BlockingIOError:
            return False
        return True

    def pass_turn(self) -> None:
        self.used_s = time.monotonic()
        os.eventfd_write(self.turn, 1)

    def is_alive(self) -> bool:
        """Whether its init still runs; it ends by itself when it was idle for long."""
        if self.lost or self.pidfd < 0:
            return not self.lost
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def measured(self) -> dict[str, int]:
        """What the cgroup counted since this was asked last; empty when nobody answers."""
        if self.status is None:
            return {}
        try:
            wire.send(self.status, {"measure": True})
            message, _ = wire.receive(self.status)
        except OSError:
            return {}
        return {key: value for key, value in (message or {}).items() if isinstance(value, int)}

    def end(self) -> None:
        """End all of its processes. Can be called again; not while a call of it is driven."""
        self.lost = True
        if self.zygote is not None:
            self.zygote.finished()
            self.zygote = None
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(self.pidfd)
            self.pidfd = -1
        for sock in (self._reply, self.channel, self.status, self.calls):
            if sock is not None:
                sock.close()
        self.channel = self.status = self.calls = None

    def __del__(self) -> None:
        os.close(self.turn)


class SessionCall(Call):
    """A call in a session, which outlives it. Over by its report; otherwise init says how it ended."""

    def __init__(self, session: Session, request: bytes, *, wall_s: float, config: SandboxConfig) -> None:
        assert session.channel is not None
        self.session = session
        self._asked = False
        self._pid = session.caller() or 0
        ours, theirs = socket.socketpair()
        out, out_end = os.pipe2(os.O_CLOEXEC)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        base_ns = _cpu_ns(self._pid)
        try:
            self._number = session.begin(wall_s, (theirs.fileno(), out_end, err_end))
        finally:
            theirs.close()
            os.close(out_end)
            os.close(err_end)
        taken = Taken(
            pid=0,
            channel=ours.detach(),
            status=os.dup(session.channel.fileno()),
            pidfd=os.dup(session.pidfd),
            out=out,
            err=err,
            cpu_ns=base_ns,
        )
        super().__init__(taken, request, wall_s=wall_s, config=config)
        if not session.keeps_state:
            # One process is all there is: nobody but us can end its call, and the session goes with it.
            self._asked = True
            self._act_at_s = self.began_s + wall_s

    def _host_pid(self) -> int:
        return self._pid

    def _measured_now(self, said: Message) -> Ending | None:
        """The call is over; its process lives on as the session's state."""
        unseen = Ending(status=None, cpu_ns=0, peak_bytes=0, why=None, ooms=0, refused_forks=0)
        ending = measure(self._pid, self.taken.pidfd, self.taken.cpu_ns, alone=False) or unseen
        if said.get("exception") is None:
            return ending
        counted = self.session.measured()
        return replace(ending, ooms=counted.get("ooms", 0), refused_forks=counted.get("refused_forks", 0))

    def _leave(self) -> None:
        """Init ends what is left."""

    def _end_processes(self) -> None:
        """Ask init to end the call; the second time, end the session."""
        if self._asked or self.session.channel is None:
            super()._end_processes()
            return
        self._asked = True
        try:
            wire.send(self.session.channel, {"kill": self._number})
        except OSError:
            super()._end_processes()

    def _without_word(self) -> Message:
        """Init is gone, and the session with it; the zygote can say why."""
        self.session.lost = True
        found: Message = {"status": signal.SIGKILL, "cpu_ns": 0, "peak_bytes": 0}
        found |= {"why": None, "ooms": 0, "refused_forks": 0}
        if self.session.status is not None:
            try:
                message, _ = wire.receive(self.session.status)
            except OSError:
                message = None
            found |= message or {}
        return found

    def _overdue(self) -> None:
        if self.killed is None:
            self.kill(EndedBy.TIME)
        elif not self.session.lost:
            self.session.lost = True
            super()._end_processes()
            self._act_at_s += _ANSWER_S
        else:
            super()._overdue()

    def _is_for_this(self, message: Message) -> bool:
        return message.get("call") == self._number  # an earlier call's end may have been told twice

    def _heard(self, said: Message) -> Message:
        """After a kill that was not ours, ask whether the kernel ended it for its memory."""
        if said["status"] is None or said["why"] is not None or self.session.lost:
            return said
        measured = self.session.measured()
        return {**said, **{key: measured[key] for key in ("ooms", "refused_forks") if key in measured}}


def _cpu_ns(pid: int) -> int:
    try:
        return time.clock_gettime_ns((~pid << 3) | 2) if pid else 0
    except OSError:
        return 0


class Sessions:
    """All sessions of a sandbox, of all tenants."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._sessions: dict[tuple[str, str], Session] = {}

    def get(self, tenant: str, name: str, zygote: ZygoteProcess) -> tuple[Session, bool]:
        """The session of that name, and whether it is new. `waiting` counts those who want its turn.

        Raises:
            SandboxError: There are too many, and all are busy.
        """
        dropped: list[Session] = []
        try:
            with self._lock:
                found = self._sessions.get((tenant, name))
                if found is not None and found.is_alive():
                    found.waiting += 1
                    return found, False
                if found is not None:
                    dropped.append(self._sessions.pop((tenant, name)))
                while len(self._sessions) >= max(self._limit, 0):
                    idle = [each for each in self._sessions.values() if each.waiting == 0]
                    if not idle:
                        raise SandboxError(
                            f"there are {self._limit} sessions already, all busy; "
                            "end one, or call without one"
                        )
                    dropped.append(self._sessions.pop(min(idle, key=lambda each: each.used_s).key))
                found = self._sessions[tenant, name] = Session(zygote, tenant, name)
                found.waiting += 1
                return found, True
        finally:
            for each in dropped:
                each.end()

    def leave(self, session: Session) -> None:
        """One who wanted the session's turn is through; a lost session is forgotten."""
        with self._lock:
            session.waiting -= 1
            if session.lost and self._sessions.get(session.key) is session:
                del self._sessions[session.key]
            gone = session.lost and session.waiting == 0
        if gone:
            session.end()

    def end(self, tenant: str, name: str) -> bool:
        with self._lock:
            found = self._sessions.pop((tenant, name), None)
            if found is None:
                return False
            alive = found.is_alive()
            found.lost = True
            idle = found.waiting == 0
        if idle:
            found.end()
        elif found.pidfd >= 0:
            signal.pidfd_send_signal(found.pidfd, signal.SIGKILL)  # its call hears of it and cleans up
        return alive

    def sweep(self) -> None:
        """Forget those that ended by themselves."""
        with self._lock:
            gone = [each for each in self._sessions.values() if each.waiting == 0 and not each.is_alive()]
            for each in gone:
                del self._sessions[each.key]
        for each in gone:
            each.end()

    def close(self) -> None:
        with self._lock:
            every = list(self._sessions.values())
            self._sessions.clear()
        for session in every:
            session.lost = True
            if session.waiting == 0:
                session.end()

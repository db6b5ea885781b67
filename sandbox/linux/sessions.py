"""The server's side of sessions: which there are, and whose turn it is in each."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

from sandbox.errors import SandboxClosed, SandboxDied, SandboxError
from sandbox.linux import cgroups, memory, wire
from sandbox.linux.handle import NO_MORE_FILES, TOO_MANY_FILES, ZygoteProcess, expected_fds, pid_of

if TYPE_CHECKING:
    from sandbox.linux.wire import Message

_WORD_BYTES = 256
_WORDS_AT_ONCE = 64  # code that has no init beside it can send any number of them
_CREDENTIALS = struct.Struct("3i")  # pid, user and group, as the kernel knows them
_IDLE_GRACE_S = 5.0  # a session ends itself when it was idle for long; at level 2 its code could prevent that
_SWEEP_S = 1.0


class Session:
    """A running session. Whoever has its turn may make a call in it."""

    def __init__(self, zygote: ZygoteProcess, tenant: str, name: str) -> None:
        """Ask the zygote for one; returns at once.

        Raises:
            SandboxDied: The zygote is gone.
            OSError: This process has too many open files.
        """
        self.zygote = zygote
        self.key = (tenant, name)
        self.used_s = time.monotonic()
        self.waiting = 0  # guarded by the lock of `Sessions`
        self.lost = False
        self.ended_by_owner = False
        self.channel: socket.socket | None = None  # to init
        self.calls: socket.socket | None = None  # to the process that waits for a call
        self.status: socket.socket | None = None  # to the zygote
        self.is_settled = True  # nothing of a call is under way; not so when a signal handler raised in it
        self._owner: object = None  # of the turn
        self._call_count = 0
        self._caller: int | None = None
        self.pidfd = self._counter = -1
        self._init = 0  # its pid; 0 if it cannot be seen
        self._lock = threading.RLock()
        self._reply: socket.socket | None = None
        self._open = True
        self._turn_passed = -1
        zygote.hold()
        try:
            self._turn_passed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._reply.setblocking(False)
                zygote.send({"session": True}, (theirs.fileno(),))
        except OSError as error:
            self.end()
            if error.errno in NO_MORE_FILES:
                raise
            raise SandboxDied("the sandbox's zygote ended; nothing was run") from error
        except BaseException:
            self.end()
            raise

    def is_ready(self) -> bool:
        """Whether its processes are there. Never blocks.

        Raises:
            SandboxError: They could not be started.
        """
        with self._lock:
            if self.channel is not None or self._reply is None:
                return True
            try:
                message, fds = wire.receive(self._reply)
            except BlockingIOError:
                return False
            except OSError:
                message, fds = None, []
            if message is None or len(fds) != expected_fds(message):
                for fd in fds:
                    os.close(fd)
                self.lost = True
                raise self._not_started(message)
            channel, status, self.pidfd, calls, unused, self._counter = (*fds, -1)[:6]
            os.close(unused)
            self.status, self.calls = socket.socket(fileno=status), socket.socket(fileno=calls)
            self.calls.setblocking(False)
            self.channel = socket.socket(fileno=channel)
            self.channel.setblocking(False)  # code may keep its init from reading; a full queue is its end
            self._init = pid_of(self.pidfd)
            return True

    def _not_started(self, message: Message | None) -> SandboxError:
        if message is None:
            return SandboxDied("the session could not be started: its first process or the zygote ended")
        return SandboxError(f"the session could not be started: {message.get('failed', TOO_MANY_FILES)}")

    def caller(self) -> int | None:
        """The pid of the process that waits for a call, 0 if it cannot be seen; `None` if none waits yet.

        For whoever has the turn. Also 0 when the session ended, which the call then hears.
        """
        assert self.calls is not None
        self.is_settled = False
        for _ in range(_WORDS_AT_ONCE):
            try:
                data, control, _, _ = self.calls.recvmsg(_WORD_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                self.is_settled = True
                return self._caller
            except OSError:
                data = b""
            if not data:
                self.lost = True
                return 0
            self._caller = 0
            for level, kind, payload in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    self._caller = _CREDENTIALS.unpack(payload)[0]
        self.is_settled = True
        return None

    def begin(self, wall_s: float, fds: tuple[int, ...]) -> int:
        """Hand the sockets of a call to the process that waits, and tell init; returns its number."""
        assert self.channel is not None
        assert self.calls is not None
        self.is_settled = False
        self._call_count += 1
        self._caller = None
        try:
            if self.zygote.keeps_state:  # otherwise nobody would read it there
                wire.send(self.channel, {"call": self._call_count, "wall_s": wall_s})
            wire.send(self.calls, {"call": self._call_count}, fds)
        except OSError:
            self.lost = True  # the call hears it from the closed channel
        return self._call_count

    def counted_ns(self) -> int:
        """CPU time of all its processes but init, the ended ones too; 0 where that is not counted."""
        if self._counter < 0:
            return 0
        try:
            counted_ns = cgroups.used_ns(self._counter)
        except OSError:
            return 0  # the zygote ended, and its cgroups are gone
        own_ns = memory.clock_ns(self._init) if self._init else 0
        return counted_ns - own_ns if own_ns else 0

    def register(self, epoll: select.epoll) -> None:
        """Add to `epoll` what is readable once `is_ready` or `caller` should be tried again."""
        if (sock := self.calls or self._reply) is not None:
            epoll.register(sock.fileno(), select.EPOLLIN)

    def register_turn(self, epoll: select.epoll) -> None:
        """Add to `epoll` what is readable once `take_turn` should be tried again."""
        epoll.register(self._turn_passed, select.EPOLLIN)

    def take_turn(self, owner: object) -> bool:
        with self._lock:
            if self._owner is not None:
                return False
            self._owner = owner
            try:
                os.eventfd_read(self._turn_passed)
            except BlockingIOError:
                pass  # nobody had it before
            return True

    def pass_turn(self, owner: object) -> None:
        """Let the next one have the turn, if `owner` has it."""
        with self._lock:
            if self._owner is not owner:
                return
            if not self.is_settled:
                self.kill()  # nobody knows what of a call is under way in it
            self.used_s = time.monotonic()
            self._owner = None
            if self._turn_passed >= 0:
                os.eventfd_write(self._turn_passed, 1)

    def is_alive(self) -> bool:
        """Whether its init still runs; it ends by itself when it was idle for long."""
        with self._lock:
            if self.lost or self.pidfd < 0:
                return not self.lost
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            return not poll.poll(0)

    def kill(self) -> None:
        """End all of its processes; a call that runs in it hears of that."""
        with self._lock:
            self.lost = True
            if self.pidfd >= 0:
                try:
                    signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def end(self) -> None:
        """End all of its processes and close everything. Can be called again; not while a call uses it."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            self.kill()
            self._close()
        self.zygote.finished()

    def forget(self) -> None:
        """In a fork of the server: close the copies of what is the server's, and end nothing."""
        self._lock = threading.RLock()  # a thread that is not here any more may have held it
        self.lost, self._open = True, False
        self._close()

    def _close(self) -> None:
        for sock in (self._reply, self.channel, self.calls, self.status):
            if sock is not None:
                sock.close()
        for name in ("pidfd", "_counter", "_turn_passed"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


class Sessions:
    """All sessions of a sandbox, of all tenants."""

    def __init__(self, limit: int, idle_s: float) -> None:
        self._limit = limit
        self._idle_s = idle_s
        # Taken before a session's lock and a zygote's.
        self._lock = threading.RLock()
        self._sessions: dict[tuple[str, str], Session] = {}
        self._swept_s = time.monotonic()
        self._closed = False

    def find(self, tenant: str, name: str) -> Session | None:
        """The session of that name if it lives; `waiting` counts those who want its turn."""
        with self._lock:
            found = self._sessions.get((tenant, name))
            if found is None:
                return None
            if found.is_alive():
                found.waiting += 1
                return found
            del self._sessions[found.key]
            if found.waiting == 0:
                found.end()
            return None

    def begin(self, tenant: str, name: str, zygote: ZygoteProcess) -> tuple[Session, bool]:
        """A new session, unless somebody else began it meanwhile; returns whether it is new.

        Raises:
            SandboxError: There are too many, and all are busy; or it cannot be started.
        """
        with self._lock:
            if self._closed:
                raise SandboxClosed("the sandbox is closed")
            if (found := self.find(tenant, name)) is not None:
                return found, False
            while len(self._sessions) >= self._limit:
                idle = [each for each in self._sessions.values() if each.waiting == 0]
                if not idle:
                    raise SandboxError(
                        f"there are {self._limit} sessions already, all busy; end one, or call without one"
                    )
                # One tenant's many sessions are no reason to end another's.
                self._drop(min(idle, key=lambda each: (each.key[0] != tenant, each.used_s)))
            found = self._sessions[tenant, name] = Session(zygote, tenant, name)
            found.waiting += 1
            return found, True

    def leave(self, session: Session) -> None:
        """One who wanted the session's turn is through; a lost session is forgotten."""
        with self._lock:
            session.waiting -= 1
            if session.lost and session.waiting == 0:
                if self._sessions.get(session.key) is session:
                    del self._sessions[session.key]
                session.end()

    def end(self, tenant: str, name: str) -> bool:
        with self._lock:
            found = self._sessions.get((tenant, name))
            if found is None:
                return False
            alive = found.is_alive()
            if found.waiting == 0:
                self._drop(found)
            else:
                del self._sessions[found.key]
                found.ended_by_owner = True
                found.kill()
            return alive

    def sweep(self) -> None:
        """Forget those that ended by themselves, or should have; looks about once a second."""
        now = time.monotonic()
        if now - self._swept_s < _SWEEP_S:
            return
        with self._lock:
            self._swept_s = now
            for each in list(self._sessions.values()):
                expired = now - each.used_s > self._idle_s + _IDLE_GRACE_S
                if each.waiting == 0 and (expired or not each.is_alive()):
                    self._drop(each)

    def close(self) -> None:
        """End them. Those that are in use hear of the end of their zygote."""
        with self._lock:
            self._closed = True
            for session in list(self._sessions.values()):
                session.lost = True
                if session.waiting == 0:
                    self._drop(session)

    def forget(self) -> None:
        """In a fork of the server: none of them is ours."""
        for session in self._sessions.values():
            session.forget()

    def _drop(self, session: Session) -> None:
        del self._sessions[session.key]
        session.end()

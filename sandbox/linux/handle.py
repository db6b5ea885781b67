"""The server's side of one zygote: starting it, taking children from it, ending it."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import select
import signal
import socket
import subprocess
import termios
import threading
import time
from typing import TYPE_CHECKING, Any, cast

from sandbox.errors import Missing, SandboxDied, SandboxError, SandboxUnavailable
from sandbox.linux import knobs, wire
from sandbox.linux.spec import Plan
from sandbox.types import IsolationLevel

if TYPE_CHECKING:
    from sandbox.linux.wire import Message

_STARTING = (
    "import sys; sys.path.append(sys.argv[1]); from sandbox.linux import launcher; sys.path.pop(); "
    "launcher.main(*map(int, sys.argv[2:]))"
)
_HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_STDERR_BYTES = 4000
_START_S = 120.0  # to its first word: a heavy preload takes seconds
_ANSWER_S = 5.0  # to read what it is told; it is busy for milliseconds at a time
_ASKED_S = 3.0  # after this long a question says nothing about the one before
_CHILD_FDS = 5
NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)
TOO_MANY_FILES = "this process has too many open files; raise its limit (ulimit -n)"


class Taken:
    """A warm child, taken for one call or one session, and the descriptors to reach it by.

    Args:
        pid: As the zygote sees it.
        channel: Stream to the child.
        status: Packets about the child's end.
        pidfd: To end it with.
        out, err: What it writes.
        zygote: Where it comes from; does not end before `close`.
        cpu_ns: CPU time that it had used before.
        counter: Where the kernel counts that of all its processes, the ended ones too; -1: nowhere.
        counted_ns: What the kernel had counted before.
    """

    __slots__ = (
        "_is_held",
        "_is_ours",
        "_open",
        "channel",
        "counted_ns",
        "counter",
        "cpu_ns",
        "err",
        "out",
        "pid",
        "pidfd",
        "status",
        "zygote",
    )

    def __init__(
        self,
        pid: int,
        fds: list[int],
        zygote: ZygoteProcess,
        cpu_ns: int,
        *,
        is_ours: bool = True,
        counted_ns: int = 0,
    ) -> None:
        """`is_ours`: it serves nobody else, so it ends when it is dropped. `fds`: the last may be missing."""
        self._is_ours = is_ours
        self._is_held = False
        self.pid = pid
        self.cpu_ns = cpu_ns
        self.zygote = zygote
        self.counted_ns = counted_ns
        channel, status, self.pidfd, self.out, self.err, self.counter = (*fds, -1)[:6]
        fds.clear()
        self._open = True  # from here on what there is gets closed, whatever comes in between
        # Their families are given, so that nobody has to ask the kernel, four times each.
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, channel)
        self.status = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, status)
        zygote.hold()
        self._is_held = True

    def close(self) -> None:
        """Close every descriptor. A child that still waits for its code ends by that. Can be called again."""
        if self._open:
            self._open = False
            for name in ("channel", "status"):
                if (sock := getattr(self, name, None)) is not None:
                    sock.close()
            for fd in (self.pidfd, self.out, self.err):
                os.close(fd)
            if self.counter >= 0:
                os.close(self.counter)
            if self._is_held:
                self.zygote.finished(self.pid)

    def drop(self) -> None:
        """Close it, and end a child that may have its code already. Can be called again."""
        if self._open and self._is_ours:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.close()

    def __del__(self) -> None:
        # An exception of a signal handler can come between any two steps, also before anybody owns this.
        if getattr(self, "_open", False):
            self.drop()


class _Launcher(subprocess.Popen[bytes]):
    """Ends by itself soon after its zygote was told to, so that nobody has to wait for it."""

    def __del__(self) -> None:
        # Without the usual warning; `subprocess` itself collects it when it starts its next process.
        super().__del__(_warn=lambda *_, **__: None)  # type: ignore[call-arg]


class ZygoteProcess:
    """A running zygote. Safe to use from several threads; owns its process and its sockets."""

    def __init__(self, plan: Plan) -> None:
        """Start it; returns at once, long before it is ready.

        Raises:
            SandboxUnavailable: The interpreter cannot be executed.
            SandboxError: This process has too many open files.
        """
        self.level: IsolationLevel | None = None
        self.missing: tuple[Missing, ...] = ()  # why the level is not higher
        self.walls_s = 0.0  # trying levels and locking the first child down, without what it imports
        self.keeps_state = False  # whether a session survives a call that is ended
        self.suspect = False  # it did not do its part of a call: no new one
        self.born_s = time.monotonic()
        self.calls = 0
        self._users = 0
        self._not_started: set[int] = set()  # taken, by their pids
        self._is_retired = self._ended = False
        self._lock = threading.RLock()
        self._asked_s = self._unread_since_s = self.born_s
        self._process: _Launcher | None = None
        self._stderr = self._lifeline = -1
        self.control, theirs = _socketpair()
        held = -1
        try:
            # Errors of the start and of preloaded modules; a file needs nobody to read it.
            self._stderr = os.memfd_create("sandbox-stderr")
            held, self._lifeline = os.pipe2(os.O_CLOEXEC)
            self._process = self._launch(plan, theirs.fileno(), held)
        except OSError as error:
            self._close()
            if error.errno in NO_MORE_FILES:
                raise SandboxError(TOO_MANY_FILES) from error
            raise SandboxUnavailable(f"{plan.python} cannot be started: {error}") from error
        except BaseException:
            self._close()
            raise
        finally:
            theirs.close()
            if held >= 0:
                os.close(held)
        self.control.setblocking(False)

    def _launch(self, plan: Plan, control: int, lifeline: int) -> _Launcher:
        # Only the launcher makes it, 0711. A pid names its owner in one pid namespace: that is in it too.
        owner = f"{os.getpid()}-{os.stat('/proc/self/ns/pid').st_ino}"
        scratch = f"/tmp/mcp-sandbox-{owner}-{secrets.token_hex(8)}"  # noqa: S108
        wire.send(self.control, plan.message(scratch=scratch))
        argv = [
            plan.python,
            "-I",
            "-S",
            "-c",
            _STARTING,
            _HERE,
            str(control),
            str(lifeline),
            str(os.getpid()),
        ]
        return _Launcher(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            env=plan.environment,
            cwd="/",
            pass_fds=(control, lifeline),
            start_new_session=True,
        )

    def is_up(self) -> bool:
        """Whether it has shown that its walls hold. Never blocks.

        Raises:
            As `take`.
        """
        with self._lock:
            while self.level is None:
                packet = self._packet()
                if packet is None:
                    return False
                self._learn(*packet)
            if _is_ready((self.control.fileno(), 0)):
                raise SandboxDied(self._last_words())
            return True

    def take(self) -> Taken | None:
        """Return a warm child, or `None` if none is waiting. Never blocks.

        Raises:
            SandboxUnavailable: No level that is good enough could be had.
            SandboxDied: The zygote ended.
            SandboxError: This process has too many open files; the zygote is well.
        """
        with self._lock:
            while (packet := self._packet()) is not None:
                message, fds = packet
                if "child" not in message:
                    self._learn(message, fds)
                    continue
                if len(fds) != expected_fds(message):
                    _close_each(fds)
                    raise SandboxError(TOO_MANY_FILES)
                if _is_ready((self.control.fileno(), 0), (fds[2], select.POLLIN)):
                    _close_each(fds)  # it ended while it waited here, or the zygote did and it will
                    continue
                self.calls += 1
                self._not_started.add(message["child"])
                counted_ns = message.get("counted_ns", 0)
                return Taken(message["child"], fds, self, message["cpu_ns"], counted_ns=counted_ns)
            return None

    def _packet(self) -> tuple[Message, list[int]] | None:
        """The next packet; `None` if there is none yet."""
        try:
            message, fds = wire.receive(self.control)
        except BlockingIOError:
            return None
        except OSError:
            message, fds = None, []
        if message is None:
            raise SandboxDied(self._last_words())
        return message, _Owned(fds)

    def _learn(self, message: Message, fds: list[int]) -> None:
        """Take in what it says of itself before its first child."""
        _close_each(fds)
        if "refused" in message:
            missing = tuple(knobs.missing(each) for each in cast("Any", message["refused"]))
            raise SandboxUnavailable("this host cannot isolate code well enough", missing)
        if "tried" in message:
            self.missing = tuple(knobs.missing(each) for each in cast("Any", message["tried"]))
        if "hello" in message:
            level = IsolationLevel(int(str(message["hello"])))
            self.level = IsolationLevel.L4_PLUS if message["cgroup"] else level
            self.keeps_state = bool(message["keeps_state"])
            self.walls_s = float(str(message["walls_s"]))

    def started(self, taken: Taken, wall_s: float) -> None:
        """Tell the zygote that the call of `taken` runs now, and how long it may."""
        with self._lock:
            self._not_started.discard(taken.pid)
            try:
                self.send({"taken": taken.pid, "wall_s": wall_s})
            except OSError:
                pass  # it is gone: the child's status says so

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Tell the zygote something.

        Raises:
            OSError: It is gone, or does not listen.
        """
        with self._lock:
            wire.send(self.control, message, fds)

    def is_stuck(self) -> bool:
        """Whether it lets what it is told lie for longer than a zygote that is well ever does.

        Ask about every second: each question is something that it has to read.
        """
        now = time.monotonic()
        with self._lock:
            if self.level is None:
                return now - self.born_s > _START_S
            try:
                unread = any(fcntl.ioctl(self.control.fileno(), termios.TIOCOUTQ, bytes(4)))
                if not unread:
                    self.send({"are you there": True})
            except (OSError, ValueError):
                return True
            if not unread or now - self._asked_s > _ASKED_S:
                self._unread_since_s = now
            self._asked_s = now
            return now - self._unread_since_s > _ANSWER_S

    def hold(self) -> None:
        """Something lives in it: when it is retired it goes on until `finished`."""
        with self._lock:
            self._users += 1

    def finished(self, child: int = 0) -> None:
        """What held it is over; a retired zygote ends with the last of these."""
        with self._lock:
            self._not_started.discard(child)
            self._users -= 1
            if self._is_retired and self._users == 0:
                self.end()

    def retire(self) -> None:
        """Nobody takes children from it any more: have it end as soon as nothing lives in it."""
        with self._lock:
            self._is_retired = True
            if self._users == 0:
                self.end()
                return
            try:
                self.send({"retire": list(self._not_started)})
                while (packet := self._packet()) is not None:
                    _close_each(packet[1])
            except (OSError, SandboxDied):
                pass  # then there is nothing to spare

    def end(self) -> None:
        """Have it end, with everything in it. Returns at once; can be called again."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            try:
                self.send({"end": True})  # a copy of the socket may be open in a fork of this process
            except OSError:
                pass
            self._close()

    @property
    def is_over(self) -> bool:
        """Whether it was told to end."""
        return self._ended

    def is_gone(self) -> bool:
        """Whether it was told to end and the launcher, which ends last, did. Collects it."""
        return self._ended and (self._process is None or self._process.poll() is not None)

    def wait(self, until_s: float) -> bool:
        """Wait until it is gone, or until that moment of the monotonic clock; returns whether it is."""
        while not self.is_gone():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return False
            assert self._process is not None
            try:
                pidfd = os.pidfd_open(self._process.pid)
            except OSError:
                time.sleep(min(left_s, 0.01))  # no descriptor left, or it ended just now
                continue
            try:
                _is_ready((pidfd, select.POLLIN), within_s=left_s)
            finally:
                os.close(pidfd)
        return True

    def kill(self) -> None:
        """End the launcher by force; what it should have cleaned up, the next one does."""
        if self._process is not None:
            self._process.kill()

    def forget(self) -> None:
        """In a fork of the server: close the copies of what is the server's, and tell nobody."""
        self._lock = threading.RLock()  # a thread that is not here any more may have held it
        self._ended = True
        self._close()
        if self._process is not None:
            self._process.returncode = 0

    def _close(self) -> None:
        self.control.close()
        for name in ("_stderr", "_lifeline"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)

    def _last_words(self) -> str:
        text = b""
        if self._stderr >= 0:
            size = os.fstat(self._stderr).st_size
            text = os.pread(self._stderr, _STDERR_BYTES, max(0, size - _STDERR_BYTES))
        said = text.decode("utf-8", "replace").strip()
        return "the sandbox's zygote ended unexpectedly" + (f": {said}" if said else "")


def pid_of(pidfd: int) -> int:
    """The pid as this process sees it; 0 if it cannot be seen."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
            for line in file:
                if line.startswith(b"Pid:"):
                    return max(int(line.split()[1]), 0)
    except OSError:
        pass
    return 0


def expected_fds(message: Message) -> int:
    """How many descriptors come with a child; fewer arrive when this process has too many open."""
    return _CHILD_FDS + ("counted_ns" in message)


def _socketpair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise SandboxError(TOO_MANY_FILES) from error


def _is_ready(*watched: tuple[int, int], within_s: float = 0.0) -> bool:
    """Whether one of the descriptors has its events (0: only that the other side is gone)."""
    poll = select.poll()
    for fd, events in watched:
        poll.register(fd, events)
    return bool(poll.poll(within_s * 1000))


class _Owned(list[int]):
    """Descriptors on their way: closed when nobody took them out, such as for an exception of a signal."""

    def __del__(self) -> None:
        _close_each(self)


def _close_each(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())

"""The server's side of one zygote: starting it, taking children from it, ending it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
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
_END_S = 2.0
_STDERR_BYTES = 4000
CHILD_FDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A warm child, taken for one call or one session. The call owns the descriptors and closes them.

    Args:
        pid: As the zygote sees it.
        channel: Stream to the child.
        status: Packets from the zygote about the child's end.
        pidfd: To end it with.
        out, err: What it writes; of a session, `out` is the socket that its calls go to.
        cpu_ns: CPU time that it had used before.
    """

    pid: int
    channel: int
    status: int
    pidfd: int
    out: int
    err: int
    cpu_ns: int = 0


class ZygoteProcess:
    """A running zygote. Safe to use from several threads; owns its process and its sockets."""

    def __init__(self, plan: Plan) -> None:
        """Start it; returns at once, long before it is ready.

        Raises:
            SandboxUnavailable: The interpreter cannot be executed.
        """
        self.level: IsolationLevel | None = None
        self.missing: tuple[Missing, ...] = ()  # why the level is not higher
        self.keeps_state = False  # whether a session survives a call that is ended
        self.born_s = time.monotonic()
        self.calls = 0
        self.in_flight = 0
        self._lock = threading.Lock()
        self._ended = False
        # Errors of the start and of preloaded modules; a file needs nobody to read it.
        self._stderr = os.memfd_create("sandbox-stderr")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        held, self._lifeline = os.pipe2(os.O_CLOEXEC)
        scratch = f"/tmp/mcp-sandbox-{os.getpid()}-{secrets.token_hex(8)}"  # noqa: S108 - made by the launcher, 0700
        try:
            wire.send(self.control, plan.message(scratch=scratch))
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [
                    plan.python,
                    "-I",
                    "-S",
                    "-c",
                    _STARTING,
                    _HERE,
                    str(theirs.fileno()),
                    str(held),
                    str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                env=plan.environment,
                cwd="/",
                pass_fds=(theirs.fileno(), held),
                start_new_session=True,
            )
        except OSError as error:
            self._close_all()
            raise SandboxUnavailable(f"{plan.python} cannot be started: {error}") from error
        finally:
            theirs.close()
            os.close(held)
        self.control.setblocking(False)

    def is_up(self) -> bool:
        """Whether it has shown that its walls hold. Never blocks.

        Raises:
            As `take`.
        """
        if self.level is None:
            packet = self._packet()
            assert packet is None, "nothing comes before the first word"
        return self.level is not None

    def take(self) -> Taken | None:
        """Return a warm child, or `None` if none is waiting. Never blocks.

        Raises:
            SandboxUnavailable: No level that is good enough could be had.
            SandboxDied: The zygote ended.
        """
        packet = self._packet()
        if packet is None and self.level is not None:
            packet = self._packet()  # the first word was before it
        if packet is None:
            return None
        message, fds = packet
        if len(fds) != CHILD_FDS:
            for fd in fds:
                os.close(fd)
            raise SandboxError("this process has too many open files; raise its limit (ulimit -n)")
        with self._lock:
            self.calls += 1
            self.in_flight += 1
        channel, status, pidfd, out, err = fds
        return Taken(
            pid=int(str(message["child"])),
            channel=channel,
            status=status,
            pidfd=pidfd,
            out=out,
            err=err,
            cpu_ns=int(str(message["cpu_ns"])),
        )

    def _packet(self) -> tuple[Message, list[int]] | None:
        """The next packet that offers a child; `None` if there is none yet, or it was the first word."""
        try:
            message, fds = wire.receive(self.control)
        except BlockingIOError:
            return None
        except OSError:
            message, fds = None, []
        if message is None:
            raise SandboxDied(self._last_words())
        if "refused" in message:
            raise self._refusal(message["refused"])
        if "tried" in message:
            self.missing = tuple(knobs.missing(each) for each in cast("list[Message]", message["tried"]))
            return None
        if "hello" in message:
            level = IsolationLevel(int(str(message["hello"])))
            self.level = IsolationLevel.L4_PLUS if message["cgroup"] else level
            self.keeps_state = bool(message["keeps_state"])
            return None
        return message, fds

    def started(self, taken: Taken, wall_s: float) -> None:
        """Tell the zygote that the call of `taken` runs now, and how long it may."""
        try:
            wire.send(self.control, {"taken": taken.pid, "wall_s": wall_s})
        except OSError:
            pass  # it is gone: the child's status says so

    def hold(self) -> None:
        """Something new lives in it: it must not end before `finished`."""
        with self._lock:
            self.in_flight += 1

    def finished(self) -> None:
        """A call that took a child is over, or what held it."""
        with self._lock:
            self.in_flight -= 1

    def end(self) -> None:
        """Ask it to end, with everything in it. Returns at once."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        try:
            wire.send(self.control, {"end": True})
        except OSError:
            pass
        os.close(self._lifeline)
        self._lifeline = -1

    def is_gone(self, wait_s: float = 0.0) -> bool:
        """Whether the launcher ended too, which is after everything was cleaned up. Collects it."""
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        self._close_all()
        return True

    def destroy(self, within_s: float = _END_S) -> None:
        """`end`, wait, and use force when it takes too long."""
        self.end()
        if not self.is_gone(within_s):
            self._process.kill()
            self.is_gone(within_s)

    def _close_all(self) -> None:
        self.control.close()
        for name in ("_stderr", "_lifeline"):
            if (fd := getattr(self, name)) >= 0:
                os.close(fd)
                setattr(self, name, -1)
        self._ended = True

    def _refusal(self, tried: Any) -> SandboxUnavailable:
        if tried and tried[-1].get("everywhere"):
            return SandboxUnavailable(str(tried[-1]["text"]))
        missing = tuple(knobs.missing(each) for each in tried)
        return SandboxUnavailable("this host cannot isolate code well enough", missing)

    def _last_words(self) -> str:
        text = b""
        if self._stderr >= 0:
            size = os.fstat(self._stderr).st_size
            text = os.pread(self._stderr, _STDERR_BYTES, max(0, size - _STDERR_BYTES))
        said = text.decode("utf-8", "replace").strip()
        return "the sandbox's zygote ended unexpectedly" + (f": {said}" if said else "")

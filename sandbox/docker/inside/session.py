"""A session that goes back to the state before a call that was ended.

    agent ── init ─┬─ template   the state after the last call that went well, stopped
                   └─ caller     forked from it, waits for the next call

Init is the one of `sandbox.linux.session`, except that it stays outside of the walls of the code, as the
agent does: there is no pid namespace between them that would keep it safe.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from sandbox.docker.inside import locked, processes
from sandbox.docker.inside.single import clock_ns, hear, new_streams, send_call
from sandbox.docker.inside.worker import Worker, exit_code
from sandbox.linux import libc, memory, session, walls, wire

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from sandbox.docker.inside.counters import Counters
    from sandbox.linux.wire import Message

_STDERR = 2
_MAX_LOOKS = 64  # for processes that hide between looks; more would be a machine that does nothing else


class ContainerInit(session.Init):
    """Init of a session, beside the agent. `wall_in` is what its first process of code does."""

    def __init__(self, *arguments: Any, wall_in: Callable[[], None], counters: Counters) -> None:
        super().__init__(*arguments, by_session=False)
        self._enter = wall_in
        self._counters = counters
        self._counted_before_ns = 0

    def _begins(self, message: Message) -> None:
        self._counted_before_ns = message["counted_ns"]

    def _of_call_ns(self) -> int:
        if not self._counters.counts_cpu:
            return super()._of_call_ns()
        own_ns = time.process_time_ns() + clock_ns(os.getppid())
        return max(self._counters.cpu_ns() - own_ns - self._counted_before_ns, 0)

    def _of_lost_call_ns(self) -> int:
        return self._of_call_ns() if self._counters.counts_cpu else super()._of_lost_call_ns()

    def _wall_in(self) -> None:
        try:
            self._enter()
            os.dup2(0, _STDERR)
        except BaseException as error:
            wire.send(self.calls, {"failed": locked.reason(error)})
            os._exit(1)

    def _members(self, spared: set[int]) -> dict[int, int]:
        own = os.getpid()
        found: dict[int, int] = {}
        for _ in range(_MAX_LOOKS):
            pids, is_calm = processes.descendants(own, spared=frozenset(spared))
            for pid in pids:
                try:
                    found[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    is_calm = False
            if found or is_calm:
                break
            session.reap_ended()
        return found

    def _came_through(self, number: int) -> None:
        told = {
            "call": number,
            "done": True,
            "cpu_ns": self._of_call_ns(),
            "peak_bytes": session.peak_bytes(self.caller),
        }
        # Before the next process is forked: that takes as long as the call, and its caller need not wait.
        wire.send(self.channel, told)
        super()._came_through(number)


class Kept(Worker):
    """A session whose init this process talks to. Init ends calls; this process ends the session."""

    grace_s = 0.4

    def start(self) -> None:
        self._init, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._calls, calls_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self._live(theirs, calls_end)
        for sock in (theirs, calls_end):
            sock.close()
        for sock, hear_it in ((self._init, self._hear_init), (self._calls, self._hear_caller)):
            sock.setblocking(False)
            self.loop.watch(sock.fileno(), hear_it)
        self._is_waiting = False  # a process, for a call
        self._init_ns = 0  # CPU time of init, as long as it was seen
        self._asked = 0  # the last call that init was asked to end

    def _live(self, channel: socket.socket, calls: socket.socket) -> NoReturn:
        try:
            walls.ordinary_signals()
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            listing = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            walls.only_descriptors((null, null, _STDERR, channel.detach(), calls.detach(), listing))
            walls.leave_with_parent()
            libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
            ContainerInit(
                socket.socket(fileno=locked.CHANNEL_FD),
                socket.socket(fileno=locked.CALLS_FD),
                self.setup["session_idle_s"],
                self.limits["cpu_ns"],
                locked.PROCESSES_FD,
                wall_in=self._wall_in,
                counters=self.counters,
            ).serve()
        except BaseException as error:
            print(f"sandbox: init of the session: {locked.reason(error)}", file=sys.stderr)
        os._exit(session.BROKEN)

    def _wall_in(self) -> None:
        self.wall_in((*self.protected, os.getppid()))

    def open_call(self, message: Message) -> tuple[socket.socket, tuple[int, int]]:
        channel, streams, theirs = new_streams()
        self._is_waiting = False
        self._send_init(
            {"call": message["call"], "wall_s": message["wall_s"], "counted_ns": self.counted_before_ns}
        )
        send_call(self._calls, message["call"], theirs)
        return channel, streams

    def end_processes(self) -> None:
        """Ask init to end the call; the second time, end the session."""
        assert self.call is not None
        if self.why == "time" or self._asked == self.call.number:
            memory.kill(self.pid)
        else:
            self._asked = self.call.number
            self._send_init({"kill": self._asked})

    def own_cpu_ns(self) -> int:
        if self.pid:
            self._init_ns = clock_ns(self.pid) or self._init_ns
        return super().own_cpu_ns() + self._init_ns

    def used_cpu_ns(self) -> int:
        return 0  # init looks at it

    def members(self) -> list[int]:
        stopped = b"T"  # the template does not run, and is what the session goes back to
        found = processes.descendants(self.pid)[0]
        return [pid for pid in found if (fields := memory.stat(pid)) is not None and fields[0] != stopped]

    def ended(self, status: int, cpu_ns: int, peak_bytes: int) -> None:
        """Init is gone, and the session with it."""
        self.pid = 0
        processes.end_all(os.getpid(), self.reap)
        if self.call is not None and self._gave_up(status):
            self.fail("the session's processes said what makes no sense, or could not be ended")
        elif self.call is not None:
            used_ns = self.cpu_ns_of_call(self.reaped_cpu_ns)
            self.tell_end(int(signal.SIGKILL), cpu_ns=used_ns, peak_bytes=peak_bytes, state="lost")
            self.is_over = True
        elif self.was_ready and status == 0:
            self.is_over = True  # it was not used for long
        elif not self.is_over:
            self._hear_caller()  # why it could not be locked down
            if not self.is_over:
                self.fail("the session's first process ended")

    def _gave_up(self, status: int) -> bool:
        """Whether init ended the session without a limit that would explain it."""
        explained = self.killed_s is not None or self.counters.ooms() or self.counters.refused_forks()
        return exit_code(status) == session.BROKEN and not explained

    def _send_init(self, message: Message) -> None:
        try:
            wire.send(self._init, message)
        except OSError:
            pass  # it ended; that is heard elsewhere

    def _hear_init(self) -> None:
        said = hear(self._init)
        if said is None:
            self.loop.forget(self._init.fileno())
        elif self.call is not None and said.get("call") == self.call.number:
            if said.get("done"):
                self.why = None  # it came through before it could be ended
                status, state = None, "kept"
            else:
                self.why = self.why or said["why"]
                status, state = said["status"], "rolled back"
            self.tell_end(status, cpu_ns=said["cpu_ns"], peak_bytes=said["peak_bytes"], state=state)
            self._pass_on()

    def _hear_caller(self) -> None:
        said = hear(self._calls)
        if said is None:
            self.loop.forget(self._calls.fileno())
        elif said.get("ready"):
            self._is_waiting = True
            self._pass_on()
        elif "failed" in said and not self.was_ready:
            self.fail(str(said["failed"]))

    def _pass_on(self) -> None:
        """Tell the server that a call can come, once the last is over and a process waits."""
        if self._is_waiting and self.call is None and not self.is_over:
            self._is_waiting = False
            self.say_ready()

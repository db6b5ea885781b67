"""A session inside its walls: a trusted init, a frozen copy of the last good state, and a process that waits
for code.

    init (pid 1) ─┬─ template   the state after the last call that went well, stopped
                  └─ caller     forked from it, waits for the next call

The caller runs the code itself. If it comes through, it becomes the template and forks the next caller; if
it is ended or crashes, the template forks another one, as if the call had never been. Between calls nothing
runs: everything but these three is ended, and the template is stopped, so threads that a call left behind do
not go on.

What a fork does not copy is not part of the state: threads, and processes that the code started.

Init talks to the server (channel) and to the others (sockets of its own); what these tell it, user code may
have made up. So it relies on it only for what they could do anyway: choose which of their own processes go
on.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import time

from sandbox.linux import memory, runner, wire

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from typing import NoReturn

    from sandbox.linux.wire import Message

_FORK_S = 5.0  # to fork the next caller; a fork of 2 GB takes 12 ms
_SWEEP_S = 2.0
_CPU_CHECK_S = 0.02
CALL_FDS = 3  # the socket of a call, its stdout and stderr


class Init:
    """Supervises one session. `serve` never returns."""

    def __init__(
        self, channel: socket.socket, idle_s: float, cpu_limit_ns: int, processes: int, *, by_session: bool
    ) -> None:
        self.channel = channel
        self.cpu_limit_ns = cpu_limit_ns  # of one call; 0: none
        self.idle_s = idle_s
        self.by_session = by_session
        self.requests, self.caller_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.commands, self.template_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.template = 0
        self.caller = 0
        self.processes = processes

    def serve(self) -> NoReturn:
        self.template = os.fork()
        if self.template == 0:
            self.channel.close()
            self.requests.close()
            self.commands.close()
            os.close(self.processes)
            live(self.caller_end, self.template_end)
        self.template_end.close()
        self.caller_end.close()
        self._freeze_with_next_caller()
        self.channel.send(b"R")
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        while poll.poll(self.idle_s * 1000):
            message, fds = wire.receive(self.channel)
            if message is None:
                break
            if "call" in message:
                self._call(message, fds)
        os._exit(0)

    def _call(self, message: Message, fds: list[int]) -> None:
        """Let the caller run one request; answer with how it ended; be ready for the next."""
        begin_ns = _cpu_ns(self.caller)
        alive = os.pidfd_open(self.caller)
        wire.send(self.requests, {}, tuple(fds))
        for fd in fds:
            os.close(fd)
        how, said = self._watch(alive, time.monotonic() + message["wall_s"], begin_ns)
        os.close(alive)
        ending: Message = {
            "cpu_ns": max(_cpu_ns(self.caller) - begin_ns, 0),
            "peak_bytes": _peak_bytes(self.caller) or _whole(said.get("peak_bytes")),
            "why": how if how in {"time", "cpu"} else None,
            "ooms": 0,
            "refused_forks": 0,
            "status": None,
        }
        if how == "done":
            wire.send(self.channel, ending)  # before the next caller is forked: nobody waits for that
            self.template = self.caller
            self._freeze_with_next_caller()
            return
        status = _status(self.caller) if how == "gone" else int(signal.SIGKILL)
        self._sweep({self.template})
        os.kill(self.template, signal.SIGCONT)
        wire.send(self.commands, {"fork": True})
        word = self._freeze_with_next_caller()
        ending["status"] = _whole(word.get("status"), int(signal.SIGKILL)) if status is None else status
        wire.send(self.channel, ending)

    def _watch(self, alive: int, deadline: float, begin_ns: int) -> tuple[str, Message]:
        """Wait for the end: `"done"` with the caller's word, `"gone"`, `"killed"`, `"time"` or `"cpu"`."""
        poll = select.poll()
        for fd in (alive, self.requests.fileno(), self.channel.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            patience = min(left, _CPU_CHECK_S) if self.cpu_limit_ns else left
            ready = {fd for fd, _ in poll.poll(max(0.0, patience) * 1000)}
            if self.requests.fileno() in ready:
                said, _ = wire.receive(self.requests)
                if said is not None and "done" in said:
                    return "done", said
            if alive in ready:
                return "gone", {}
            if self.channel.fileno() in ready:
                if wire.receive(self.channel)[0] is None:
                    os._exit(0)
                return "killed", {}
            if self.cpu_limit_ns and self._used_cpu_ns() - begin_ns > self.cpu_limit_ns:
                return "cpu", {}
            if time.monotonic() >= deadline:
                return "time", {}

    def _used_cpu_ns(self) -> int:
        """CPU time of everything that the call runs."""
        found = self._members({os.getpid(), self.template})
        for pidfd in found.values():
            os.close(pidfd)
        return sum(map(_cpu_ns, found))

    def _freeze_with_next_caller(self) -> Message:
        """Wait for the template's next caller, end everything else, stop the template; returns its word."""
        word = self._next_caller()
        if word is None:
            os._exit(5)  # the state has no process to go on in: the session is over
        self.caller = word["caller"]
        self._sweep({self.template, self.caller})
        os.kill(self.template, signal.SIGSTOP)
        return word

    def _next_caller(self) -> Message | None:
        poll = select.poll()
        poll.register(self.requests, select.POLLIN)
        deadline = time.monotonic() + _FORK_S
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                said, _ = wire.receive(self.requests)
                if said is not None and isinstance(said.get("caller"), int):
                    return said
        return None

    def _sweep(self, spared: set[int]) -> None:
        """End every process of the session but init and `spared`, however fast it forks."""
        deadline = time.monotonic() + _SWEEP_S
        while others := self._members({os.getpid(), *spared}):
            if time.monotonic() >= deadline:
                os._exit(7)  # they cannot be ended one by one: end the whole session
            for pidfd in others.values():
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for pidfd in others.values():
                select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
                os.close(pidfd)
        self._reap()

    def _members(self, spared: set[int]) -> dict[int, int]:
        """Living processes and their descriptors: all of the pid namespace, or of our process session."""
        own = os.getsid(0)
        found = {}
        for pid in [int(name) for name in os.listdir(self.processes) if name.isdigit()]:
            try:
                if pid in spared or (self.by_session and os.getsid(pid) != own):
                    continue
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            if select.select([pidfd], [], [], 0)[0]:  # it ended, though nobody may have waited for it yet
                os.close(pidfd)
            else:
                found[pid] = pidfd
        return found

    def _reap(self) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def live(requests: socket.socket, commands: socket.socket) -> NoReturn:
    """The life of a caller: wait, run, become the template, fork the next caller. Never returns.

    Args:
        requests: Shared by all callers; only the one that waits reads it.
        commands: Shared by all templates.
    """
    namespace = runner.fresh_main()
    while True:
        # Here it is a template: what it was told to keep is frozen in it. Each caller goes on below.
        word: Message = {}
        while (caller := os.fork()) != 0:
            wire.send(requests, {"caller": caller, **word})
            if wire.receive(commands)[0] is None:
                os._exit(0)
            try:
                word = {"status": os.waitpid(caller, 0)[1]}  # of the one that did not come through
            except ChildProcessError:
                word = {}
        runner.warm_up()
        message, fds = wire.receive(requests)
        if message is None or len(fds) != CALL_FDS:
            os._exit(0)
        run_call(fds, namespace)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        wire.send(requests, {"done": True, "peak_bytes": peak})


def run_call(fds: list[int], namespace: Message) -> None:
    """Run one request with streams of its own; `fds` are the socket that carries it, stdout and stderr."""
    channel_fd, out, err = fds
    for fd, number in ((out, 1), (err, 2)):
        os.dup2(fd, number)
        os.close(fd)
    channel = socket.socket(fileno=channel_fd)
    try:
        header, blobs = runner.receive(channel)
        channel.sendall(runner.perform(header, blobs, namespace, last=False))
    except (EOFError, OSError):
        pass  # the server does not want to know any more
    channel.close()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in (1, 2):
        os.dup2(null, number)
    os.close(null)


def serve_in_place(channel: socket.socket, idle_s: float) -> NoReturn:
    """Where nothing may fork: one process runs every call, and goes with the first that is ended."""
    namespace = runner.fresh_main()
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while poll.poll(idle_s * 1000):
        message, fds = wire.receive(channel)
        if message is None:
            break
        if "call" not in message:
            continue
        begin_ns = time.process_time_ns()
        run_call(fds, namespace)
        ending = {
            "cpu_ns": time.process_time_ns() - begin_ns,
            "peak_bytes": _peak_bytes(os.getpid()),
            "why": None,
            "ooms": 0,
            "refused_forks": 0,
            "status": None,
        }
        wire.send(channel, ending)
    os._exit(0)


def _whole(said: object, otherwise: int = 0) -> int:
    """A number that user code may have made up."""
    return said if isinstance(said, int) else otherwise


def _cpu_ns(pid: int) -> int:
    """CPU time of a process, and of its children that were waited for (those in ticks)."""
    try:
        own = time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        own = 0
    fields = memory.stat(pid)
    return own + (sum(map(int, fields[13:15])) * memory.TICK_NS if fields else 0)


def _peak_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _status(pid: int) -> int | None:
    """What `wait(2)` would say of the caller, read from its zombie; `None` where it cannot be read."""
    fields = memory.stat(pid)
    return int(fields[49]) if fields and len(fields) > 49 else None

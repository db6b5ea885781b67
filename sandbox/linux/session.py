"""A session inside its walls: a trusted init, a frozen copy of the last good state, and a process that waits
for code.

    init (pid 1) ─┬─ template   the state after the last call that went well, stopped
                  └─ caller     forked from it, waits for the next call

The caller runs the code itself. If it comes through, it becomes the template and forks the next caller; if
it is ended or crashes, the template forks another one, as if the call had never been. Between calls nothing
runs: everything but these three is ended, and template and caller are stopped, so nothing that a call left
behind goes on.

What a fork does not copy is not part of the state: threads, and processes that the code started.

Init talks to the server (channel) and to the others (sockets of its own); what these tell it, user code may
have made up. So it relies on it only for what they could do anyway: choose which of their own processes go
on.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

from sandbox.linux import memory, runner, statuses, wire

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NoReturn

    from sandbox.linux.wire import Message

_FORK_S = 5.0  # to fork the next caller; a fork of 2 GB takes 12 ms
_FORK_CPU_NS = 100_000_000  # what may run in that time, after the first look
_FORK_LOOK_S = 0.05
_SWEEP_S = 2.0
_CPU_CHECK_S = 0.02
_AFTER_REPORT_S = 0.5  # for a caller that reported to become the template
_IDLE_LOOK_S = 1.0  # between two looks at whether anything runs between calls
_GETTING_READY_LOOK_S = 0.01  # while the next caller is not stopped yet
_IDLE_CPU_NS = 40_000_000  # many times what the next caller needs to get ready
BROKEN = 97  # init's exit status when it ends a session that cannot be trusted to go on
_FIRST_TO_END = b"1000"  # of all processes, when the kernel looks for memory
_OOM_SCORE = "oom_score_adj"
# As code found them:
_set_handler, _handler_of, _wait_for = signal.signal, signal.getsignal, os.waitpid
_block = signal.pthread_sigmask
_ALL_SIGNALS = signal.valid_signals()
# What code blocks, as far as it goes on from call to call. Between calls everything is: a timer that it set
# would otherwise run its handler when no limit looks.
_signals_of_code: list[int] = []
CALL_FDS = 3  # the socket of a call, its stdout and stderr


class Init:
    """Supervises one session. `serve` never returns.

    A call goes past it: the server hands the request to the caller directly, and tells init how long it may
    take. What init hears from the caller may therefore come first.
    """

    def __init__(
        self,
        channel: socket.socket,
        calls: socket.socket,
        idle_s: float,
        cpu_limit_ns: int,
        processes: int,
        *,
        by_session: bool,
    ) -> None:
        self.channel = channel
        self.calls = calls
        self.cpu_limit_ns = cpu_limit_ns  # of one call; 0: none
        self.idle_s = idle_s
        self.by_session = by_session
        self.words, self.caller_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.commands, self.template_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.gate, self.gate_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.template = 0
        self.caller = 0
        self.alive = -1  # descriptor of the caller
        self.is_stopped = False  # whether the caller said that it waits, and is stopped until a call comes
        self.frozen_ns = 0  # CPU time of everything when the last call was over
        self.begin_ns = 0  # CPU time of the caller when it began to wait
        self.counted_before_ns = 0  # by the kernel, then
        self.tally = memory.Tally()  # of what runs since then
        self.processes = processes
        self.finished = 0  # number of the last call that is over
        self.own_score = self._read_score()

    def serve(self) -> NoReturn:
        self.template = os.fork()
        if self.template == 0:
            for sock in (self.channel, self.words, self.commands, self.gate):
                sock.close()
            os.close(self.processes)
            self._wall_in()
            live(self.calls, self.caller_end, self.template_end, self.gate_end)
        self._shut_in()
        for sock in (self.calls, self.caller_end, self.template_end, self.gate_end):
            sock.close()
        self._freeze_with_next_caller()
        self.channel.send(b"R")
        idle_until = time.monotonic() + self.idle_s
        while (left := idle_until - time.monotonic()) > 0:
            ready = self._wait(min(left, _IDLE_LOOK_S if self.is_stopped else _GETTING_READY_LOOK_S))
            if self.channel.fileno() in ready:
                message, _ = wire.receive(self.channel)
                if message is None:
                    break
                if message.get("call") == self.finished + 1:
                    self._begins(message)
                    self._call(message["call"], time.monotonic() + message["wall_s"])
                    idle_until = time.monotonic() + self.idle_s
                elif message.get("kill") == self.finished:
                    wire.send(self.channel, {"call": self.finished})  # it came through before
            elif self.words.fileno() in ready:
                if self.is_stopped or self._word() != {"waiting": self.caller}:
                    os._exit(BROKEN)  # the server tells us of a call before the caller: it has no word to say
                self.is_stopped = True
                os.kill(self.caller, signal.SIGSTOP)
            elif self.alive in ready:
                self._back()  # the caller ended while it waited, such as by the kernel for its memory
            elif self._all_cpu_ns() - self.frozen_ns > _IDLE_CPU_NS:
                os._exit(BROKEN)  # something goes on between calls, where no limit would end it
        os._exit(0)

    def _wall_in(self) -> None:
        """What the first process that runs code does before it."""

    def _shut_in(self) -> None:
        """What init itself does once that process is there."""

    def _begins(self, message: Message) -> None:
        """A call begins, of which the server says `message`."""

    def _wait(self, seconds: float) -> set[int]:
        """Which of caller's end, its words and the server's there is, within `seconds`."""
        poll = select.poll()
        for fd in (self.alive, self.words.fileno(), self.channel.fileno()):
            poll.register(fd, select.POLLIN)
        return {fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)}

    def _word(self) -> Message:
        """What the caller or the template says; whoever says what makes no sense ends the session."""
        try:
            said, fds = wire.receive(self.words)
        except (OSError, ValueError, RecursionError):
            os._exit(BROKEN)
        if not isinstance(said, dict) or fds:
            os._exit(BROKEN)
        return said

    def _call(self, number: int, deadline: float) -> None:
        """Watch a call; if it does not come through, say how it ended and go back to the state before."""
        os.kill(self.caller, signal.SIGCONT)
        how = self._watch(number, deadline)
        if how == "done":
            self._came_through(number)
            return
        ending: Message = {
            "call": number,
            "cpu_ns": self._of_lost_call_ns(),
            "peak_bytes": peak_bytes(self.caller),
            "why": how if how in {"time", "cpu"} else None,
            "status": statuses.read(self.caller, self.alive) if how == "gone" else int(signal.SIGKILL),
        }
        self.finished = number
        word = self._back()
        if ending["status"] is None:
            ending["status"] = statuses.believable(word.get("status"))
        wire.send(self.channel, ending)

    def _came_through(self, number: int) -> None:
        """Its state is the session's now; whoever made the call knows by its report."""
        self.finished = number
        self.template = self.caller
        self._freeze_with_next_caller(is_first_to_end=True)

    def _back(self) -> Message:
        """The caller is lost: end everything but the template, and have that fork another one."""
        self._sweep({self.template})
        self._forget_words()
        os.kill(self.template, signal.SIGCONT)
        wire.send(self.commands, {"fork": True})
        return self._freeze_with_next_caller()

    def _forget_words(self) -> None:
        """Take no more notice of what processes said that are gone now."""
        try:
            while self.words.recv(1, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            pass

    def _watch(self, number: int, deadline: float) -> str:
        """Wait for the end of a call: `"done"`, `"gone"`, `"killed"`, `"time"` or `"cpu"`."""
        while True:
            left = deadline - time.monotonic()
            ready = self._wait(min(left, _CPU_CHECK_S) if self.cpu_limit_ns else left)
            if self.channel.fileno() in ready:
                message, _ = wire.receive(self.channel)
                if message is None:
                    os._exit(0)
                if message.get("kill") == number:
                    return "killed"
                if message.get("reported") == number:
                    deadline = min(deadline, time.monotonic() + _AFTER_REPORT_S)
            if self.words.fileno() in ready:
                said = self._word()
                if said == {"done": number}:
                    return "done"
                if self.is_stopped or said != {"waiting": self.caller}:
                    os._exit(BROKEN)
                self.is_stopped = True  # not really: its call is there already
            if self.alive in ready:
                return "gone"
            if self.cpu_limit_ns and self._of_call_ns() > self.cpu_limit_ns:
                return "cpu"
            if time.monotonic() >= deadline:
                return "time"

    def _of_call_ns(self) -> int:
        """CPU time of everything that the call runs, and ran: nobody may have waited for it."""
        living = self._living({self.template})
        seen_ns = max(sum(map(_cpu_ns, living)), self.tally.look(living))
        return max(seen_ns - self.begin_ns, self._counted_since_ns())

    def _of_lost_call_ns(self) -> int:
        """CPU time of a call whose caller may be gone."""
        seen_ns = max(_cpu_ns(self.caller), self.tally.total_ns)
        return max(seen_ns - self.begin_ns, self._counted_since_ns(), 0)

    def _counted_ns(self) -> int:
        """CPU time of everything but init, ended processes included; 0 where the kernel does not count it."""
        return 0

    def _counted_since_ns(self) -> int:
        return self._counted_ns() - self.counted_before_ns

    def _all_cpu_ns(self) -> int:
        return sum(map(_cpu_ns, self._living()))

    def _living(self, spared: Iterable[int] = ()) -> list[int]:
        found = self._members({os.getpid(), *spared})
        for pidfd in found.values():
            os.close(pidfd)
        return list(found)

    def _freeze_with_next_caller(self, *, is_first_to_end: bool = False) -> Message:
        """Wait for the template's next caller, end everything else, stop the template; returns its word.

        `is_first_to_end`: the kernel ends the template before others that take memory, and so the caller too.
        """
        word = self._next_caller()
        self.caller = word["caller"]
        fields = memory.stat(self.caller)  # cannot be read where `/proc` is closed to us
        if fields is not None and int(fields[1]) != self.template:
            os._exit(BROKEN)
        self._sweep({self.template, self.caller})
        os.kill(self.template, signal.SIGSTOP)
        if not is_first_to_end:
            self._write_score(self.caller, _FIRST_TO_END)
        self._write_score(self.template, self.own_score)
        if self.alive >= 0:
            os.close(self.alive)
        self.alive = os.pidfd_open(self.caller)
        self.begin_ns = _cpu_ns(self.caller)
        self.frozen_ns = self._all_cpu_ns()
        self.counted_before_ns, self.tally = self._counted_ns(), memory.Tally()
        self.is_stopped = False
        wire.send(self.gate, {"go": self.caller, "after": self.finished})
        return word

    def _read_score(self) -> bytes:
        """Init's own place in the kernel's order when memory runs out; empty where it cannot be read."""
        try:
            fd = os.open(f"self/{_OOM_SCORE}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.processes)
        except OSError:
            return b""
        try:
            return os.read(fd, 16)
        finally:
            os.close(fd)

    def _write_score(self, pid: int, score: bytes) -> None:
        """Give a process its place in that order: a caller goes first, however large the template is.

        Where `/proc` is closed to init, the kernel goes by size alone.
        """
        try:
            fd = os.open(f"{pid}/{_OOM_SCORE}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.processes)
        except OSError:
            return
        try:
            os.write(fd, score)
        except OSError:
            pass  # below what it may have: others set that
        finally:
            os.close(fd)

    def _next_caller(self) -> Message:
        poll = select.poll()
        poll.register(self.words, select.POLLIN)
        deadline = time.monotonic() + _FORK_S
        begin_ns: int | None = None  # a look costs as much as most forks, so the first is at one that is slow
        while time.monotonic() < deadline:
            if not poll.poll(_FORK_LOOK_S * 1000):
                used_ns = self._all_cpu_ns()
                begin_ns = used_ns if begin_ns is None else begin_ns
                if used_ns - begin_ns > _FORK_CPU_NS:
                    break  # code goes on where it should fork, and no limit would end it
                continue
            said = self._word()
            if "full" in said:
                self._sweep({self.template})
                wire.send(self.commands, {"fork": True})
            elif isinstance(said.get("caller"), int):
                return said
            else:
                break
        os._exit(BROKEN)  # the state has no process to go on in

    def _sweep(self, spared: set[int]) -> None:
        """End every process of the session but init and `spared`, however fast it forks."""
        deadline = time.monotonic() + _SWEEP_S
        while others := self._members({os.getpid(), *spared}):
            if time.monotonic() >= deadline:
                os._exit(BROKEN)  # they cannot be ended one by one: end the whole session
            for pidfd in others.values():
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for pidfd in others.values():
                select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
                os.close(pidfd)
        reap_ended()

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


def live(
    calls: socket.socket, words: socket.socket, commands: socket.socket, gate: socket.socket
) -> NoReturn:
    """The life of a caller: wait, run, become the template, fork the next caller. Never returns.

    Args:
        calls: From the server. Shared by all callers; only the one that waits reads it.
        words: To init.
        commands: From init; shared by all templates.
        gate: From init, to the caller that may take a call: everything that an earlier one left is gone.
    """
    namespace = runner.fresh_main()
    while True:
        # Here it is a template: what it was told to keep is frozen in it. Each caller goes on below.
        word: Message = {}
        handler = _leave_status()
        while (caller := _fork(words, commands)) != 0:
            wire.send(words, {"caller": caller, **word})
            if wire.receive(commands)[0] is None:
                os._exit(0)
            try:
                word = {"status": _wait_for(caller, 0)[1]}  # of the one that did not come through
            except ChildProcessError:
                word = {}
        _put_back(handler)
        runner.warm_up()
        opened: Message = {"go": 0}
        while opened["go"] != os.getpid():  # it was for one that ended before it heard it
            opened = wire.receive(gate)[0] or os._exit(0)
        wire.send(calls, {"ready": True})
        wire.send(words, {"waiting": os.getpid()})
        while True:
            message, fds = wire.receive(calls)
            if message is None or len(fds) != CALL_FDS:
                os._exit(0)
            if message["call"] > opened["after"]:
                break
            for fd in fds:  # of a call that was ended before anybody took it
                os.close(fd)
        run_call(fds, namespace)
        wire.send(words, {"done": message["call"]})


def _fork(words: socket.socket, commands: socket.socket) -> int:
    """Fork the next caller: once init has ended what takes its place, if a call left that behind.

    Its random numbers go on where the template's are: Python begins anew in each fork.
    """
    module = sys.modules.get("random")
    try:
        state = module.getstate() if module is not None else None
    except Exception:
        state = None  # the code put something else in its place
    while True:
        try:
            pid = os.fork()
        except OSError:
            wire.send(words, {"full": True})
            if wire.receive(commands)[0] is None:
                os._exit(0)
            reap_ended()
            continue
        if pid == 0 and module is not None and state is not None:
            try:
                module.setstate(state)
            except Exception:  # noqa: S110 - as above
                pass
        return pid


def _leave_status() -> Any:
    """Have the caller leave its status when it ends, for init to read; returns what was set before.

    Where code has its children ignored, the kernel keeps nothing of them.
    """
    try:
        return _set_handler(signal.SIGCHLD, signal.SIG_DFL)
    except Exception:
        return None  # the code made that impossible; what init cannot read it does not believe


def _put_back(handler: Any) -> None:
    """In the caller: have what the code had set."""
    if handler is None or handler == signal.SIG_DFL:
        return
    try:
        _set_handler(signal.SIGCHLD, handler)
    except Exception:  # noqa: S110 - as above
        pass


def reap_ended() -> None:
    """Let go of what init ended: until then the kernel counts it."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def run_call(fds: list[int], namespace: Message) -> None:
    """Run one request with streams of its own; `fds` are the socket that carries it, stdout and stderr."""
    channel_fd, out, err = fds
    for fd, number in ((out, 1), (err, 2)):
        os.dup2(fd, number)
        os.close(fd)
    channel = socket.socket(fileno=channel_fd)
    try:
        header, blobs = runner.receive(channel)
        _set_signals(_signals_of_code)
        report = runner.perform(header, blobs, namespace, last=False)
        _signals_of_code[:] = _set_signals(_ALL_SIGNALS)
        channel.sendall(report)
    except (EOFError, OSError):
        pass  # the server does not want to know any more
    channel.close()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1, 2):  # the code may have closed any of them, so that this one has its number now
        if number != null:
            os.dup2(null, number)
    os.set_inheritable(null, True) if null <= 2 else os.close(null)


def _set_signals(blocked: Iterable[int]) -> set[int]:
    """Block exactly these signals; returns which were blocked. What the code's handlers raise is dropped."""
    before: set[int] | None = None
    while before is None:
        try:
            before = _block(signal.SIG_BLOCK, ())
        except BaseException:  # noqa: S112 - of a handler that was due
            continue
    try:
        _block(signal.SIG_SETMASK, blocked)
    except BaseException:  # noqa: S110 - the same, and the signals are blocked by then
        pass
    return before


def serve_in_place(channel: socket.socket, calls: socket.socket, idle_s: float) -> NoReturn:
    """Where nothing may fork: one process runs every call, and goes with the first that is ended."""
    namespace = runner.fresh_main()
    poll = select.poll()
    poll.register(calls, select.POLLIN)
    while True:
        wire.send(calls, {"ready": True})
        if not poll.poll(idle_s * 1000):
            break
        message, fds = wire.receive(calls)
        if message is None or len(fds) != CALL_FDS:
            break
        run_call(fds, namespace)
    os._exit(0)


def _cpu_ns(pid: int) -> int:
    """CPU time of a process, and of its children that were waited for (those in ticks)."""
    fields = memory.stat(pid)
    return memory.clock_ns(pid) + (sum(map(int, fields[13:15])) * memory.TICK_NS if fields else 0)


def peak_bytes(pid: int) -> int:
    """The most memory that a process had at one time; 0 if that cannot be read."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0

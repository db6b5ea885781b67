"""One call, from the server's side: sends the request, drains what comes, decides how it ended.

It does no waiting of its own. Whoever drives it waits for `fileno()` (an epoll with everything in it) for at
most `patience_s()`, then calls `advance()`; so the same code serves threads and any event loop.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from typing import TYPE_CHECKING

from sandbox.errors import SandboxDied
from sandbox.linux import cgroups, memory, wire
from sandbox.linux.handle import Taken, pid_of
from sandbox.outcome import (
    Ending,
    Kept,
    conclude,
    flood_bytes,
    header_limit_bytes,
    report_limit_bytes,
    understood,
)
from sandbox.types import EndedBy, IsolationLevel, SandboxConfig, SandboxResult

if TYPE_CHECKING:
    from sandbox.linux.wire import Message

_PROC_BYTES = 16 * 1024
_READ_BYTES = 256 * 1024
_READS_AT_ONCE = 16  # of one stream before the others get their turn
# Output waits in its pipe at first: most calls are over by then, and waking up for each line of theirs would
# cost them the CPU that they run on. A call that fills the pipe waits this long once.
_QUIET_S = 0.002
_MAX_STATUS = 0xFFFF
UNSEEN_NS = 5_000_000  # the kernel counts the time of one that runs with each of its ticks, 4 ms
_BACKSTOP_S = 0.5  # after which the server ends a call that the zygote should have ended
_WORD_S = 0.5  # for the zygote's word on a call that was ended; then we look ourselves
_REPORT_S = 5.0  # for the end of one that was ended, or for the word on one that ended by itself


class Stream:
    """What a child writes to one of its streams, up to the limit."""

    def __init__(self, fd: int, limit_bytes: int) -> None:
        self.fd = fd
        self.kept = Kept(limit_bytes)
        self.open = True

    def drain(self) -> None:
        for _ in range(_READS_AT_ONCE):
            try:
                data = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self.open = False
                return
            self.kept.add(data)


class Call:
    """A request on its way through one child, which it owns from here on. `close` must be called."""

    def __init__(self, taken: Taken, request: bytes, *, wall_s: float, config: SandboxConfig) -> None:
        self.config = config
        self.taken = taken
        self.unheard = False  # the zygote did not say how it ended
        self._server = os.getpid()
        self.ending: Ending | None = None
        self.done = False
        self.killed: EndedBy | None = None
        self._request = memoryview(request)
        self._report = bytearray()
        self._header_limit = header_limit_bytes(config)
        self._report_limit = report_limit_bytes(config)
        self._channel, self._status = taken.channel, taken.status
        self._out = Stream(taken.out, config.max_output_bytes)
        self._err = Stream(taken.err, config.max_output_bytes)
        self._flood = flood_bytes(config)
        self._wall_s = wall_s
        self._listening = False
        self._report_bytes = wire.LENGTH_BYTES
        self._killed_s = 0.0
        try:
            self._channel.setblocking(False)
            for fd in (taken.out, taken.err):
                os.set_blocking(fd, False)
            self._epoll = select.epoll()
            self._epoll.register(self._status, select.EPOLLIN)
            self._epoll.register(self._channel, select.EPOLLIN)
            self._channel_watched = True
            self.began_s = self.ended_s = time.monotonic()
            self._limit_s = self._act_at_s = self.began_s + wall_s + _BACKSTOP_S
            self._send()
            if self._request:
                self._listen()
        except BaseException:
            taken.drop()
            raise
        self._pid = self._host_pid()  # while the child begins

    def fileno(self) -> int:
        """Readable when `advance` has something to do."""
        return self._epoll.fileno()

    def patience_s(self) -> float:
        """How long to wait for `fileno` before `advance` should look at the clock."""
        act_at_s = self._act_at_s if self._listening else min(self._act_at_s, self.began_s + _QUIET_S)
        return max(0.0, act_at_s - time.monotonic())

    def _host_pid(self) -> int:
        return pid_of(self.taken.pidfd)

    def advance(self) -> None:
        """Take in whatever is there. Sets `done` when the call is over."""
        ready = self._epoll.poll(0)
        for fd, _ in ready:
            if fd == self._channel.fileno():
                self._send()
                self._receive()
            elif fd == self._status.fileno():
                self._hear()
            elif fd == self.taken.pidfd:
                self._lose()
            else:
                stream = self._out if fd == self.taken.out else self._err
                stream.drain()
                if not stream.open:
                    self._epoll.unregister(fd)
                if stream.kept.dropped_bytes > self._flood and not self.killed:
                    self.kill(EndedBy.OUTPUT)
        now = time.monotonic()
        if not self._listening and now >= self.began_s + _QUIET_S:
            self._listen()
        if self.ending is None and now >= self._act_at_s:
            self._overdue()
        if self.ending is not None:
            self._drain_rest()
            self.done = True

    def _listen(self) -> None:
        """From now on wake up for output too, and to send what is left."""
        self._listening = True
        for fd in (self.taken.out, self.taken.err):
            self._epoll.register(fd, select.EPOLLIN)
        if self._request and self._channel_watched:
            self._epoll.modify(self._channel, select.EPOLLIN | select.EPOLLOUT)

    def kill(self, why: EndedBy) -> None:
        """End every process of the call now; `advance` hears of it."""
        if self.killed is None:
            self.killed = why
            self._killed_s = time.monotonic()
            self._act_at_s = self._killed_s + _WORD_S
        self._end_processes()

    def _end_processes(self) -> None:
        try:
            signal.pidfd_send_signal(self.taken.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Close every descriptor. A child that still runs is ended first, which takes milliseconds."""
        if os.getpid() == self._server:  # in a fork of the server the child is not ours
            if not self.done:
                self.kill(EndedBy.CANCELLED)
                self._wait_for_end()
            elif self.ending is not None and self.ending.status is None:
                self._leave()
        self._epoll.close()
        self.taken.close()

    def _wait_for_end(self) -> None:
        has_ended(self.taken.pidfd, within_s=_WORD_S)

    def _leave(self) -> None:
        """The call is over by its report, and its processes may still be there."""
        self._end_processes()

    def result(self, level: IsolationLevel, not_enforced: tuple[str, ...]) -> SandboxResult:
        """What came of the call; it is done."""
        assert self.ending is not None
        return conclude(
            self._report,
            self.ending,
            killed=self.killed,
            config=self.config,
            wall_s=self._wall_s,
            out=self._out.kept,
            err=self._err.kept,
            duration_ms=(self.ended_s - self.began_s) * 1000,
            isolation=level,
            not_enforced=not_enforced,
        )

    def _send(self) -> None:
        if not self._request:
            return
        while self._request:
            try:
                sent = self._channel.send(self._request, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self._request = memoryview(b"")  # it ended without reading; its status will say how
                break
            self._request = self._request[sent:]
        if self._channel_watched:
            self._epoll.modify(self._channel, select.EPOLLIN)

    def _receive(self) -> None:
        for _ in range(_READS_AT_ONCE):
            try:
                data = self._channel.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                if self._channel_watched:
                    # Not just without interest: a closed channel would still wake us up, again and again.
                    self._epoll.unregister(self._channel)
                    self._channel_watched = False
                    self._act_at_s = min(self._act_at_s, time.monotonic() + _REPORT_S)
                return
            if len(self._report) < self._report_limit:
                self._report += data
            if self.ending is None and self.killed is None:
                self._end_at_report()

    def _end_at_report(self) -> None:
        """A whole report ends the call: what is left of it is ended, and nobody waits for that.

        An interpreter takes longer to go than most calls take to run. Only a success is taken at once; for
        anything else the zygote's word on the end is worth waiting for, as it is where other processes ran.
        """
        if len(self._report) < self._report_bytes:
            return
        said, _ = understood(self._report, self.config)
        if not said:
            self._report_bytes = self._expected_bytes()
            return
        self._report_bytes = self._report_limit + 1  # read once
        self.ending = self._measured_now(said)
        if self.ending is not None:
            self.ended_s = time.monotonic()
            return
        try:
            self._channel.shutdown(socket.SHUT_WR)  # it waits for that
        except OSError:
            pass  # it is gone already

    def _expected_bytes(self) -> int:
        """How long the report says that it is; beyond the limit if that makes no sense."""
        header_end = wire.LENGTH_BYTES + int.from_bytes(self._report[: wire.LENGTH_BYTES], "little")
        if len(self._report) < header_end <= wire.LENGTH_BYTES + self._header_limit:
            return header_end
        try:
            said = json.loads(self._report[wire.LENGTH_BYTES : header_end])
            lengths: list[int] = [length for _, length in said["artifacts"]]
            if len(lengths) <= self.config.max_artifacts and all(type(each) is int for each in lengths):
                return max(header_end + sum(lengths), len(self._report) + 1)
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        return self._report_limit + 1

    def _measured_now(self, said: Message) -> Ending | None:
        """What the child used so far, if it is alone and came through; `None`: wait for the zygote's word."""
        if said.get("exit_code") != 0 or said.get("exception") is not None:
            return None
        ending = measure(self._pid, self.taken.pidfd, self.taken.cpu_ns, alone=True)
        if ending is not None and self._counted_ns() - ending.cpu_ns > UNSEEN_NS:
            return None  # it had other processes, of which it left no trace
        return ending

    def _counted_ns(self) -> int:
        """CPU time of all processes of the call, the ended ones too; 0 where the kernel does not count it."""
        if self.taken.counter < 0:
            return 0
        try:
            return cgroups.used_ns(self.taken.counter) - self.taken.counted_ns
        except OSError:
            return 0  # the zygote ended, and its cgroups are gone

    def _hear(self) -> None:
        said = hear(self._status)
        self.ended_s = time.monotonic()
        if said is None:
            raise SandboxDied("the sandbox's zygote ended during the call; the code was ended with it")
        self._conclude(said)

    def _lose(self) -> None:
        """Its process ended, for a call that watches that."""

    def _conclude(self, said: Message) -> None:
        status, why = said.get("status"), said.get("why")
        self.ending = Ending(
            status=None if status is None else min(_number(status), _MAX_STATUS),
            cpu_ns=_number(said.get("cpu_ns")),
            peak_bytes=_number(said.get("peak_bytes")),
            why=why if isinstance(why, str) and why in set(EndedBy) else None,
            ooms=_number(said.get("ooms")),
            refused_forks=_number(said.get("refused_forks")),
        )

    def _overdue(self) -> None:
        """The zygote should have ended the call by now, or should have said that it is over."""
        now = time.monotonic()
        if has_ended(self.taken.pidfd):
            if self.killed is None:
                raise SandboxDied("the sandbox's zygote does not say how the call ended")
            self.unheard = True
            self.ended_s = now
            cpu_ns = memory.cpu_ns([self._pid]) - self.taken.cpu_ns
            self._conclude({"status": signal.SIGKILL, "cpu_ns": cpu_ns})
        elif self.killed is not None:
            if now >= self._killed_s + _REPORT_S:
                raise SandboxDied("the sandbox's zygote does not answer, and the code's end cannot be seen")
            self._act_at_s = self._killed_s + _REPORT_S
        elif now < self._limit_s:
            self._act_at_s = self._limit_s  # the code itself closed its end of the channel
        else:
            self.kill(EndedBy.TIME)

    def _drain_rest(self) -> None:
        """All processes of the call are gone: what they wrote is in the pipes, and nothing will follow."""
        for stream in (self._out, self._err):
            for _ in range(64):
                if not stream.open:
                    break
                before = stream.kept.total_bytes
                stream.drain()
                if stream.kept.total_bytes == before:
                    break
        before = -1
        while before != len(self._report) < self._report_limit:
            before = len(self._report)
            self._receive()


def measure(pid: int, pidfd: int, base_ns: int, *, alone: bool) -> Ending | None:
    """What the process `pid` used beyond `base_ns` of CPU time, while it still runs.

    `None` if it cannot be seen or has ended, or (with `alone`) if it has other processes or had any, whose
    part cannot be seen from here.
    """
    if not pid:
        return None
    peak = 0
    try:
        if alone:
            if _read(f"/proc/{pid}/task/{pid}/children"):
                return None
            fields = _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
            waited_for, threads = int(fields[13]) + int(fields[14]), int(fields[17])
            if waited_for or threads > 1:
                return None
        cpu_ns = time.clock_gettime_ns((~pid << 3) | 2) - base_ns  # its own clock; see clock_getcpuclockid(3)
        _, found, rest = _read(f"/proc/{pid}/status").partition(
            b"\nVmHWM:"
        )  # a process can call itself anything but a line
        if found:
            peak = int(rest.split(None, 1)[0]) * 1024
    except OSError:
        return None
    if not peak or cpu_ns <= 0 or has_ended(pidfd):
        # It goes, and has given back its memory; or it never let go of its processor, so that the kernel has
        # counted nothing yet, as one that waits for our word would; or it went, and its pid may be another's.
        return None
    return Ending(status=None, cpu_ns=cpu_ns, peak_bytes=peak, why=None, ooms=0, refused_forks=0)


def _read(path: str) -> bytes:
    """A small file of `/proc`, with three system calls instead of eight."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _PROC_BYTES)
    finally:
        os.close(fd)


def hear(status: socket.socket) -> Message | None:
    """The next packet on a status socket; `None` at its end."""
    try:
        said, fds = wire.receive(status)
    except (OSError, ValueError, RecursionError):
        return None
    for fd in fds:
        os.close(fd)
    return said if isinstance(said, dict) else None


def has_ended(pidfd: int, within_s: float = 0.0) -> bool:
    """Whether the process ended, though perhaps nobody waited for it yet."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def _number(said: object) -> int:
    """A session's init repeats some numbers that its code may have made up."""
    return said if isinstance(said, int) and 0 <= said < 2**63 else 0

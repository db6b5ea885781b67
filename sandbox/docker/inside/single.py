"""One process of code, a child of the agent: for a single call, or for a session where nothing can be rolled
back.
"""

from __future__ import annotations

import os
import socket
import time

from sandbox.docker.inside import locked, processes
from sandbox.docker.inside.worker import Worker
from sandbox.linux import memory, runner, session, walls, wire

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from typing import NoReturn

    from sandbox.linux.wire import Message

_REASON_BYTES = 4096
_STREAM_FDS = (4, 5)  # of a child for one call, until they take the places of its stdout and stderr


class Single(Worker):
    """A locked-down child that runs one call and goes with it."""

    def start(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._out, out_end = os.pipe2(os.O_CLOEXEC)
        self._err, err_end = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            self._live(theirs, (out_end, err_end))
        theirs.close()
        for fd in (out_end, err_end):
            os.close(fd)
        self.loop.watch(self._channel.fileno(), self._hear)

    def _live(self, channel: socket.socket, streams: tuple[int, int]) -> NoReturn:
        try:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            walls.only_descriptors((null, null, null, channel.detach(), *streams))
            channel = socket.socket(fileno=locked.CHANNEL_FD)
            self.wall_in(self.protected)
            for fd, number in zip(_STREAM_FDS, (1, 2), strict=True):
                os.dup2(fd, number)
                os.close(fd)
            channel.send(locked.READY)
            runner.serve_one(channel)
        except BaseException as error:
            channel.send(locked.FAILED + locked.reason(error).encode())
        os._exit(1)

    def _hear(self) -> None:
        """The child says that it is ready, or why it is not."""
        said = self._channel.recv(_REASON_BYTES)
        self.loop.forget(self._channel.fileno())
        if said == locked.READY:
            self._get_ready()
        else:
            self.fail(said[1:].decode("utf-8", "replace"))

    def _get_ready(self) -> None:
        self._base_cpu_ns = clock_ns(self.pid)
        self.say_ready()

    def open_call(self, message: Message) -> tuple[socket.socket, tuple[int, int]]:
        return self._channel, (self._out, self._err)

    def end_processes(self) -> None:
        if self.pid:
            memory.kill(self.pid)
        for pid in self.members():
            memory.kill(pid)

    def used_cpu_ns(self) -> int:
        if self.counters.counts_cpu:
            return self.cpu_ns_of_call(0)
        return memory.cpu_ns(self.members()) + self.reaped_cpu_ns - self._base_cpu_ns

    def ended(self, status: int, cpu_ns: int, peak_bytes: int) -> None:
        self.pid = 0
        processes.end_all(os.getpid(), self.reap)
        if not self.was_ready:
            self._hear()  # why it ended, if it could say so
        elif self.call is not None:
            cpu_ns = self.cpu_ns_of_call(self.reaped_cpu_ns - self._base_cpu_ns)
            self.tell_end(status, cpu_ns=cpu_ns, peak_bytes=peak_bytes, state="lost")
            self.is_over = True
        elif status == 0 and self.setup["session"]:
            self.is_over = True  # it was not used for long
        else:
            self.fail("the process that waited for a call ended")  # such as by the kernel, for its memory


class InPlace(Single):
    """One process for all calls of a session, which goes with the first that is ended."""

    def start(self) -> None:
        unused, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._calls, calls_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self._live_in_place(theirs, calls_end)
        for sock in (unused, theirs, calls_end):
            sock.close()
        self._calls.setblocking(False)
        self.loop.watch(self._calls.fileno(), self._hear)

    def _live_in_place(self, channel: socket.socket, calls: socket.socket) -> NoReturn:
        try:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            walls.only_descriptors((null, null, null, channel.detach(), calls.detach()))
            channel, calls = (socket.socket(fileno=fd) for fd in (locked.CHANNEL_FD, locked.CALLS_FD))
            self.wall_in(self.protected)
            session.serve_in_place(channel, calls, self.setup["session_idle_s"])
        except BaseException as error:
            wire.send(calls, {"failed": locked.reason(error)})
        os._exit(1)

    def _hear(self) -> None:
        said = hear(self._calls)
        if not said and not self.was_ready:
            self.fail("")
            return
        if said is None:
            self.loop.forget(self._calls.fileno())
            return
        if "failed" in said and not self.was_ready:
            self.fail(str(said["failed"]))
            return
        if not said.get("ready"):
            return
        if self.call is not None:
            processes.end_all(os.getpid(), self.reap, spared=frozenset({self.pid}))
            cpu_ns = self.cpu_ns_of_call(clock_ns(self.pid) + self.reaped_cpu_ns - self._base_cpu_ns)
            self.tell_end(None, cpu_ns=cpu_ns, peak_bytes=session.peak_bytes(self.pid), state="kept")
        if not self.is_over:
            self._get_ready()

    def open_call(self, message: Message) -> tuple[socket.socket, tuple[int, int]]:
        channel, streams, theirs = new_streams()
        send_call(self._calls, message["call"], theirs)
        return channel, streams


def new_streams() -> tuple[socket.socket, tuple[int, int], tuple[int, int, int]]:
    """Our ends and theirs of a call's channel and streams."""
    channel, theirs = socket.socketpair()
    out, out_end = os.pipe2(os.O_CLOEXEC)
    err, err_end = os.pipe2(os.O_CLOEXEC)
    return channel, (out, err), (theirs.detach(), out_end, err_end)


def send_call(calls: socket.socket, number: int, theirs: tuple[int, int, int]) -> None:
    """Hand a call's streams to the process that waits."""
    try:
        wire.send(calls, {"call": number}, theirs)
    except OSError:
        pass  # it ended; that is heard elsewhere
    for fd in theirs:
        os.close(fd)


def hear(sock: socket.socket) -> Message | None:
    """What a process says that code may speak for; `{}` if it makes no sense, `None` at the end."""
    try:
        said, fds = wire.receive(sock)
    except BlockingIOError:
        return {}
    except OSError:
        return None
    except (ValueError, RecursionError):
        return {}
    for fd in fds:
        os.close(fd)
    return said if isinstance(said, dict) or said is None else {}


def clock_ns(pid: int) -> int:
    """CPU time of one process alone, without those that it started."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)  # what clock_getcpuclockid(3) computes
    except OSError:
        return 0

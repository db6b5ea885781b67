"""What is the same for every way to run a call: its limits, and how its end is told."""

from __future__ import annotations

import os
import signal
import socket
import time

from sandbox.docker.inside import locked, processes
from sandbox.docker.inside.call import Call
from sandbox.linux import memory, wire

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.docker.inside.counters import Counters
    from sandbox.docker.inside.link import Link, Loop
    from sandbox.linux.wire import Message

_LOOK_S = 0.02  # between two looks at the memory and CPU time of a running call
_OOM_LOOK_S = 0.05  # between two looks at whether the kernel ended a process of it
_AGAIN_S = 1.0  # after which processes that were to end are ended by stronger means
_REPORT_HEADER_BYTES = 256 * 1024
_REPORT_BYTES_PER_FILE = 16 * 1024


class Worker:
    """Runs calls in processes, one call at a time."""

    grace_s = 0.0  # after its time limit until this process acts, where somebody else should have before

    def __init__(
        self,
        loop: Loop,
        link: Link,
        setup: Message,
        counters: Counters,
        protected: tuple[int, ...],
        reap: Callable[[], None],
    ) -> None:
        self.loop, self.link, self.setup, self.counters = loop, link, setup, counters
        self.protected = protected
        self.limits: dict[str, int] = setup["limits"]
        self.reap = reap  # takes the word of every process that ended
        self.pid = 0
        self.was_ready = False
        self.is_over = False  # nothing more can run here
        self.exit_status = 0
        self.call: Call | None = None
        self.next_number = 1
        self.why: str | None = None
        self.killed_s: float | None = None
        self.reaped_cpu_ns = 0
        self.counted_before_ns = 0  # by the cgroup, without this process, when the call began
        self.base_rss = memory.anonymous_bytes(os.getpid())
        self._deadline_s = self._look_s = 0.0
        self._looks_s = _OOM_LOOK_S if self._holds_all() and not self.limits["cpu_ns"] else _LOOK_S

    def start(self) -> None:
        """Fork the process that waits for the first call."""
        raise NotImplementedError

    def open_call(self, message: Message) -> tuple[socket.socket, tuple[int, int]]:
        """Hand a call to the process that waits; our ends of its channel and streams."""
        raise NotImplementedError

    def end_processes(self) -> None:
        """End those of the call, as well as it can be done from here."""
        raise NotImplementedError

    def used_cpu_ns(self) -> int:
        """CPU time of everything that the call ran so far."""
        raise NotImplementedError

    def ended(self, status: int, cpu_ns: int, peak_bytes: int) -> None:
        """The process that `start` made ended."""
        raise NotImplementedError

    def wall_in(self, protected: tuple[int, ...]) -> None:
        """Lock down the calling process, which is no more than that of a call from here on."""
        locked.enter(
            self.setup,
            limits_memory=self.counters.limits_memory,
            limits_processes=self.counters.limits_processes,
            protected=protected,
        )

    def begin(self, message: Message, blobs: list[bytes]) -> None:
        """Start a call.

        Raises:
            ValueError: Nobody waits for it.
        """
        if self.call is not None or message["call"] != self.next_number or self.is_over:
            raise ValueError(f"a call {message['call']} when call {self.next_number} was to come")
        self.next_number += 1
        self.why, self.killed_s, self.reaped_cpu_ns = None, None, 0
        self.counters.reset()
        self.counted_before_ns = self.counted_ns()
        files, most = int(message["max_files"]), int(message["max_bytes"])
        now_s = time.monotonic()
        self._deadline_s = now_s + float(message["wall_s"]) + self.grace_s
        self._look_s = now_s + self._looks_s
        channel, streams = self.open_call(message)
        self.call = Call(
            self.loop,
            self.link,
            message,
            blobs,
            channel,
            streams,
            output_bytes=self.setup["max_output_bytes"],
            report_bytes=wire.LENGTH_BYTES + _REPORT_HEADER_BYTES + files * _REPORT_BYTES_PER_FILE + most,
        )

    def say_ready(self) -> None:
        """A process waits for the next call."""
        self.was_ready = True
        self.link.send({"ready": self.next_number})

    def fail(self, reason: str) -> None:
        """Nothing can run here, or not any more."""
        if self.is_over:
            return
        self.link.send({"failed": reason or "a process ended before it was ready"})
        self.is_over, self.exit_status = True, 1

    def kill(self, why: str | None) -> None:
        """End the call. The first reason counts."""
        if self.call is None or self.killed_s is not None:
            return
        self.why = why
        self.killed_s = time.monotonic()
        self._deadline_s = min(self._deadline_s, self.killed_s + _AGAIN_S)
        self.end_processes()

    def patience_s(self) -> float | None:
        """How long until `tick` has something to do; `None`: for ever."""
        if self.call is None:
            return None
        return min(self._deadline_s, self._look_s) - time.monotonic()

    def tick(self) -> None:
        """Look at the clock and at what the call uses."""
        if self.call is None:
            return
        self.call.set_watched(not self.link.is_full)
        now_s = time.monotonic()
        if now_s >= self._deadline_s:
            self._deadline_s = now_s + _AGAIN_S
            if self.killed_s is None:
                self.kill("time")
            else:
                self.end_processes()
        elif self.call.is_flood:
            self.kill("output")
        elif now_s >= self._look_s:
            self._look_s = now_s + self._looks_s
            if self.killed_s is None:
                self._look()

    def tell_end(
        self, status: int | None, *, cpu_ns: int, peak_bytes: int, state: str, by_signal: int | None = None
    ) -> None:
        """The call is over: pass on what is left of it, and say how it ended."""
        assert self.call is not None
        call, self.call = self.call, None
        call.drain()
        call.close()
        code = exit_code(status) if status is not None else None
        self.link.send(
            {
                "ended": call.number,
                "exit": code if code is not None and code >= 0 else None,
                "signal": -code if code is not None and code < 0 else by_signal,
                "why": self.why,
                "cpu_ns": max(cpu_ns, 0),
                "peak_bytes": max(peak_bytes, 0),
                "ooms": self.counters.ooms(),
                "refused_forks": self.counters.refused_forks(),
                "dropped": call.dropped,
                "state": state,
            }
        )

    def own_cpu_ns(self) -> int:
        """CPU time of the processes that no code runs in."""
        return time.process_time_ns()

    def counted_ns(self) -> int:
        """CPU time of all code in the container so far; 0 where the cgroup does not say.

        It has what processes of a call used whom nobody waited for, which is nowhere else once they ended.
        """
        if not self.counters.counts_cpu:
            return 0
        own_ns = self.own_cpu_ns()  # first, and so that the kernel counts this process up to now
        return self.counters.cpu_ns() - own_ns

    def cpu_ns_of_call(self, otherwise_ns: int) -> int:
        """CPU time of everything that the call ran so far, by the cgroup, or `otherwise_ns`."""
        if not self.counters.counts_cpu:
            return otherwise_ns
        return max(self.counted_ns() - self.counted_before_ns, 0)

    def _holds_all(self) -> bool:
        return self.counters.limits_memory and self.counters.limits_processes

    def _look(self) -> None:
        if self.counters.ooms():
            self.kill("memory")  # others of the call may wait for what the kernel ended
            return
        if self.limits["cpu_ns"] and self.used_cpu_ns() > self.limits["cpu_ns"]:
            self.kill("cpu")
            return
        if self._holds_all():
            return
        members = self.members()
        if not self.counters.limits_processes and memory.tasks(members) > self.limits["processes"]:
            self.kill("processes")
        elif not self.counters.limits_memory and self._is_too_large(members):
            self.kill("memory")

    def members(self) -> list[int]:
        """The processes of the call."""
        return processes.descendants(os.getpid())[0]

    def _is_too_large(self, members: list[int]) -> bool:
        limit = self.limits["memory_bytes"] + self.base_rss
        if sum(map(memory.anonymous_bytes, members)) <= limit:
            return False
        return sum(map(memory.share_bytes, members)) > limit


def exit_code(status: int) -> int:
    """As `os.waitstatus_to_exitcode`; a session's code may have made the status up."""
    try:
        return os.waitstatus_to_exitcode(status)
    except (ValueError, OverflowError):
        return -int(signal.SIGKILL)

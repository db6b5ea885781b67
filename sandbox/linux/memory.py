"""What the processes of a call use, read from `/proc`: for hosts where no cgroup can hold them together."""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Iterable

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file backs, shared memory included; 0 when it is gone."""
    total = 0
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    total += int(line.split()[1]) * 1024
    except OSError:
        return 0
    return total


def share_bytes(pid: int) -> int:
    """Like `anonymous_bytes`, but of pages that processes share only this one's part. Slower."""
    total = 0
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith((b"Pss_Anon:", b"Pss_Shmem:")):
                    total += int(line.split()[1]) * 1024
    except OSError:
        return 0
    return total


def trees(roots: set[int], *, by_session: bool) -> dict[int, list[int]]:
    """For each of `roots`, itself and what comes from it: its descendants, or all of its session."""
    parents: dict[int, int] = {}
    members: dict[int, list[int]] = {root: [root] for root in roots}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in roots:
            continue
        fields = stat(int(name))
        if fields is None:
            continue
        if by_session:
            if (session := int(fields[3])) in members:
                members[session].append(int(name))
        else:
            parents[int(name)] = int(fields[1])
    for pid in parents:
        above = pid
        while above in parents:
            above = parents[above]
        if above in members:
            members[above].append(pid)
    return members


def tasks(pids: list[int]) -> int:
    """Their threads, as the kernel counts processes."""
    return sum(int(fields[17]) for fields in map(stat, pids) if fields is not None)


def cpu_ns(pids: list[int]) -> int:
    """CPU time of living processes and of the children they waited for."""
    total = 0
    for pid in pids:
        fields = stat(pid)
        if fields is not None:
            total += sum(int(ticks) for ticks in fields[11:15]) * TICK_NS
    return total


def clock_ns(pid: int) -> int:
    """CPU time of a process and its threads, without its children; 0 when it is gone."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)  # what clock_getcpuclockid(3) computes
    except OSError:
        return 0


class Tally:
    """CPU time of processes that come and go: of each that is gone, what it had used when it was last seen.

    So it misses what was never seen, and what ended ones used after the last look.
    """

    def __init__(self) -> None:
        self.total_ns = 0
        self._gone_ns = 0
        self._last: dict[int, int] = {}

    def look(self, pids: Iterable[int]) -> int:
        """Take in those that live; returns what all of them used, those included that were seen before."""
        used = {pid: clock_ns(pid) for pid in pids}
        # One whose clock went back is another process with the same pid.
        self._gone_ns += sum(before for pid, before in self._last.items() if used.get(pid, 0) < before)
        self._last = used
        self.total_ns = self._gone_ns + sum(used.values())
        return self.total_ns


def kill(pid: int) -> None:
    """End a process that may just have ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_session(leader: int) -> None:
    """End every process of a call at L3: none can leave the process group, so one signal reaches all."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


def stat(pid: int) -> list[bytes] | None:
    """The fields after the name: state, parent, group, session, …"""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].split()
    except OSError:
        return None

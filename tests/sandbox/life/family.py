"""The processes of a sandbox as the host sees them, and what else of it the host may keep."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = b"launcher.main("
LOOK_S = 0.005


def eventually(check: Callable[[], object], within_s: float = 5.0) -> bool:
    """Whether `check` comes true in time; the kernel has no event for most of what is asked here."""
    end_s = time.monotonic() + within_s
    while not check():
        if time.monotonic() > end_s:
            return False
        time.sleep(LOOK_S)
    return True


def stat_of(pid: int) -> list[str]:
    """State, parent, group, session, … of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def living() -> dict[int, tuple[int, int]]:
    """Parent and session of every process that has not ended."""
    found = {}
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        fields = stat_of(pid)
        if fields and fields[0] not in "ZX":
            found[pid] = (int(fields[1]), int(fields[3]))
    return found


def children_of(pid: int) -> list[int]:
    return [each for each, (parent, _) in living().items() if parent == pid]


def descendants_of(pid: int) -> list[int]:
    processes = living()
    found = [pid]
    for above in found:
        found += [each for each, (parent, _) in processes.items() if parent == above]
    return found[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Zygote:
    """The processes of one zygote, by their pids on the host."""

    launcher: int
    reaper: int
    pid: int

    @property
    def is_gone(self) -> bool:
        return not {self.launcher, self.reaper, self.pid} & living().keys()

    def children(self) -> list[int]:
        return children_of(self.pid)


def launchers_of(server: int) -> list[int]:
    found = []
    for pid in children_of(server):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if LAUNCHER in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def zygotes_of(server: int | None = None) -> list[Zygote]:
    """Those of `server`, this process by default, that are ready to fork, the oldest first.

    Below the launcher there is a process that waits, then the reaper, then the zygote; at level 2 the first
    two are one.
    """
    found = []
    for launcher in sorted(launchers_of(server or os.getpid())):
        line = [launcher]
        while len(below := children_of(line[-1])) == 1 and len(line) < 4:
            line += below
        if len(line) >= 3 and children_of(line[-1]):
            found.append(Zygote(launcher=launcher, reaper=line[-2], pid=line[-1]))
    return found


def the_zygote(server: int | None = None) -> Zygote:
    """The only one; waits for it."""
    assert eventually(lambda: len(zygotes_of(server)) == 1 and len(launchers_of(server or os.getpid())) == 1)
    return zygotes_of(server)[0]


class Traces:
    """All processes of a server and what it keeps on the host, seen now and looked for again later."""

    def __init__(self, server: int) -> None:
        self.server = server
        processes = living()
        self.pids = descendants_of(server)
        self._sessions = {processes[pid][1] for pid in self.pids if pid in processes}
        self._sessions.discard(os.getsid(0))
        self._pidfds = {}
        for pid in [server, *self.pids]:
            with contextlib.suppress(ProcessLookupError):
                self._pidfds[pid] = os.pidfd_open(pid)
        self._launchers = launchers_of(server)
        self._mounts = mounts()

    def kill_server(self) -> None:
        signal.pidfd_send_signal(self._pidfds[self.server], signal.SIGKILL)

    def left(self) -> list[str]:
        """What is there of it, in words."""
        ended = set(select.select(self._pidfds.values(), [], [], 0)[0])
        pids = {pid for pid, fd in self._pidfds.items() if fd not in ended and pid != self.server}
        pids |= {pid for pid, (_, session) in living().items() if session in self._sessions}
        found = [f"process {pid}" for pid in sorted(pids)]
        found += [str(path) for path in Path("/tmp").glob(f"mcp-sandbox-{self.server}-*")]
        for launcher in self._launchers:
            found += [str(path) for path in cgroups_of(launcher)]
        found += sorted(mounts() - self._mounts)
        return found

    def close(self) -> None:
        for fd in self._pidfds.values():
            os.close(fd)


@contextlib.contextmanager
def traces(server: int) -> Iterator[Traces]:
    seen = Traces(server)
    try:
        yield seen
    finally:
        seen.close()


def cgroups_of(launcher: int) -> list[Path]:
    root = Path("/sys/fs/cgroup")
    found = []
    for folder, folders, _ in os.walk(root):
        found += [Path(folder, name) for name in folders if name.startswith(f"mcp-sandbox-{launcher}-")]
    return found


def mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def resident_bytes(pid: int | None = None) -> int:
    """Memory of the process that no file backs."""
    for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))

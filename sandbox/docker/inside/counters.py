"""What the container's cgroup counts, where that can be read from inside: version 2, 1, or not at all."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT = "/sys/fs/cgroup"
_UNLIMITED = 1 << 50  # version 1 says "no limit" with a number


class Counters:
    """Out-of-memory ends and refused forks since `reset`, CPU time, and which limits the container has."""

    def __init__(self, root: str = _ROOT) -> None:
        if os.path.exists(f"{root}/cgroup.controllers"):
            self.version = 2
            memory = pids = root
            limit_names: Sequence[str] = ("memory.max", "memory.events")
        elif os.path.exists(f"{root}/memory/memory.oom_control"):
            self.version = 1
            memory, pids = f"{root}/memory", f"{root}/pids"
            limit_names = ("memory.limit_in_bytes", "memory.oom_control")
        else:
            self.version = 0
            memory = pids = ""
            limit_names = ("", "")
        self.limits_memory = _limit(f"{memory}/{limit_names[0]}") < _UNLIMITED
        self.limits_processes = _limit(f"{pids}/pids.max") < _UNLIMITED
        self._cpu_file = self._find_cpu(root) if self.limits_memory and self.limits_processes else ""
        self._ooms_file = f"{memory}/{limit_names[1]}"
        self._forks_file = f"{pids}/pids.events"
        self._ooms_before = self._forks_before = 0
        self.reset()

    def reset(self) -> None:
        """A call begins."""
        self._ooms_before = _count(self._ooms_file, "oom_kill")
        self._forks_before = _count(self._forks_file, "max")

    @property
    def counts_cpu(self) -> bool:
        """Whether `cpu_ns` is that of the container: with limits of its own the cgroup is no other's."""
        return bool(self._cpu_file)

    def cpu_ns(self) -> int:
        """CPU time of all processes that the container ever had, also of those that nobody waited for."""
        if self.version == 2:
            return _count(self._cpu_file, "usage_usec") * 1000
        return _number(self._cpu_file)

    def _find_cpu(self, root: str) -> str:
        """The file that counts it; `""` if none can be read."""
        if self.version == 2:
            path = f"{root}/cpu.stat"
            return path if _count(path, "usage_usec") else ""
        paths = (f"{root}/{name}/cpuacct.usage" for name in ("cpuacct", "cpu,cpuacct", "cpuacct,cpu"))
        return next((path for path in paths if _number(path)), "")

    def ooms(self) -> int:
        """Processes that the kernel ended for the container's memory since `reset`."""
        if not self.limits_memory:
            return 0
        return max(0, _count(self._ooms_file, "oom_kill") - self._ooms_before)

    def refused_forks(self) -> int:
        """Processes and threads that were over the container's limit since `reset`."""
        if not self.limits_processes:
            return 0
        return max(0, _count(self._forks_file, "max") - self._forks_before)


def _limit(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
        return int(text) if text != "max" else _UNLIMITED
    except (OSError, ValueError):
        return _UNLIMITED


def _number(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _count(path: str, name: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                word, _, number = line.partition(" ")
                if word == name:
                    return int(number)
    except (OSError, ValueError):
        pass
    return 0

"""What a subject costs beyond time: CPU of everything it starts, memory of a process that waits."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

REMOVE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuGroup:
    """A cgroup that counts the CPU time of what is in it, with all descendants and those that already ended.

    Args:
        folder: Where it is mounted.
        path: Its path in the hierarchy, as `docker run --cgroup-parent` wants it.
    """

    folder: Path
    path: str

    @classmethod
    def make(cls, name: str) -> CpuGroup | None:
        """Make one inside our own cgroup, in version 1 or 2; `None` where we may not."""
        found = _own_cgroup()
        if found is None:
            return None
        mount, path = found
        group = cls(folder=mount / path.lstrip("/") / name, path=f"{path.rstrip('/')}/{name}")
        try:
            group.folder.mkdir()
            group.used_s()
        except OSError:
            return None
        return group

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def used_s(self) -> float:
        """CPU seconds so far, user and system."""
        usage = self.folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        lines = (self.folder / "cpu.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("usage_usec")) / 1e6

    def remove(self) -> None:
        """Remove it and what was made inside it, in every hierarchy: an engine makes its cgroups in all.

        What refuses for longer than a moment stays.
        """
        deadline = time.monotonic() + REMOVE_S
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        folders = [Path(mount + self.path) for _, mount, kind, *_ in mounts if kind.startswith("cgroup")]
        while any(folder.exists() for folder in folders) and time.monotonic() < deadline:
            for top in folders:
                for folder, _, _ in os.walk(top, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(folder).rmdir()
            time.sleep(0.02)


def _own_cgroup() -> tuple[Path, str] | None:
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    if "cpuacct" in paths:
        for _, mount, kind, options, *_ in mounts:
            if kind == "cgroup" and "cpuacct" in options.split(","):
                return Path(mount), paths["cpuacct"]
    for _, mount, kind, *_ in mounts:
        if kind == "cgroup2" and "" in paths:
            return Path(mount), paths[""]
    return None


def descendants(pid: int) -> dict[int, int]:
    """Every process below `pid`, with its parent."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{name}/stat").read_text()
                parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    found: dict[int, int] = {}
    level = {pid}
    while level:
        below = {child: parent for child, parent in parents.items() if parent in level}
        found.update(below)
        level = set(below)
    return found


def leaves(pid: int) -> list[int]:
    """Processes below `pid` that have none below themselves; looks at no others, so it is quick."""
    found: list[int] = []
    for task in _listed(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += leaves(int(child)) or [int(child)]
    return found


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def is_filtered_and_asleep(pid: int) -> bool:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        about = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        return about["Seccomp"] == "2" and about["State"].startswith("S")
    return False


def pss_mib(pid: int) -> float:
    """Memory of a process, where a page that n processes share counts one n-th."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

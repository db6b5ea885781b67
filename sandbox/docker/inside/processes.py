"""The processes of a call, found by who their parents are: the caller of these functions is, or stands for,
the one that orphans go to.
"""

from __future__ import annotations

import os
import select
import signal
import time

from sandbox.linux import memory

_PROC = "/proc"
_SWEEP_S = 2.0
_BETWEEN_LOOKS_S = 0.001


def descendants(root: int, *, spared: frozenset[int] = frozenset()) -> tuple[list[int], bool]:
    """Living processes that come from `root`, without it; and whether the look was a calm one.

    While processes begin and end one can hide between two looks, so "none" counts only if it was calm.
    """
    parents: dict[int, int] = {}
    ended: set[int] = set()
    is_calm = True
    for name in os.listdir(_PROC):
        if not name.isdigit():
            continue
        fields = memory.stat(int(name))
        if fields is None:
            is_calm = False
            continue
        parents[int(name)] = int(fields[1])
        if fields[0] in b"ZX":
            ended.add(int(name))
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found, waiting = [], [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            waiting.append(pid)
            if pid in ended:
                is_calm = is_calm and parents[pid] != root  # what it left behind may have come to us since
            elif pid not in spared:
                found.append(pid)
    return found, is_calm


def end_all(root: int, reap: object = None, *, spared: frozenset[int] = frozenset()) -> bool:
    """End all that comes from `root`, however fast it forks; false if some were still there in the end."""
    deadline_s = time.monotonic() + _SWEEP_S
    while True:
        found, is_calm = descendants(root, spared=spared)
        for pid in found:
            memory.kill(pid)
        if callable(reap):
            reap()
        if not found and is_calm:
            return True
        if time.monotonic() >= deadline_s:
            return False
        if found:
            time.sleep(_BETWEEN_LOOKS_S)


def has_pidfds() -> bool:
    """Whether this kernel can follow a process by a descriptor, and signal it so."""
    try:
        pidfd = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(pidfd, 0)
            select.select([pidfd], [], [], 0)
        finally:
            os.close(pidfd)
    except (AttributeError, OSError):
        return False
    return True

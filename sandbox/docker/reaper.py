"""Whose a container is, and removing those that nobody will miss: ours, and those of servers that ended."""

from __future__ import annotations

import functools
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sandbox.docker.engine import Engine

logger = logging.getLogger(__name__)

LABEL = "mcp-tools.sandbox"
INSTANCE = f"{LABEL}.instance"
OWNER = f"{LABEL}.owner"
OWNER_START = f"{LABEL}.owner-start"
HOST = f"{LABEL}.host"
_LIST_S = 5.0
_REAP_S = 4.0  # then the rest is left to the next time
_OVERDUE_S = 10.0  # for an engine that says it is removing a container
_TOLD = math.inf
_NO_SUCH_PROCESS = 87  # ERROR_INVALID_PARAMETER


def labels(instance: str) -> dict[str, str]:
    """What each container of the sandbox `instance` of this process carries."""
    return {
        LABEL: "1",
        INSTANCE: instance,
        OWNER: str(os.getpid()),
        OWNER_START: _start_of(os.getpid()) or "",
        HOST: host(),
    }


def reap(
    engine: Engine,
    instance: str,
    known: Callable[[], Collection[str]],
    tried: dict[str, float] | None = None,
) -> list[str]:
    """Remove containers of servers that are gone, and those of `instance` that it does not know.

    What the engine does not remove is asked for again each time; once for each container that is logged.

    Args:
        known: Returns the names of containers that are in use, or are being made or ended. Called after the
            engine said what there is: a container is known before it exists.
        tried: Kept from one time to the next: since when each is tried in vain.

    Returns:
        The names of those that were removed, or that the engine says it is removing.

    Raises:
        EngineFault: The engine does not say what there is.
    """
    tried = {} if tried is None else tried
    found = engine.ask("containers", all=True, filters={"label": [f"{LABEL}=1"]}, within_s=_LIST_S)
    in_use = known()
    left: dict[str, str] = {}
    for each in found if isinstance(found, list) else ():
        name = name_of(each)
        said = each.get("Labels") or {}
        if name not in in_use if said.get(INSTANCE) == instance else owner_is_gone(said):
            left[name] = str(each.get("Id") or name)
    for name in set(tried) - set(left):
        del tried[name]
    began_s, removed = time.monotonic(), []
    for name in sorted(left, key=lambda name: tried.get(name, 0.0)):  # so none waits behind those that hang
        if time.monotonic() - began_s > _REAP_S:
            break
        is_new, since_s = name not in tried, tried.setdefault(name, time.monotonic())
        if is_going := engine.remove(left[name]):
            removed.append(name)
            if is_new:
                logger.info("removed the container %s, whose server is gone", name)
        if since_s < _TOLD and (not is_going or time.monotonic() - since_s > _OVERDUE_S):
            tried[name] = _TOLD
            logger.warning("the container %s could not be removed; it is tried again", name)
    return removed


def name_of(listed: Mapping[str, Any]) -> str:
    """The name of a container, as an engine lists it."""
    return str((listed.get("Names") or [listed.get("Id", "")])[0]).lstrip("/")


def owner_is_gone(said: Mapping[str, Any]) -> bool:
    """Whether the labels name a server that certainly does not run any more.

    Only for one whose processes we would see: same machine, same start of it, same pid namespace.
    """
    if said.get(HOST) != host() or not str(said.get(OWNER, "")).isdigit() or not said.get(OWNER_START):
        return False
    started = _start_of(int(said[OWNER]))
    return started is None or started not in {"", said[OWNER_START]}


@functools.cache
def host() -> str:
    """This machine since it was started, and who can see its processes by their ids."""
    if sys.platform == "linux":
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    if sys.platform == "darwin":
        return _said_by("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
    import uuid

    return f"{uuid.getnode():x}"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=host.cache_clear)  # it may be in another pid namespace


def _start_of(pid: int) -> str | None:
    """When a process started, in whatever the system counts; `None` if there certainly is no such process,
    `""` if that cannot be told.
    """
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
        except OSError:
            return "" if _may_be_there(pid) else None
        return None if fields[0] in {b"Z", b"X"} else fields[19].decode()
    if sys.platform == "win32":
        return _windows_start_of(pid)
    return _said_by("/bin/ps", "-o", "lstart=", "-p", str(pid)) or ("" if _may_be_there(pid) else None)


def _may_be_there(pid: int) -> bool:
    """A `/proc` mounted with `hidepid` shows no processes of others; whether they can be signalled tells."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _said_by(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, timeout=5, check=False)  # noqa: S603 - of the system
    return " ".join(done.stdout.decode("utf-8", "replace").split())


def _windows_start_of(pid: int) -> str | None:
    import ctypes

    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - only there
    handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return None if kernel.GetLastError() == _NO_SUCH_PROCESS else ""
    try:
        created, *others = (ctypes.c_ulonglong() for _ in range(4))
        if not kernel.GetProcessTimes(handle, *map(ctypes.byref, (created, *others))):
            return ""
        return str(created.value)
    finally:
        kernel.CloseHandle(handle)

"""Temp files of ours: how they are named, locked, and recognised when a killed server left one."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from typing import Final

_NAME: Final = re.compile(r"\.mcp-tools-[0-9a-f]{16}\.tmp")

MIN_AGE_S: Final = 60.0
"""A younger one is left alone: its writer may be between creating and locking it."""


def temporary_name() -> str:
    """Return a fresh name that `is_temporary_name` recognises."""
    return f".mcp-tools-{secrets.token_hex(8)}.tmp"


def is_temporary_name(name: str) -> bool:
    """Whether this is a name that only we give."""
    return _NAME.fullmatch(name) is not None


def create_temporary(folder_fd: int, mode: int) -> tuple[str, int]:
    """Create a temp file that did not exist, locked for as long as its descriptor is open.

    The lock, not a process id, says that its writer lives: it also holds between containers, whose
    process ids mean nothing to each other.
    """
    name = temporary_name()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, mode, dir_fd=folder_fd)
    import fcntl  # here, so that native Windows can import us and be told what to do

    with contextlib.suppress(OSError):  # a file system without locks: its age protects it
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return name, fd


def remove_if_abandoned(folder_fd: int, name: str, *, min_age_s: float = MIN_AGE_S) -> bool:
    """Remove a temp file whose writer is gone. Returns whether it was removed."""
    if not is_temporary_name(name):
        return False
    import fcntl

    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        # ctime, not mtime: an exchange leaves the old file, with its old mtime, under the temp name.
        age_s = time.time() - status.st_ctime
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or age_s < min_age_s:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        now = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        if (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino):
            return False
        os.unlink(name, dir_fd=folder_fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True

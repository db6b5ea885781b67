"""A folder for files of this process alone, which goes when the process does."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import tempfile
import threading
import time
import weakref
from typing import BinaryIO, Final

MIN_AGE_S: Final = 60.0
"""A younger folder is left alone: its process may be between making and locking it."""

_PREFIX: Final = "mcp-tools-output-"
_NAME: Final = re.compile(rf"{_PREFIX}[0-9a-f]{{16}}")


class PrivateFolder:
    """Made at the first file: mode 0700, its files 0600, its name random.

    Args:
        parent: An existing folder. None: the system's for temporary files.

    It is locked for as long as its process lives, so that `sweep` can tell folders of the living from others,
    also where process ids mean nothing. Safe to use from threads.
    """

    def __init__(self, parent: str | None = None) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._end: weakref.finalize[..., PrivateFolder] | None = None
        self._is_closed = False

    def create(self, name: str) -> BinaryIO:
        """Open a new file to write.

        Raises:
            OSError: The disk refuses, or the folder is closed.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._lock:
            try:
                fd = os.open(name, flags, 0o600, dir_fd=self._opened())
            except FileNotFoundError:
                # Somebody cleaned up the system's temporary files.
                self._leave()
                fd = os.open(name, flags, 0o600, dir_fd=self._opened())
        return os.fdopen(fd, "wb")

    def open(self, name: str) -> BinaryIO:
        """Open a file to read.

        Raises:
            FileNotFoundError: There is none of that name.
        """
        with self._lock:
            if self._fd is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        return os.fdopen(fd, "rb")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Whoever reads it can go on."""
        with self._lock, contextlib.suppress(OSError):
            if self._fd is not None:
                os.unlink(name, dir_fd=self._fd)

    def close(self) -> None:
        """Remove the folder with everything in it. No file can be made any more."""
        with self._lock:
            self._is_closed = True
            self._leave()

    def sweep(self, *, min_age_s: float = MIN_AGE_S) -> int:
        """Remove folders beside ours whose processes are gone. Returns how many."""
        parent = self._parent or tempfile.gettempdir()
        try:
            names = [name for name in os.listdir(parent) if _NAME.fullmatch(name)]
        except OSError:
            return 0
        return sum(_remove_if_abandoned(os.path.join(parent, name), min_age_s) for name in names)

    def _opened(self) -> int:
        """With the lock held."""
        if self._is_closed:
            raise OSError(errno.EBADF, "what was kept is closed already")
        if self._fd is None:
            path = os.path.join(self._parent or tempfile.gettempdir(), _PREFIX + secrets.token_hex(8))
            os.mkdir(path, 0o700)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            _try_lock(self._fd)
            # Not the same as `close`: it also runs when the interpreter ends, or nobody knows us any more.
            self._end = weakref.finalize(self, _remove_own, path, self._fd, os.getpid())
        return self._fd

    def _leave(self) -> None:
        """With the lock held."""
        if self._end is not None:
            self._end()
        self._fd = self._end = None


def _try_lock(fd: int) -> bool:
    import fcntl  # here, so that native Windows can import us

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # taken, or a file system without locks
        return False
    return True


def _remove_own(path: str, fd: int, pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked copy of ours ends
    _remove_all(path, fd)
    os.close(fd)


def _remove_if_abandoned(path: str, min_age_s: float) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        is_ours = status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077 == 0
        if not is_ours or time.time() - status.st_mtime < min_age_s or not _try_lock(fd):
            return False
        return _remove_all(path, fd)
    finally:
        os.close(fd)


def _remove_all(path: str, fd: int) -> bool:
    """Remove the files of an open folder, which has no folders in it, and the folder."""
    with contextlib.suppress(OSError):
        for name in os.listdir(fd):
            os.unlink(name, dir_fd=fd)
        os.rmdir(path)
        return True
    return False

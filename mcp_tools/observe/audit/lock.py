"""Whose turn it is: the lock between processes, in the folder of a log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

from mcp_tools.observe.audit.folder import LOCK, Head, read_head, write_head
from mcp_tools.observe.audit.place import FILE_FLAGS, check_file, check_folders, open_folder

LOOK_EVERY_S: Final = 0.2


class FolderLock:
    """A log's folder and the lock in it, held open.

    Args:
        path: Of the log, from `place.real_path`.
        roots: Folders that tools may change; the log must not be there.
    Raises:
        Unsafe: Somebody else could change the log there.
        OSError: The disk refuses.
    """

    def __init__(self, path: str, *, roots: Sequence[str | os.PathLike[str]]) -> None:
        self._path = path
        self._roots = roots
        self._fd: int | None = None
        self._looked_s = time.monotonic()
        self._folder: int | None = open_folder(path, roots=roots)

    @property
    def folder(self) -> int:
        """The folder's descriptor."""
        assert self._folder is not None
        return self._folder

    @contextlib.contextmanager
    def held(self, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock. Yields whether the folder is the same as before.

        Args:
            wait: For the process that has it, as long as it takes.
        Raises:
            BlockingIOError: Another has it, and this was not to wait.
            Unsafe, OSError: It cannot be held.
        """
        is_same = self._same_folder()
        lock = self._take(fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield is_same
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    def read_head(self) -> Head | None:
        """Read what the last writer noted; with the lock held."""
        assert self._fd is not None
        return read_head(self._fd)

    def write_head(self, head: Head, *, durably: bool = False) -> None:
        """Note how far the log is; with the lock held."""
        assert self._fd is not None
        write_head(self._fd, head)
        if durably:
            os.fsync(self._fd)

    def close(self) -> None:
        """Let go of both. Can be called again."""
        for fd in (self._fd, self._folder):
            if fd is not None:
                os.close(fd)
        self._fd = self._folder = None

    def _same_folder(self) -> bool:
        """The folder may have been moved away, come back from a backup, or been opened to others. Looked at
        now and then."""
        if self._folder is not None:
            now_s = time.monotonic()
            if now_s - self._looked_s < LOOK_EVERY_S:
                return True
            self._looked_s = now_s
            folder = os.path.dirname(self._path)
            with contextlib.suppress(FileNotFoundError):
                if identity(os.fstat(self._folder)) == identity(os.stat(folder)):
                    check_folders(folder, "the audit log")
                    return True
            self.close()
        self._folder = open_folder(self._path, roots=self._roots)
        return False

    def _take(self, how: int) -> int:
        name = os.path.basename(self._path) + LOCK
        while True:
            if self._fd is None:
                check_file(self.folder, name, what="the lock of the audit log", shown=self._path + LOCK)
                self._fd = os.open(name, os.O_RDWR | os.O_CREAT | FILE_FLAGS, 0o600, dir_fd=self.folder)
            fcntl.flock(self._fd, how)
            # Who removes the lock file makes two of them: only the one that has the name counts.
            with contextlib.suppress(FileNotFoundError):
                if identity(os.stat(name, dir_fd=self.folder)) == identity(os.fstat(self._fd)):
                    return self._fd
            os.close(self._fd)
            self._fd = None


def identity(status: os.stat_result) -> tuple[int, int]:
    """What stays the same when a file is renamed."""
    return status.st_dev, status.st_ino

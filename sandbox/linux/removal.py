"""Deletes what code left in a folder of its own, where that does not go with a mount.

Code chose the names, the depth and the modes. So nothing here follows a link, recurses, or builds a path:
folders in folders are moved up until there are none.
"""

from __future__ import annotations

import os

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(folder: str, *, most: int | None = None) -> bool:
    """Delete `folder` with everything in it, if it is there and nothing prevents that.

    Args:
        folder: Nobody may write to it any more.
        most: Give up after so many files and folders; `None`: never.

    Returns:
        False if there were more than `most`, so that some are left.
    """
    try:
        top = os.open(folder, _FOLDER)
    except OSError:
        return True
    try:
        is_done = _Emptying(top, most).empty()
    finally:
        os.close(top)
    try:
        os.rmdir(folder)
    except OSError:
        pass
    return is_done


class _Emptying:
    def __init__(self, top: int, most: int | None) -> None:
        self.top = top
        self.most = most
        self.seen = 0
        self.names = 0
        self.steps = 0

    def empty(self) -> bool:
        """Go on as long as that leads anywhere; false if there is too much."""
        before = -1
        while before != self.steps:
            before = self.steps
            for name in self._files_away(self.top):
                self._flatten(name)
            if self.is_too_much():
                return False
        return True

    def is_too_much(self) -> bool:
        return self.most is not None and self.seen > self.most

    def _files_away(self, folder: int) -> list[str]:
        """Delete what is no folder; returns the names of the folders."""
        folders = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self.seen += 1
                if self.is_too_much():
                    break
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                    continue
                try:
                    os.unlink(entry.name, dir_fd=folder)
                    self.steps += 1
                except OSError:
                    continue
        return folders

    def _flatten(self, name: str) -> None:
        """Delete a folder at the top; the folders in it come to the top."""
        try:
            folder = _opened(name, self.top)
        except OSError:
            return
        try:
            for inner in self._files_away(folder):
                self.names += 1
                os.close(_opened(inner, folder))  # or it could not be moved
                os.rename(inner, f"{name[:16]}-{self.names}", src_dir_fd=folder, dst_dir_fd=self.top)
                self.steps += 1
            os.rmdir(name, dir_fd=self.top)
            self.steps += 1
        except OSError:
            return
        finally:
            os.close(folder)


def _opened(name: str, above: int) -> int:
    """Open a folder that code may have closed to everybody, without ever touching what a link leads to."""
    found = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        path = f"/proc/self/fd/{found}"
        if os.fstat(found).st_mode & 0o700 != 0o700:
            os.chmod(path, 0o700)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(found)

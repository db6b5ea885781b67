"""Going through a folder and what is below it, bounded in time, names and depth; links are not followed.

Each folder is opened anew from where the walk started, so that depth costs no descriptors, and a
folder that was exchanged for a link meanwhile is not entered.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from mcp_tools.builtin.workspace.beneath import Opener, kind_of
from mcp_tools.builtin.workspace.problems import shown
from mcp_tools.builtin.workspace.threads import Work

WALK_S: Final = 10.0
MAX_NAMES: Final = 500_000

_FLAGS: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_OUT_OF_TIME: Final = f"stopped after {WALK_S:g} s"


class Entry(NamedTuple):
    """One name: its path from where the walk started, and its kind (a link is a link)."""

    parts: tuple[str, ...]
    kind: str

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder itself, not a link to one."""
        return self.kind == "directory"


class Walk:
    """Yields what is below an open folder, names sorted; afterwards `notices` says what is missing.

    Args:
        folder_fd: Where to start. Stays open, and the caller's.
        skip: Told each path; what it says True to is left out, a folder with all that is below it.
        permits: Told each path that is not skipped; what it says False to is left out likewise, and counted.
        is_deep: False: only the folder itself.
        depth_first: All that is below a folder before its next neighbour; otherwise level by level.
    """

    def __init__(
        self,
        opener: Opener,
        folder_fd: int,
        work: Work,
        *,
        skip: Callable[[tuple[str, ...]], bool] = lambda _: False,
        permits: Callable[[tuple[str, ...]], bool] | None = None,
        is_deep: bool = True,
        depth_first: bool = True,
    ) -> None:
        self._opener = opener
        self._folder_fd = folder_fd
        self._work = work
        self._skip = skip
        self._permits = permits
        self._is_deep = is_deep
        self._depth_first = depth_first
        self._unreadable: list[str] = []
        self._too_deep = 0
        self._hidden = 0
        self._seen = 0
        self._ended: str | None = None

    @property
    def notices(self) -> list[str]:
        """What was not looked at, in words; empty after a complete walk."""
        found = [self._ended] if self._ended else []
        if self._hidden:
            found.append(f"{self._hidden:,} entries are left out, because a rule of this server hides them")
        if self._too_deep:
            found.append(f"{self._too_deep:,} folders lie too deep and were not looked into")
        if self._unreadable:
            names = ", ".join(self._unreadable[:3]) + (", …" if len(self._unreadable) > 3 else "")
            found.append(f"{len(self._unreadable):,} folders could not be read ({names})")
        return found

    def __iter__(self) -> Iterator[Entry]:
        pending: deque[tuple[str, ...]] = deque([()])
        while pending and self._ended is None:
            parts = pending.pop() if self._depth_first else pending.popleft()
            folders: list[tuple[str, ...]] = []
            for entry in self._entries(parts):
                yield entry
                if self._work.is_out_of_time:
                    self._ended = _OUT_OF_TIME
                    return
                if entry.is_folder and self._is_deep:
                    folders.append(entry.parts)
            pending += reversed(folders) if self._depth_first else folders

    def _entries(self, parts: tuple[str, ...]) -> list[Entry]:
        found: list[Entry] = []
        try:
            fd = self._opener(self._folder_fd, parts, _FLAGS, links=False)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        if self._is_at_an_end():
                            break
                        below = (*parts, entry.name)
                        if self._skip(below):
                            continue
                        if self._permits is not None and not self._permits(below):
                            self._hidden += 1
                            continue
                        found.append(Entry(below, _kind(entry)))
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self._too_deep += 1
            elif error.errno not in (errno.ENOENT, errno.ENOTDIR):  # else it went away meanwhile
                self._unreadable.append(shown("/".join(parts)))
        found.sort(key=lambda entry: entry.parts)
        return found

    def _is_at_an_end(self) -> bool:
        self._seen += 1
        if self._seen > MAX_NAMES:
            self._ended = f"stopped after {MAX_NAMES:,} names"
        elif self._seen % 100 == 0 and self._work.is_out_of_time:
            self._ended = _OUT_OF_TIME
        return self._ended is not None


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    if entry.is_file(follow_symlinks=False):
        return "file"
    try:
        return kind_of(entry.stat(follow_symlinks=False).st_mode)
    except OSError:
        return "unknown"

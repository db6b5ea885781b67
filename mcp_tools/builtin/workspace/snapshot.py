"""What is at a target now: enough to tell later whether it is still the same."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from mcp_tools.builtin.workspace.beneath import kind_of
from mcp_tools.builtin.workspace.problems import FileProblem
from mcp_tools.builtin.workspace.roots import Target

MAX_HASHED_BYTES: Final = 64 * 1024 * 1024
"""A larger file is recognised by its inode, size and times alone."""

BLOCK_BYTES: Final = 1024 * 1024
TRIES: Final = 3

SETTLE_S: Final = 0.02
"""A file changed more recently than this may be in the middle of a write.

The kernel sets the times when a write begins, to the clock's last tick (up to 10 ms old), and copies
the bytes afterwards: equal times before and after reading prove nothing while they are this young.
"""


class Snapshot(NamedTuple):
    """What was there. `status` is None where nothing was, `sha256` None where it was no small file."""

    folder: tuple[int, int]
    name: str
    status: os.stat_result | None
    sha256: str | None = None

    @property
    def state(self) -> str:
        """One string that differs whenever the target differs in identity or content."""
        place = f"{self.folder[0]}:{self.folder[1]}/{self.name}"
        if self.status is None:
            return f"{place} absent"
        status = self.status
        # Not the times, where the content is known: a file that was only touched is the same.
        content = self.sha256 or f"{status.st_mtime_ns}:{status.st_ctime_ns}"
        identity = f"{status.st_dev}:{status.st_ino}"
        return f"{place} {kind_of(status.st_mode)} {identity} {status.st_size} {content}"

    def is_of(self, status: os.stat_result) -> bool:
        """Whether this status, taken after a rename, can be that of the unchanged file.

        A rename itself changes ctime on most file systems, so that is not compared.
        """
        mine = self.status
        return mine is not None and _unchanged_key(mine) == _unchanged_key(status)


def take(target: Target) -> Snapshot:
    """Look at what is there now; a link is looked at, not followed.

    Raises:
        OSError: It cannot be read.
        FileProblem: It kept changing while it was read.
    """
    folder = os.fstat(target.folder_fd)
    place = (folder.st_dev, folder.st_ino)
    status = target.status()
    if status is None or not stat.S_ISREG(status.st_mode) or status.st_size > MAX_HASHED_BYTES:
        return Snapshot(folder=place, name=target.name, status=status)
    fd = open_regular(target)
    try:
        for _ in range(TRIES):
            before = os.fstat(fd)
            was_settled = is_settled(before)
            digest = hashlib.sha256()
            for block in blocks(fd, MAX_HASHED_BYTES):
                digest.update(block)
            if was_settled and is_unchanged(before, os.fstat(fd)):
                return Snapshot(folder=place, name=target.name, status=before, sha256=digest.hexdigest())
            time.sleep(SETTLE_S)
    finally:
        os.close(fd)
    raise FileProblem(target.asked, "is being written to right now, so it could not be read whole; try again")


def read(target: Target, limit_bytes: int) -> tuple[Snapshot, bytes]:
    """Read a regular file whole, with the snapshot of exactly these bytes.

    Raises:
        FileProblem: It is missing, no regular file, over the limit, or kept changing.
        OSError: It cannot be read.
    """
    folder = os.fstat(target.folder_fd)
    fd = open_regular(target)
    try:
        for _ in range(TRIES):
            before = os.fstat(fd)
            was_settled = is_settled(before)
            if before.st_size > limit_bytes:
                raise FileProblem(
                    target.asked,
                    f"is {before.st_size:,} bytes; this tool handles at most {limit_bytes:,}",
                )
            content = b"".join(blocks(fd, limit_bytes))
            if was_settled and is_unchanged(before, os.fstat(fd)):
                snapshot = Snapshot(
                    folder=(folder.st_dev, folder.st_ino),
                    name=target.name,
                    status=before,
                    sha256=hashlib.sha256(content).hexdigest(),
                )
                return snapshot, content
            time.sleep(SETTLE_S)
    finally:
        os.close(fd)
    raise FileProblem(target.asked, "is being written to right now, so it could not be read whole; try again")


def open_regular(target: Target) -> int:
    """Open the target itself for reading.

    Raises:
        FileProblem: It is not a regular file.
        OSError: Missing, or not readable; `ELOOP` where it has become a link.
    """
    status = os.stat(target.name, dir_fd=target.folder_fd, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise FileProblem(target.asked, f"is not a regular file but a {kind_of(status.st_mode)}")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(target.name, flags, dir_fd=target.folder_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # exchanged since the look
        os.close(fd)
        raise FileProblem(target.asked, "is not a regular file")
    return fd


def blocks(fd: int, limit_bytes: int) -> Iterator[bytes]:
    """Yield a file's content from its start, at most `limit_bytes` and never more than it holds."""
    position = 0
    while position < limit_bytes:
        block = os.pread(fd, min(BLOCK_BYTES, limit_bytes - position), position)
        if not block:
            return
        position += len(block)
        yield block


def is_settled(status: os.stat_result) -> bool:
    """Whether the file's last change is long enough ago to read it now; see `SETTLE_S`."""
    return abs(time.time() - status.st_ctime) > SETTLE_S


def is_unchanged(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether nobody wrote to the open file in between."""
    return before.st_ctime_ns == after.st_ctime_ns and _unchanged_key(before) == _unchanged_key(after)


def _unchanged_key(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)

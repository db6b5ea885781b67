"""Appends records to the chain, durably, beside other processes that do the same.

Every append happens under one lock file, so that a chain has one end. The lock file also holds the last
durable record's number and hash. That is how a tail which is missing shows at once, and how the next
process learns that the file behind a failed fsync must not be trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mcp_tools.observe.audit import mending
from mcp_tools.observe.audit.folder import (
    Head,
    Piece,
    first_seq_of,
    pieces,
    rotated_name,
    tail_of,
)
from mcp_tools.observe.audit.line import GENESIS, MAX_LINE_BYTES, Tip, read, seal
from mcp_tools.observe.audit.lock import FolderLock, identity
from mcp_tools.observe.audit.place import FILE_FLAGS, Unsafe, check_file
from mcp_tools.observe.audit.reading import LogReader

logger = logging.getLogger(__name__)

Event = Callable[[str, Mapping[str, Any]], dict[str, Any]]
"""Makes the record of something that happened to the log: its kind and the facts."""

_WRITE_FLAGS: Final = os.O_RDWR | os.O_APPEND | FILE_FLAGS
_FRESH_FLAGS: Final = _WRITE_FLAGS | os.O_CREAT | os.O_EXCL


class Chain:
    """One log's files, as one process sees them. Not for several threads at once.

    Args:
        path: From `place.real_path`.
        roots: Folders that tools may change; the log must not be there.
        max_bytes: A file that has reached this is followed by a new one.
        keep_files: How many full files stay. None: all.
        event: Makes records about the log itself.
    Raises:
        Unsafe: Somebody else could change the log there.
        OSError: The disk refuses.
    """

    def __init__(
        self,
        path: str,
        *,
        roots: Sequence[str | os.PathLike[str]],
        max_bytes: int,
        keep_files: int | None,
        event: Event,
    ) -> None:
        self._path, self._name = path, os.path.basename(path)
        self._max_bytes = max_bytes
        self._keep_files = keep_files
        self._event = event
        self._tip = GENESIS
        self._fd: int | None = None
        self._identity = (0, 0)
        self._size = 0
        self._is_suspect = False  # what is written next must be proven to be on the disk
        self._failed_after: Tip | None = None  # only where the lock file could not say so
        self._lock = FolderLock(path, roots=roots)

    @property
    def tip(self) -> Tip:
        """The last record that this process knows to be durable."""
        return self._tip

    def append(self, records: Sequence[Mapping[str, Any]], *, wait: bool = True) -> Tip:
        """Write records behind all others and wait until they are on the disk. Blocks.

        Args:
            wait: Also for another process that is writing.
        Returns:
            The tip of the last one.
        Raises:
            BlockingIOError: Another process is writing, and this was not to wait; nothing was written.
            OSError, Unsafe: None of them is acknowledged; the next append mends what is there first.
        """
        with self._lock.held(wait=wait) as is_same_folder:
            if not is_same_folder:
                self._leave()
            notices = self._settle()
            if notices:
                self._write(notices)
            if self._size >= self._max_bytes:
                self._rotate()
            self._write(records)
        return self._tip

    def close(self) -> None:
        """Let go of the files. Can be called again."""
        self._leave()
        self._lock.close()

    def _leave(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # --- finding out what is there; all of it with the lock held ---

    def _settle(self) -> list[dict[str, Any]]:
        """Make `_fd`, `_size` and `_tip` what is on the disk, and return records of what was not as left."""
        notices: list[dict[str, Any]] = []
        head = self._lock.read_head()
        failed_after = self._last_failure(head)
        status = check_file(self._lock.folder, self._name, what="the audit log", shown=self._path)
        if self._fd is not None and (status is None or identity(status) != self._identity):
            notices += self._leave_moved_file(head)
        if self._fd is not None and failed_after is not None:
            self._leave()
        known = max((self._tip, head.tip if head is not None else GENESIS), key=lambda tip: tip.seq)
        if self._fd is None:
            self._open(is_new=status is None)
            if not notices:
                notices += self._following(known)
        assert self._fd is not None
        status = os.fstat(self._fd)
        size = status.st_size
        if stat.S_IMODE(status.st_mode) != 0o600:
            logger.warning("the audit log %s was opened to others; it is closed to them again", self._path)
            os.fchmod(self._fd, 0o600)
        if size == self._size and known == self._tip:
            return notices
        if failed_after is not None:
            mending.forget_cached(self._fd)
        tail = tail_of(self._fd, size, up_to=None if failed_after is None else failed_after.seq)
        reason = "an unfinished write" if failed_after is None else "a write that failed"
        if tail.junk_bytes:
            facts = mending.cut(self._lock.folder, self._name, self._fd, tail)
            notices.append(self._event("log.repaired", {"reason": reason, **facts}))
        elif failed_after is not None:
            notices.append(self._event("log.repaired", {"reason": reason}))
        last = tail.tip if tail.end else self._tip_before()
        if last.seq >= self._tip.seq > 0 and not self._goes_on(size):
            raise Unsafe(
                f"the audit log {self._path} lacks record {self._tip.seq} now, which this server wrote: it "
                "was replaced. Keep it as evidence elsewhere, and start the server again"
            )
        if known.seq > last.seq or (known.seq == last.seq and known.hash != last.hash):
            logger.error(
                "the audit log lacks records: it ends at %d, and %d were written", last.seq, known.seq
            )
            facts = {"reason": "records are missing", "after_seq": last.seq, "up_to_seq": known.seq}
            notices.append(self._event("log.repaired", facts))
            last = known
        self._tip, self._size = last, tail.end
        self._is_suspect = failed_after is not None
        return notices

    def _goes_on(self, size: int) -> bool:
        """Whether what others wrote follows our last record."""
        assert self._fd is not None
        if 0 <= self._size < size:
            data = os.pread(self._fd, MAX_LINE_BYTES, self._size)
            record = read(data[: data.find(b"\n") + 1])
            if record is not None and record.get("prev") == self._tip.hash:
                return True
        with LogReader(self._path) as reader:
            if reader.hash_of(self._tip.seq) == self._tip.hash:
                return True
        older = self._older()
        return self._keep_files is not None and bool(older) and older[0].first_seq > self._tip.seq

    def _last_failure(self, head: Head | None) -> Tip | None:
        """The last good record before a write that failed, if nobody has mended that yet."""
        if head is not None and not head.is_trusted:
            return head.tip
        if self._failed_after is not None and (head is None or head.tip == self._failed_after):
            return self._failed_after
        return None

    def _open(self, *, is_new: bool) -> None:
        self._fd = os.open(
            self._name, _FRESH_FLAGS if is_new else _WRITE_FLAGS, 0o600, dir_fd=self._lock.folder
        )
        status = os.fstat(self._fd)
        if stat.S_IMODE(status.st_mode) != 0o600:
            os.fchmod(self._fd, 0o600)
        if is_new:
            os.fsync(self._lock.folder)
        self._identity, self._size = identity(status), -1

    def _tip_before(self) -> Tip:
        """The tip of the files before the one that is written, which is empty."""
        older = self._older()
        return self._tip_of(older[-1]) if older else GENESIS

    def _tip_of(self, piece: Piece) -> Tip:
        fd = os.open(piece.name, os.O_RDONLY | FILE_FLAGS, dir_fd=self._lock.folder)
        try:
            return tail_of(fd, os.fstat(fd).st_size).tip
        finally:
            os.close(fd)

    def _older(self) -> list[Piece]:
        return [piece for piece in pieces(self._lock.folder, self._name) if piece.name != self._name]

    def _following(self, known: Tip) -> list[dict[str, Any]]:
        """What a file begins with that is empty although there were records before."""
        assert self._fd is not None
        if os.fstat(self._fd).st_size > 0:
            return []
        older = self._older()
        if not older and known == GENESIS:
            return []
        facts = {"previous": older[-1].name if older else None, "oldest_seq": self._oldest_seq(older)}
        return [self._event("log.rotated", facts)]

    def _leave_moved_file(self, head: Head | None) -> list[dict[str, Any]]:
        """The file was renamed (by us elsewhere, or as logrotate does) or removed while it was open."""
        assert self._fd is not None
        notices = []
        status = os.fstat(self._fd)
        # Removed while the chain's end was in it: not one that was dropped for its age.
        if status.st_nlink == 0 and (head is None or tail_of(self._fd, status.st_size).tip == head.tip):
            name = rotated_name(self._name, first_seq_of(self._fd) or self._tip.seq)
            name = mending.rescue(self._lock.folder, name, self._fd)
            logger.error("the audit log was removed while it was open; its records are in %s now", name)
            facts = {"reason": "the file was removed", "previous": name}
            notices.append(
                self._event("log.repaired", {**facts, "oldest_seq": self._oldest_seq(self._older())})
            )
        self._leave()
        return notices

    @staticmethod
    def _oldest_seq(older: Sequence[Piece]) -> int | None:
        return older[0].first_seq if older else None

    # --- changing it; all of it with the lock held ---

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        assert self._fd is not None
        lines, tip = [], self._tip
        for record in records:
            line, tip = seal(record, tip)
            lines.append(line)
        data = b"".join(lines)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            sync(self._fd)
            if self._is_suspect:
                # What the page cache says proves nothing after a failed fsync.
                mending.prove(self._fd, self._size, data)
            # After a power cut, the old word of a failure must not come back.
            self._lock.write_head(Head(tip, True), durably=self._is_suspect)
        except OSError:
            self._distrust()
            raise
        self._tip, self._size = tip, self._size + len(data)
        self._is_suspect, self._failed_after = False, None

    def _rotate(self) -> None:
        assert self._fd is not None
        older = self._older()
        first = first_seq_of(self._fd) or self._tip.seq
        name = rotated_name(self._name, first)
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=self._lock.folder, follow_symlinks=False)
            name = f"{name}-{secrets.token_hex(4)}"
        os.rename(self._name, name, src_dir_fd=self._lock.folder, dst_dir_fd=self._lock.folder)
        self._leave()
        self._open(is_new=True)
        self._size = 0
        older = [*older, Piece(name, (0, 0), first)]
        drop = [] if self._keep_files is None else older[: max(0, len(older) - self._keep_files)]
        kept = older[len(drop) :]
        facts = {"previous": name, "oldest_seq": self._oldest_seq(kept) or self._tip.seq + 1}
        self._write([self._event("log.rotated", facts)])
        # Only now: the record that says so is durable.
        for piece in drop:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(piece.name, dir_fd=self._lock.folder)

    def _distrust(self) -> None:
        """A write or an fsync failed: nothing that was not acknowledged may stay before what will be."""
        assert self._fd is not None
        self._failed_after = self._tip
        # Others learn it from the lock file, and mend it before they write.
        with contextlib.suppress(OSError):
            self._lock.write_head(Head(self._tip, False))
            self._failed_after = None
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._size)
        self._size = -1


def sync(fd: int) -> None:
    """Wait until a file's content is on the disk."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)

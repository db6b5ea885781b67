"""Reads a log while others may write to it: its files in order, its end, and what comes in."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from mcp_tools.observe.audit.folder import LOCK, Head, Piece, open_piece, pieces, read_head, tail_of
from mcp_tools.observe.audit.line import GENESIS, MAX_LINE_BYTES, Tip, read
from mcp_tools.observe.audit.place import FILE_FLAGS, real_path

_LOCK_WAIT_S: Final = 5.0
_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The files of a log at one moment.

    Args:
        files: Name and number of bytes that count, oldest first.
        head: What the lock file said at that moment; None where there is none.
    """

    files: tuple[tuple[str, int], ...]
    head: Head | None


class LogReader:
    """One log, to read. A context manager.

    Raises:
        FileNotFoundError, OSError: Its folder cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder, self._name = os.path.split(real_path(path))
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)

    def snapshot(self) -> Snapshot:
        """Look at the log between two writes."""
        with self._between_writes() as head:
            found = pieces(self._folder, self._name)
            sizes = [os.stat(each.name, dir_fd=self._folder).st_size for each in found]
            names = [each.name for each in found]
            if self._name not in names:
                # Not one good line in it, but there: what verifies must see it.
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(os.stat(self._name, dir_fd=self._folder, follow_symlinks=False).st_size)
                    names.append(self._name)
        return Snapshot(files=tuple(zip(names, sizes, strict=True)), head=head)

    def lines(self, name: str, size: int) -> Iterator[bytes]:
        """Yield the lines of a file, up to `size` bytes; the last may lack its end."""
        with open_piece(self._folder, name) as file:
            while size > 0:
                line = file.readline(min(size, MAX_LINE_BYTES))
                if not line:
                    return
                size -= len(line)
                yield line

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every good record, oldest first."""
        for name, size in self.snapshot().files:
            for line in self.lines(name, size):
                record = read(line)
                if record is not None:
                    yield record

    def last(self, count: int) -> list[dict[str, Any]]:
        """Return the last `count` records, oldest first."""
        found: list[dict[str, Any]] = []
        for piece in reversed(pieces(self._folder, self._name)):
            with open_piece(self._folder, piece.name) as file:
                found = _last_of(file.fileno(), count - len(found)) + found
            if len(found) >= count:
                break
        return found

    def follow(self, after_seq: int) -> Iterator[dict[str, Any]]:
        """Yield records with higher numbers than `after_seq` as they come, and never end."""
        while True:
            for piece in self._from(after_seq):
                for record in self._good(piece, after_seq):
                    after_seq = record["seq"]
                    yield record
            time.sleep(_POLL_S)

    def tip(self) -> Tip:
        """Return the last good record's number and hash."""
        found = pieces(self._folder, self._name)
        if not found:
            return GENESIS
        with open_piece(self._folder, found[-1].name) as file:
            return tail_of(file.fileno(), os.fstat(file.fileno()).st_size).tip

    def hash_of(self, seq: int) -> str | None:
        """Return the hash of the record with that number, or None where there is none. Bisects."""
        for piece in reversed(pieces(self._folder, self._name)):
            if piece.first_seq <= seq:
                with open_piece(self._folder, piece.name) as file:
                    record = _bisect(file.fileno(), seq)
                return None if record is None else str(record["hash"])
        return None

    def _from(self, after_seq: int) -> list[Piece]:
        found = pieces(self._folder, self._name)
        begun = [piece for piece in found if piece.first_seq <= after_seq + 1]
        return begun[-1:] + [piece for piece in found if piece.first_seq > after_seq + 1]

    def _good(self, piece: Piece, after_seq: int) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError), open_piece(self._folder, piece.name) as file:
            fd = file.fileno()
            file.seek(_offset_of(fd, after_seq + 1))
            while line := file.readline(MAX_LINE_BYTES):
                record = read(line)
                if record is not None and record["seq"] > after_seq:
                    yield record

    @contextlib.contextmanager
    def _between_writes(self) -> Iterator[Head | None]:
        import fcntl

        try:
            fd = os.open(self._name + LOCK, os.O_RDONLY | FILE_FLAGS, dir_fd=self._folder)
        except OSError:
            yield None
            return
        try:
            deadline = time.monotonic() + _LOCK_WAIT_S
            # A writer whose disk hangs must not keep others from reading what there is.
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                time.sleep(0.002)
            yield read_head(fd)
        finally:
            os.close(fd)


def _last_of(fd: int, count: int) -> list[dict[str, Any]]:
    size, window = os.fstat(fd).st_size, 16 * MAX_LINE_BYTES
    while True:
        begin = max(0, size - window)
        os.lseek(fd, begin, os.SEEK_SET)
        data = os.pread(fd, size - begin, begin)
        lines = data.splitlines(keepends=True)[1 if begin else 0 :]
        found = [record for record in map(read, lines) if record is not None]
        if len(found) >= count or begin == 0:
            return found[-count:] if count else []
        window *= 8


def _offset_of(fd: int, seq: int) -> int:
    """Where the record with that number begins, or the first after it. Numbers grow along a file."""
    low, high = 0, os.fstat(fd).st_size
    while high - low > MAX_LINE_BYTES:
        middle = (low + high) // 2
        found = _next_record(fd, middle)
        if found is None or found[1]["seq"] >= seq:
            high = middle
        else:
            low = found[0]
    return low


def _bisect(fd: int, seq: int) -> dict[str, Any] | None:
    offset = _offset_of(fd, seq)
    data = os.pread(fd, 4 * MAX_LINE_BYTES, offset)
    for line in data.splitlines(keepends=True):
        record = read(line)
        if record is not None and record["seq"] == seq:
            return record
    return None


def _next_record(fd: int, offset: int) -> tuple[int, dict[str, Any]] | None:
    """The first good record that begins behind `offset`, and where it begins."""
    data = os.pread(fd, 2 * MAX_LINE_BYTES, offset)
    start = data.find(b"\n") + 1
    while start:
        stop = data.find(b"\n", start) + 1
        if not stop:
            return None
        record = read(data[start:stop])
        if record is not None:
            return offset + start, record
        start = stop
    return None

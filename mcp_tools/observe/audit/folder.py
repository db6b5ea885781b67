"""The files of one log, in order: the one that is written, and those that were before it."""

from __future__ import annotations

import os
import re
import stat
from typing import IO, Final, NamedTuple

from mcp_tools.observe.audit.line import GENESIS, MAX_LINE_BYTES, Tip, read
from mcp_tools.observe.audit.place import FILE_FLAGS

LOCK: Final = ".lock"
SALT: Final = ".salt"
CUT: Final = ".cut-"
"""In the name of a file that holds damaged lines which were taken out of a log."""

# What we append to the name of a full file, and what logrotate does; a copy that somebody made is no part.
_NAME_REST: Final = re.compile(r"(?:\.[0-9]{1,12}(?:-[0-9a-f]{8})?|-[0-9]{8,16})?")
_WINDOW_BYTES: Final = 4 * MAX_LINE_BYTES
_HEAD_BYTES: Final = 20 + 1 + 64 + 1 + 1 + 1


class Tail(NamedTuple):
    """The end of a file: its last good record, where that ends, and how much follows."""

    tip: Tip
    end: int
    junk_bytes: int


class Piece(NamedTuple):
    """One file of a log: its name, its identity, and the number of its first record."""

    name: str
    identity: tuple[int, int]
    first_seq: int


class Head(NamedTuple):
    """What the lock file says: the last durable record, and whether the file behind it can be trusted."""

    tip: Tip
    is_trusted: bool


def pieces(folder: int, name: str) -> list[Piece]:
    """Return the files of the log `name`, oldest first. Whatever else is beside it is left out."""
    found: dict[tuple[int, int], Piece] = {}
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    for candidate in names:
        if not candidate.startswith(name) or not _NAME_REST.fullmatch(candidate[len(name) :]):
            continue
        try:
            status = os.stat(candidate, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                continue
            with open_piece(folder, candidate) as file:
                first = read(file.readline(MAX_LINE_BYTES))
        except OSError:
            continue
        # An older file whose first line is damaged is still part of the log: its name says where.
        seq = first["seq"] if first is not None else _seq_in_name(candidate, name)
        if seq is not None:
            identity = (status.st_dev, status.st_ino)
            found[identity] = Piece(candidate, identity, seq)
    return sorted(found.values(), key=lambda piece: (piece.first_seq, piece.name == name))


def _seq_in_name(candidate: str, name: str) -> int | None:
    rest = candidate[len(name) + 1 :]
    return int(rest) if len(rest) == 12 and rest.isascii() and rest.isdigit() else None


def rotated_name(name: str, first_seq: int) -> str:
    """Return the name that a full file gets."""
    return f"{name}.{first_seq:012d}"


def open_piece(folder: int, name: str) -> IO[bytes]:
    """Open a file of the log to read. Not through a link, and without waiting for a pipe's writer."""
    fd = os.open(name, os.O_RDONLY | FILE_FLAGS, dir_fd=folder)
    return os.fdopen(fd, "rb", buffering=256 * 1024)


def tail_of(fd: int, size: int, *, up_to: int | None = None) -> Tail:
    """Find the last good record of a file, from its end.

    Args:
        up_to: Records with a higher number do not count. None: all do.
    """
    window = _WINDOW_BYTES
    while True:
        begin = max(0, size - window)
        data = _pread(fd, size - begin, begin)
        start = 0 if begin == 0 else data.find(b"\n") + 1
        stop = data.rfind(b"\n") + 1
        while stop > start:
            previous = data.rfind(b"\n", 0, stop - 1) + 1
            if previous < start:
                break
            line = data[previous:stop]
            record = read(line)
            if record is not None and (up_to is None or record["seq"] <= up_to):
                tip = Tip(record["seq"], record["hash"])
                return Tail(tip, begin + stop, size - begin - stop)
            stop = previous
        if begin == 0:
            return Tail(GENESIS, 0, size)
        window *= 8


def first_seq_of(fd: int) -> int | None:
    """Return the number of the first record of a file, or None where it has no good one."""
    record = read(_pread(fd, MAX_LINE_BYTES, 0).partition(b"\n")[0] + b"\n")
    return None if record is None else int(record["seq"])


def read_head(fd: int) -> Head | None:
    """Read what the lock file says, or None where it says nothing."""
    text = _pread(fd, _HEAD_BYTES, 0).decode("ascii", "replace")
    parts = text.split()
    if len(text) != _HEAD_BYTES or len(parts) != 3 or not parts[0].isdigit() or len(parts[1]) != 64:
        return None
    return Head(Tip(int(parts[0]), parts[1]), parts[2] == "+")


def write_head(fd: int, head: Head) -> None:
    """Write it in place: always the same length, so that no disk is too full for it."""
    text = f"{head.tip.seq:020d} {head.tip.hash} {'+' if head.is_trusted else '!'}\n"
    os.pwrite(fd, text.encode("ascii"), 0)


def _pread(fd: int, size: int, offset: int) -> bytes:
    parts = []
    while size > 0:
        part = os.pread(fd, size, offset)
        if not part:
            break
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return b"".join(parts)

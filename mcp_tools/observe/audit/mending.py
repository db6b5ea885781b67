"""What is done to a log's file that is not as it was left. All of it under the log's lock."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from typing import Any, Final

from mcp_tools.observe.audit.folder import CUT, Tail
from mcp_tools.observe.audit.place import FILE_FLAGS

_CHUNK: Final = 1024 * 1024
_NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE_FLAGS


def cut(folder: int, name: str, fd: int, tail: Tail) -> dict[str, Any]:
    """Take what follows the last good record out of a file, and return the facts for a record of it.

    Whole lines are evidence, of a power cut or of somebody's edit, and are kept in a file of their own.
    """
    digest, lines = hashlib.sha256(), 0
    for part in _parts(fd, tail.end, tail.junk_bytes):
        digest.update(part)
        lines += part.count(b"\n")
    kept_in = None
    if lines:
        kept_in = f"{name}{CUT}{tail.tip.seq + 1:012d}-{secrets.token_hex(4)}"
        _copy(folder, kept_in, fd, tail.end, tail.junk_bytes)
    os.ftruncate(fd, tail.end)
    os.fsync(fd)
    return {
        "cut_bytes": tail.junk_bytes,
        "cut_lines": lines,
        "cut_sha256": digest.hexdigest(),
        "kept_in": kept_in,
    }


def rescue(folder: int, name: str, fd: int) -> str:
    """Write a removed file, which we still have open, into the folder again. Returns its name there."""
    try:
        _copy(folder, name, fd, 0, os.fstat(fd).st_size)
    except FileExistsError:
        # Another process had it open too, and was quicker.
        if not _is_same(folder, name, fd):
            name = f"{name}-{secrets.token_hex(4)}"
            _copy(folder, name, fd, 0, os.fstat(fd).st_size)
    return name


def forget_cached(fd: int) -> None:
    """Have what is read next come from the disk: pages that could not be written look clean.

    Raises:
        OSError: The disk still refuses.
    """
    os.fsync(fd)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def prove(fd: int, offset: int, data: bytes) -> None:
    """Read back what was just written.

    Raises:
        OSError: The disk holds something else.
    """
    forget_cached(fd)
    found = b"".join(_parts(fd, offset, len(data)))
    if found != data or os.fstat(fd).st_size != offset + len(data):
        raise OSError(errno.EIO, "the disk does not hold what was written")


def _copy(folder: int, name: str, fd: int, offset: int, size: int) -> None:
    # Complete under its name or not there: another process may look at it at any time.
    draft = f".{name}.{secrets.token_hex(4)}"
    out = os.open(draft, _NEW_FLAGS, 0o600, dir_fd=folder)
    try:
        for part in _parts(fd, offset, size):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(out, rest) :]
        os.fsync(out)
        os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.unlink(draft, dir_fd=folder)
    except BaseException:
        os.unlink(draft, dir_fd=folder)
        raise
    finally:
        os.close(out)
    os.fsync(folder)


def _is_same(folder: int, name: str, fd: int) -> bool:
    other = os.open(name, os.O_RDONLY | FILE_FLAGS, dir_fd=folder)
    try:
        size = os.fstat(fd).st_size
        if os.fstat(other).st_size != size:
            return False
        mine, theirs = _parts(fd, 0, size), _parts(other, 0, size)
        return all(left == right for left, right in zip(mine, theirs, strict=True))
    finally:
        os.close(other)


def _parts(fd: int, offset: int, size: int) -> Iterator[bytes]:
    while size > 0:
        part = os.pread(fd, min(_CHUNK, size), offset)
        if not part:
            return
        yield part
        size -= len(part)
        offset += len(part)

"""Two Linux system calls that the standard library does not offer: `openat2` and `renameat2`."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from typing import Any, Final

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

# The number is the same on every architecture Python runs on, except alpha (which has no users here).
_SYS_OPENAT2: Final = 437
_OPEN_HOW: Final = struct.Struct("=QQQ")


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def openat2(dir_fd: int, path: bytes, *, flags: int, resolve: int) -> int:
    """Open `path` below `dir_fd` under the kernel's own resolution rules.

    Returns:
        A descriptor that is closed on exec.
    Raises:
        OSError: With the kernel's errno; `ENOSYS` or `EPERM` also where a seccomp filter blocks the call.
    Source: openat2(2), Linux 5.6.
    """
    if b"\0" in path:
        raise ValueError("a path cannot hold NUL")  # C would silently stop there
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    while True:
        fd = _libc().syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(path),
            ctypes.c_char_p(how),
            ctypes.c_size_t(len(how)),
        )
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def renameat2(source_fd: int, source: str, destination_fd: int, destination: str, flags: int) -> None:
    """Rename with `RENAME_NOREPLACE` or `RENAME_EXCHANGE`.

    Raises:
        OSError: `EINVAL` or `ENOSYS` where the file system, the kernel or the C library cannot do it.
    Source: renameat2(2).
    """
    function = getattr(_libc(), "renameat2", None)  # glibc 2.28, musl 1.2.6, no other system
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    failed = function(
        ctypes.c_int(source_fd),
        ctypes.c_char_p(os.fsencode(source)),
        ctypes.c_int(destination_fd),
        ctypes.c_char_p(os.fsencode(destination)),
        ctypes.c_uint(flags),
    )
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

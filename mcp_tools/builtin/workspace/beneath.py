"""The one way a path becomes a descriptor: inside its root or not at all.

Two ways do the same: the kernel's `openat2`, and a walk from descriptor to descriptor for kernels
without it. Both follow relative links that stay inside, and refuse absolute ones and those that
leave. Nothing is ever checked first and opened later by name.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Sequence
from typing import Final, Protocol

from mcp_tools.builtin.workspace import kernel

MAX_LINKS: Final = 40
"""Links followed in one path, as the kernel does."""

O_PATH: Final[int] = getattr(os, "O_PATH", 0)
"""Names a file without opening it: no permission on it needed, no effect on a pipe or device. Linux only."""

_EAGAIN_TRIES: Final = 32


class Opener(Protocol):
    """Opens `parts` (which may hold `..`) below `dir_fd`; an empty list is the folder itself.

    With `links=False` no link is followed anywhere. Never creates anything.
    Raises:
        OSError: `EXDEV` where the path leaves, `ELOOP` for a link too many (or any, without `links`).
    """

    def __call__(self, dir_fd: int, parts: Sequence[str], flags: int, *, links: bool = True) -> int: ...


def open_with_kernel(dir_fd: int, parts: Sequence[str], flags: int, *, links: bool = True) -> int:
    """Open through `openat2` with `RESOLVE_BENEATH`; see `Opener`."""
    resolve = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_MAGICLINKS
    if not links:
        resolve |= kernel.RESOLVE_NO_SYMLINKS
    path = os.fsencode("/".join(parts) or ".")
    for _ in range(_EAGAIN_TRIES):
        try:
            return kernel.openat2(dir_fd, path, flags=flags, resolve=resolve)
        except OSError as error:
            # A rename somewhere on this machine while `..` was resolved: the kernel could not tell
            # whether the path stayed inside, and asks to be called again.
            if error.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def open_by_walking(dir_fd: int, parts: Sequence[str], flags: int, *, links: bool = True) -> int:
    """Open one component after the other, never following a link by name; see `Opener`."""
    folders = [os.dup(dir_fd)]  # from the root down, so that `..` goes where we came from
    pending = [part for part in reversed(parts) if part not in ("", ".")]
    links_left = MAX_LINKS if links else 0
    try:
        while pending:
            name = pending.pop()
            if name == "..":
                if len(folders) == 1:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                os.close(folders.pop())
                continue
            is_last = not pending
            found = _open_component(folders[-1], name, flags if is_last else _THROUGH)
            if isinstance(found, int):
                folders.append(found)
                continue
            links_left -= 1
            if links_left < 0:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if found.startswith("/"):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            if is_last and found.endswith(("/", "/.")):
                flags |= os.O_DIRECTORY
            pending += [part for part in reversed(found.split("/")) if part not in ("", ".")]
        return _reopened(folders, flags)
    finally:
        for folder in folders:
            os.close(folder)


_THROUGH: Final = (O_PATH or os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)


def _open_component(dir_fd: int, name: str, flags: int) -> int | str:
    """Return a descriptor, or the target where `name` is a link."""
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not a link: what we hope for
            raise
    # A link put here since then is not followed: O_NOFOLLOW makes this fail, and the model retries.
    fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    if O_PATH and flags & O_PATH and stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return fd


def _reopened(folders: list[int], flags: int) -> int:
    """Take the last descriptor out of the list, opened with the flags that were asked for."""
    last = folders.pop()
    if not folders or _was_walked_through(last, flags):
        # Ended on the root or, through `..` in a link, on a folder that was only walked through.
        try:
            return os.open(".", flags | os.O_CLOEXEC, dir_fd=last)
        finally:
            os.close(last)
    return last


def _was_walked_through(fd: int, flags: int) -> bool:
    import fcntl

    return bool(O_PATH) and bool(fcntl.fcntl(fd, fcntl.F_GETFL) & O_PATH) != bool(flags & O_PATH)


def choose_opener() -> Opener:
    """Return the kernel's way where this process may use it, the walk where not. Tries once."""
    if sys.platform != "linux":
        return open_by_walking
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(open_with_kernel(fd, (), os.O_RDONLY | os.O_DIRECTORY))
    except OSError:
        # ENOSYS before Linux 5.6; EPERM and others under seccomp filters (old Docker, snap).
        return open_by_walking
    finally:
        os.close(fd)
    return open_with_kernel


def location_of(fd: int) -> str:
    """Return the absolute path under which an open file or folder is reached now.

    Raises:
        OSError: The system cannot say (on Linux: /proc is not mounted).
    """
    if sys.platform == "linux":
        return os.readlink(f"/proc/self/fd/{fd}")
    import fcntl

    command = getattr(fcntl, "F_GETPATH", None)
    if command is None:
        raise OSError(errno.ENOTSUP, "this system cannot name an open folder")
    return os.fsdecode(fcntl.fcntl(fd, command, b"\0" * 1024).split(b"\0", 1)[0])


def open_to_read(opener: Opener, dir_fd: int, parts: Sequence[str], *, links: bool = True) -> int:
    """Open a regular file for reading. A pipe, device or socket is refused without being touched.

    Raises:
        NotARegularFile: It is something else.
        OSError: As of the opener.
    """
    reading = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if not O_PATH:
        fd = opener(dir_fd, parts, reading, links=links)
        return _checked_regular(fd)
    # Opening a pipe even without blocking lets its writer go on and then kills it with SIGPIPE, and
    # opening a device may do anything: so look first, through a descriptor that touches nothing.
    named = _checked_regular(opener(dir_fd, parts, O_PATH, links=links))
    try:
        return os.open(f"/proc/self/fd/{named}", reading)
    finally:
        os.close(named)


class NotARegularFile(Exception):
    """`kind` says what it is instead."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def _checked_regular(fd: int) -> int:
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    raise NotARegularFile(kind_of(mode))


def kind_of(mode: int) -> str:
    """Name the type in a file's mode, in one word or two."""
    for is_kind, name in _KINDS:
        if is_kind(mode):
            return name
    return "unknown"


_KINDS: Final = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "directory"),
    (stat.S_ISLNK, "link"),
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "character device"),
    (stat.S_ISBLK, "block device"),
)

"""Landlock: what paths, ports, sockets and processes this thread can still reach, for good.

It needs no privilege but `no_new_privs`. It does not cover metadata: `stat`, `chmod`, `utime` and the like
stay possible on everything that is visible. Descriptors that are already open stay as they are.

Source: Linux, Documentation/userspace-api/landlock.rst
"""

from __future__ import annotations

import errno
import os
import stat

from sandbox.linux import libc

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Sequence

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_LOG_SAME_EXEC_OFF = 1

_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = (1 << bit for bit in range(4))
_FS_REMOVE_DIR, _FS_REMOVE_FILE, _FS_MAKE_CHAR, _FS_MAKE_DIR, _FS_MAKE_REG = (1 << bit for bit in range(4, 9))
_FS_MAKE_SOCK, _FS_MAKE_FIFO, _FS_MAKE_BLOCK, _FS_MAKE_SYM = (1 << bit for bit in range(9, 13))
_FS_REFER, _FS_TRUNCATE, _FS_IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_NET_BIND_TCP, _NET_CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2

READ = _FS_READ_FILE | _FS_READ_DIR
"""Read files and list folders."""
EXECUTE = READ | _FS_EXECUTE
"""Also execute files."""
WRITE = (
    (READ | _FS_WRITE_FILE | _FS_TRUNCATE | _FS_REMOVE_DIR | _FS_REMOVE_FILE | _FS_REFER)
    | (_FS_MAKE_DIR | _FS_MAKE_REG | _FS_MAKE_FIFO | _FS_MAKE_SYM)
)  # fmt: skip
"""Read, write, create, rename and remove: everything but executing, sockets and devices."""

OVERWRITE = _FS_WRITE_FILE
"""Write to files that are there."""

_OF_A_FILE = _FS_EXECUTE | _FS_WRITE_FILE | _FS_READ_FILE | _FS_TRUNCATE | _FS_IOCTL_DEV


def abi() -> int:
    """The version of Landlock that this kernel speaks; 0 when it has none or it is switched off."""
    try:
        return libc.syscall("landlock_create_ruleset", _CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        # EPERM: a container's seccomp profile that does not know the call.
        if error.errno in {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}:
            return 0
        raise


def scopes_signals() -> bool:
    """Whether `restrict` also keeps signals and abstract sockets inside (Linux 6.12)."""
    return abi() >= 6


def restrict(rules: Sequence[tuple[str, int]], *, network: bool) -> None:
    """Confine this thread, and what it starts, to what `rules` allow. It cannot be undone.

    Rights that this kernel does not know are left out: truncating before ABI 3, TCP before 4, ioctls of
    devices before 5, signals and abstract sockets before 6.

    Args:
        rules: Pairs of a path and what is allowed there and below: `READ`, `EXECUTE`, `WRITE` or a union.
            Of a path that is not a folder, only the rights that a file can have are taken.
        network: False denies binding and connecting TCP sockets.
    Raises:
        OSError: The kernel has no Landlock, `no_new_privs` is not set, or a path does not exist.
            The thread is as free as before.
    """
    version = abi()
    handled = (1 << 13) - 1
    if version >= 2:
        handled |= _FS_REFER
    if version >= 3:
        handled |= _FS_TRUNCATE
    if version >= 5:
        handled |= _FS_IOCTL_DEV
    words = [handled]
    if version >= 4:
        words.append(0 if network else _NET_BIND_TCP | _NET_CONNECT_TCP)
    if version >= 6:
        words.append(_SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL)
    attr = b"".join(word.to_bytes(8, "little") for word in words)
    ruleset = libc.syscall("landlock_create_ruleset", _CREATE_RULESET, attr, len(attr), 0)
    try:
        for path, access in rules:
            _allow_beneath(ruleset, path, access & handled)
        # A guest that is denied a million times must not fill the host's audit log.
        flags = _LOG_SAME_EXEC_OFF if version >= 7 else 0
        libc.syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset, flags)
    finally:
        os.close(ruleset)


def _allow_beneath(ruleset: int, path: str, access: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _OF_A_FILE
        attr = access.to_bytes(8, "little") + fd.to_bytes(4, "little")
        libc.syscall(f"landlock_add_rule({path})", _ADD_RULE, ruleset, _RULE_PATH_BENEATH, attr, 0)
    finally:
        os.close(fd)

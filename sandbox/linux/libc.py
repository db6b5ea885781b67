"""System calls that Python 3.11 has no function for, by ctypes: no compiled code of ours.

Every function raises `OSError` with the name of the call, as `os` does with the name of the file.
"""

from __future__ import annotations

import ctypes
import errno
import os

MACHINE = os.uname().machine
if MACHINE not in {"x86_64", "aarch64"}:
    raise ImportError(f"the embedded sandbox knows the system calls of x86_64 and aarch64, not of {MACHINE}")

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_IDMAP = 0x00100000
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 38, 36
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
CAP_LAST_CAP_KNOWN = 40  # CAP_CHECKPOINT_RESTORE, Linux 5.9

# Numbers of calls that glibc 2.31 (our oldest) does not wrap; the newer ones are the same everywhere.
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[MACHINE]
_CAPSET = {"x86_64": 126, "aarch64": 91}[MACHINE]
_OPEN_TREE, _MOVE_MOUNT, _CLOSE_RANGE, _MOUNT_SETATTR = 428, 429, 436, 442

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl = _libc.prctl


def syscall(name: str, number: int, *args: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make the system call `number`; `name` is for the error. Integers are passed as longs.

    Raises:
        OSError: It failed, with its `errno`.
    """
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = _syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise _failure(name)
    return result


def prctl(option: int, *args: int) -> int:
    """`prctl(2)`; missing arguments are 0, which most options insist on."""
    words = [ctypes.c_ulong(arg) for arg in (*args, 0, 0, 0, 0)[:4]]
    result: int = _prctl(ctypes.c_int(option), *words)
    if result == -1:
        raise _failure(f"prctl({option})")
    return result


def unshare(flags: int, what: str) -> None:
    if _libc.unshare(ctypes.c_int(flags)) != 0:
        raise _failure(f"unshare({what})")


def setns(fd: int, flags: int, what: str) -> None:
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)) != 0:
        raise _failure(f"setns({what})")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    if _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) != 0:
        raise _failure(f"mount({kind or source} on {target})")


def umount(target: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(target), ctypes.c_int(flags)) != 0:
        raise _failure(f"umount({target})")


def pivot_root(new_root: str, put_old: str) -> None:
    syscall("pivot_root", _PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old))


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """Descriptor of a detached copy (with `OPEN_TREE_CLONE`) of the mount at `path`."""
    return syscall("open_tree", _OPEN_TREE, dirfd, os.fsencode(path), flags)


def move_mount(fd: int, target: str) -> None:
    """Attach the detached mount `fd` at `target`."""
    at_cwd = -100
    syscall("move_mount", _MOVE_MOUNT, fd, b"", at_cwd, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)


def mount_setattr(fd: int, path: str, flags: int, *, add: int, userns_fd: int = 0) -> None:
    """Add attributes to the mount at `path` of `fd`; with `AT_RECURSIVE` to everything under it too."""
    attr = b"".join(word.to_bytes(8, "little") for word in (add, 0, 0, userns_fd))
    syscall("mount_setattr", _MOUNT_SETATTR, fd, os.fsencode(path), flags, attr, len(attr))


def close_range(first: int, last: int = 2**32 - 1) -> None:
    syscall("close_range", _CLOSE_RANGE, first, last, 0)


def drop_capabilities() -> None:
    """Empty every capability set of this thread for good; the bounding set too, if it has the right to."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    option, none = ctypes.c_int(PR_CAPBSET_DROP), ctypes.c_ulong(0)
    for capability in range(64):
        if _prctl(option, ctypes.c_ulong(capability), none, none, none) == 0:
            continue
        if ctypes.get_errno() != errno.EPERM and capability <= CAP_LAST_CAP_KNOWN:
            raise _failure(f"prctl({PR_CAPBSET_DROP})")
        # The kernel's last one was before this; or we may not, and without capabilities no_new_privs does as
        # much: an executed program gains nothing.
        break
    version_3, this_thread = 0x20080522, 0
    header = version_3.to_bytes(4, "little") + this_thread.to_bytes(4, "little")
    syscall("capset", _CAPSET, header, bytes(24))


def _failure(name: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), name)

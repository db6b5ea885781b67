"""Where a log may be: a folder that only its owner can change, a plain file, out of the tools' reach."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Sequence
from typing import Final

from mcp_tools.errors import ConfigError

SALT_BYTES: Final = 32
_FOLDER_FLAGS: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
FILE_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Unsafe(ConfigError):
    """A log must not be there. The text says what is wrong and what to do."""


def real_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path, links on the way followed, but not a link in its last part."""
    folder, name = os.path.split(os.path.abspath(os.fspath(path)))
    return os.path.join(os.path.realpath(folder), name)


def open_folder(path: str, *, roots: Sequence[str | os.PathLike[str]], what: str = "the audit log") -> int:
    """Open the folder of a file that is kept for the owner alone; make it where it is missing.

    Args:
        path: From `real_path`.
        roots: Folders that tools may change: nothing in them is safe.
    Returns:
        A descriptor of the folder. New folders have the mode 0700.
    Raises:
        Unsafe: Somebody else could change or replace the file, or it is no plain file of ours.
    """
    folder, name = os.path.split(path)
    if not name:
        raise Unsafe(f"{what} needs the name of a file, and {path!r} is none")
    for root in roots:
        real_root = os.path.realpath(root)
        if os.path.commonpath([real_root, path]) == real_root:
            raise Unsafe(f"{what} {path} is inside {real_root}, which tools may change; keep it elsewhere")
    try:
        _make_folders(folder)
        descriptor = os.open(folder, _FOLDER_FLAGS)
    except OSError as error:
        raise Unsafe(f"{what} cannot be kept in {folder}: {error.strerror}") from error
    try:
        check_folders(folder, what)
        check_file(descriptor, name, what=what, shown=path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _make_folders(folder: str) -> None:
    """Make a folder and those above it, durably: a power cut must not take one away with the log in it."""
    if os.path.isdir(folder):
        return
    above = os.path.dirname(folder)
    _make_folders(above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    _sync_folder(above)


def _sync_folder(folder: str) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, _FOLDER_FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_file(folder: int, name: str, *, what: str, shown: str) -> os.stat_result | None:
    """Return what is known of the file, or None where there is none.

    Raises:
        Unsafe: It is a link, a device or pipe, has a second name, or is somebody else's.
    """
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        raise Unsafe(f"{what} {shown} is a link; name the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise Unsafe(f"{what} {shown} is no plain file")
    if status.st_nlink > 1:
        raise Unsafe(f"{what} {shown} has a second name (a hard link); remove that, or choose another file")
    if status.st_uid != os.geteuid():
        raise Unsafe(f"{what} {shown} belongs to another user (uid {status.st_uid})")
    return status


def check_folders(folder: str, what: str) -> None:
    """Check the folder and all above it: whoever can rename one of them can replace the log.

    Raises:
        Unsafe: Somebody else can.
    """
    status = os.stat(folder)
    if status.st_uid not in (os.geteuid(), 0):
        raise Unsafe(f"{what}: its folder {folder} belongs to another user (uid {status.st_uid})")
    if status.st_mode & 0o022:
        raise Unsafe(
            f"{what}: others may write to its folder {folder}; run `chmod go-w` on it, or choose another"
        )
    while (above := os.path.dirname(folder)) != folder:
        folder = above
        status = os.stat(folder)
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            raise Unsafe(f"{what}: others may write to {folder}, which is above it; choose another folder")
        if status.st_uid not in (os.geteuid(), 0):
            raise Unsafe(
                f"{what}: {folder}, which is above it, belongs to another user (uid {status.st_uid})"
            )


def salt_of(folder: int, name: str, *, shown: str) -> bytes:
    """Return the salt that is kept beside a log; made at the first time, for its owner alone (0600).

    Raises:
        Unsafe: There is something else under its name.
        OSError: The disk refuses.
    """
    for _ in range(3):
        if _check_salt(folder, name, shown) is not None:
            fd = os.open(name, os.O_RDONLY | FILE_FLAGS, dir_fd=folder)
            with os.fdopen(fd, "rb") as file:
                salt = file.read(SALT_BYTES + 1)
            if len(salt) != SALT_BYTES:
                raise Unsafe(f"the salt of the audit log {shown} is damaged; move it away to have a new one")
            return salt
        _make_salt(folder, name)
    raise Unsafe(f"the salt of the audit log {shown} keeps vanishing")


def _check_salt(folder: int, name: str, shown: str) -> os.stat_result | None:
    what = "the salt of the audit log"
    try:
        return check_file(folder, name, what=what, shown=shown)
    except Unsafe:
        # Whoever makes it beside us, or was killed while doing so, has it under two names.
        for draft in os.listdir(folder):
            if re.fullmatch(rf"{re.escape(name)}\.[0-9a-f]{{8}}", draft):
                with contextlib.suppress(FileNotFoundError):
                    one, other = (
                        os.stat(each, dir_fd=folder, follow_symlinks=False) for each in (name, draft)
                    )
                    if one.st_ino == other.st_ino:
                        os.unlink(draft, dir_fd=folder)
    return check_file(folder, name, what=what, shown=shown)


def _make_salt(folder: int, name: str) -> None:
    # Under another name first: a process beside us must not read half of it.
    draft = f"{name}.{secrets.token_hex(4)}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE_FLAGS, 0o600, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(SALT_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)  # no hard links here
    else:
        os.fsync(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)

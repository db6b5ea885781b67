"""Changing a name in a folder so that nobody ever sees half of it and no failure loses what was there.

To replace: 1 temp file in the same folder  2 owner, mode and attributes of the old file  3 content
4 fsync  5 last look at what is there  6 exchange the two names  7 look again  8 fsync of the folder
9 remove the old file. A failure at any step puts everything back as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from mcp_tools.builtin.workspace import kernel, snapshot
from mcp_tools.builtin.workspace.attributes import copy_attributes
from mcp_tools.builtin.workspace.beneath import kind_of
from mcp_tools.builtin.workspace.problems import FileProblem, explain, shown
from mcp_tools.builtin.workspace.roots import Target
from mcp_tools.builtin.workspace.snapshot import Snapshot
from mcp_tools.builtin.workspace.temporary import create_temporary, temporary_name
from mcp_tools.builtin.workspace.threads import Work
from mcp_tools.errors import ToolError

NEW_FILE_MODE: Final = 0o644
"""Before the umask: a new file is never writable by its group or by others."""

NEW_FOLDER_MODE: Final = 0o755
NOTHING_CHANGED: Final = "nothing was changed"

_CANNOT: Final = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


class ChangedMeanwhile(FileProblem):
    """What is there is not what the call was made (or approved) for. Nothing was changed."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path, "changed since it was read or shown; nothing was written. Read it again and retry"
        )


class Replaced(NamedTuple):
    """A finished replacement; `notes` says what of the old file could not be kept."""

    size_bytes: int
    is_new: bool
    notes: tuple[str, ...]


def replace(
    target: Target,
    before: Snapshot,
    write: Callable[[int], None],
    *,
    work: Work,
    last_look: Callable[[], None],
) -> Replaced:
    """Put new content under a name, durably, or leave everything as it is.

    Args:
        before: What is there; a difference at the last moment refuses.
        write: Writes the content to a descriptor.
        last_look: Called just before the change; refuses by raising.
    Raises:
        ChangedMeanwhile: Something else is there by now.
        ToolError: The system refused a step.
        Withdrawn: The call was cancelled in time.
    In each case the old content is in place and the temp file is gone.
    """
    _check_replaceable(target, before)
    notes: list[str] = []
    try:
        mode = NEW_FILE_MODE if before.status is None else 0o600
        temp_name, fd = create_temporary(target.folder_fd, mode)
    except OSError as error:
        raise explain(error, target.asked, then=NOTHING_CHANGED) from error
    try:
        if before.status is not None:
            with _opened(target) as old_fd:
                notes = copy_attributes(old_fd, fd)
        write(fd)
        os.fsync(fd)
        size_bytes = os.fstat(fd).st_size
        if snapshot.take(target).state != before.state:
            raise ChangedMeanwhile(target.asked)
        last_look()
        work.begin_change()
        if before.status is None:
            _publish(target, temp_name)
        else:
            _exchange(target, temp_name, before)
    except OSError as error:
        raise explain(error, target.asked, then=NOTHING_CHANGED) from error
    finally:
        os.close(fd)
        _remove(target.folder_fd, temp_name)
    return Replaced(size_bytes=size_bytes, is_new=before.status is None, notes=tuple(notes))


def write_all(fd: int, content: bytes) -> None:
    """Write every byte; a system call may take fewer than it was given."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def remove(target: Target, before: Snapshot, *, work: Work, last_look: Callable[[], None]) -> None:
    """Remove a file or link (never a folder), if it is still what was looked at.

    It is renamed first and looked at under that name, where nobody can exchange it any more.
    Raises:
        ChangedMeanwhile, ToolError, Withdrawn: As for `replace`; it is still there.
    """
    temp_name = temporary_name()
    try:
        if snapshot.take(target).state != before.state:
            raise ChangedMeanwhile(target.asked)
        last_look()
        work.begin_change()
        rename_to_free_name(target.folder_fd, target.name, target.folder_fd, temp_name)

        def put_back() -> None:
            rename_to_free_name(target.folder_fd, temp_name, target.folder_fd, target.name)

        if not before.is_of(os.stat(temp_name, dir_fd=target.folder_fd, follow_symlinks=False)):
            put_back()
            raise ChangedMeanwhile(target.asked)
        _sync_or(target, put_back, f"it is now named {temp_name}")
        os.unlink(temp_name, dir_fd=target.folder_fd)
    except OSError as error:
        raise explain(error, target.asked, then=NOTHING_CHANGED) from error


def move(
    source: Target,
    destination: Target,
    before: Snapshot,
    *,
    work: Work,
    last_look: Callable[[], None],
) -> None:
    """Rename a file, link or folder to a name that is free.

    Raises:
        ChangedMeanwhile, ToolError, Withdrawn: As for `replace`; it is where it was.
    """
    try:
        if snapshot.take(source).state != before.state:
            raise ChangedMeanwhile(source.asked)
        last_look()
        work.begin_change()
        rename_to_free_name(source.folder_fd, source.name, destination.folder_fd, destination.name)
    except OSError as error:
        raise _explain_move(error, source, destination) from error

    def put_back() -> None:
        rename_to_free_name(destination.folder_fd, destination.name, source.folder_fd, source.name)

    try:
        now = os.stat(destination.name, dir_fd=destination.folder_fd, follow_symlinks=False)
        if not before.is_of(now):
            put_back()
            raise ChangedMeanwhile(source.asked)
        for changed in (destination, source):
            _sync_or(changed, put_back, f"it is now {shown(destination.asked)}")
    except OSError as error:
        raise explain(error, destination.asked, then=NOTHING_CHANGED) from error


def rename_to_free_name(source_fd: int, source: str, destination_fd: int, destination: str) -> None:
    """Rename, failing with `EEXIST` where the new name is taken: of two who try, exactly one succeeds.

    Raises:
        OSError: As the system says it; both names are as they were.
    """
    try:
        kernel.renameat2(source_fd, source, destination_fd, destination, kernel.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    else:
        return
    status = os.stat(source, dir_fd=source_fd, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        with contextlib.suppress(FileNotFoundError):
            os.stat(destination, dir_fd=destination_fd, follow_symlinks=False)
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        # A folder's rename replaces at most an empty folder, so nothing can be lost in between.
        os.rename(source, destination, src_dir_fd=source_fd, dst_dir_fd=destination_fd)
        return
    try:
        os.link(source, destination, src_dir_fd=source_fd, dst_dir_fd=destination_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _rename_over_reservation(source_fd, source, destination_fd, destination)
    else:
        os.unlink(source, dir_fd=source_fd)


def _rename_over_reservation(source_fd: int, source: str, destination_fd: int, destination: str) -> None:
    """Take the name with an empty file of our own first: the last way, which every file system has."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(destination, flags, 0o600, dir_fd=destination_fd))
    try:
        os.rename(source, destination, src_dir_fd=source_fd, dst_dir_fd=destination_fd)
    except OSError:
        os.unlink(destination, dir_fd=destination_fd)
        raise


def sync_folder(fd: int) -> None:
    """Wait until a folder's names are on disk.

    Raises:
        OSError: The disk did not confirm it.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no fsync for folders
            raise


def _publish(target: Target, temp_name: str) -> None:
    try:
        rename_to_free_name(target.folder_fd, temp_name, target.folder_fd, target.name)
    except FileExistsError:
        raise ChangedMeanwhile(target.asked) from None
    undo = partial(os.unlink, target.name, dir_fd=target.folder_fd)
    _sync_or(target, undo, "the new file is in place")


def _exchange(target: Target, temp_name: str, before: Snapshot) -> None:
    """Swap the two names: afterwards the old file is still there to be looked at, and to go back to."""

    def swap() -> None:
        kernel.renameat2(target.folder_fd, temp_name, target.folder_fd, target.name, kernel.RENAME_EXCHANGE)

    try:
        swap()
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _rename_over(target, temp_name)
        return
    if not before.is_of(os.stat(temp_name, dir_fd=target.folder_fd, follow_symlinks=False)):
        swap()
        raise ChangedMeanwhile(target.asked)
    _sync_or(target, swap, "the new content is in place")


def _rename_over(target: Target, temp_name: str) -> None:
    os.rename(temp_name, target.name, src_dir_fd=target.folder_fd, dst_dir_fd=target.folder_fd)
    try:
        sync_folder(target.folder_fd)
    except OSError as error:
        raise explain(
            error, target.asked, then="the new content is in place, but the disk did not confirm it"
        ) from error


def _sync_or(target: Target, undo: Callable[[], None], otherwise: str) -> None:
    """Wait until the disk has the target's folder, or go back; `otherwise` is true if that fails too."""
    try:
        sync_folder(target.folder_fd)
    except OSError as error:
        try:
            undo()
        except OSError:
            raise explain(
                error, target.asked, then=f"{otherwise}, but the disk did not confirm it"
            ) from error
        raise


def _check_replaceable(target: Target, before: Snapshot) -> None:
    status = before.status
    if status is None:
        return
    if not stat.S_ISREG(status.st_mode):
        raise FileProblem(
            target.asked, f"is not a regular file but a {kind_of(status.st_mode)}; {NOTHING_CHANGED}"
        )
    # A rename needs no right on the file itself, but whoever made it read-only meant it.
    is_writable = os.access(
        target.name,
        os.W_OK,
        dir_fd=target.folder_fd,
        effective_ids=os.access in os.supports_effective_ids,
    )
    if not is_writable:
        raise FileProblem(target.asked, f"is read-only for the server's user; {NOTHING_CHANGED}")


@contextlib.contextmanager
def _opened(target: Target) -> Iterator[int]:
    fd = snapshot.open_regular(target)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove(folder_fd: int, name: str) -> None:
    # Nothing is there after a publish. Where removing fails, the next start sweeps it.
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder_fd)


def _explain_move(error: OSError, source: Target, destination: Target) -> ToolError:
    match error.errno:
        case errno.EEXIST:
            return FileProblem(destination.asked, f"exists already; {NOTHING_CHANGED}")
        case errno.EXDEV:
            return FileProblem(
                source.asked,
                f"cannot be moved to {shown(destination.asked)}, which is on another file system; write it "
                f"there and delete it here instead. {NOTHING_CHANGED.capitalize()}",
            )
        case errno.EINVAL:
            return FileProblem(source.asked, f"cannot be moved into itself; {NOTHING_CHANGED}")
    return explain(error, source.asked, then=NOTHING_CHANGED)

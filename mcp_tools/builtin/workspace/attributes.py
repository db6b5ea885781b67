"""What a replaced file keeps of the old one: owner, group, mode, access list, user attributes.

Not kept: the times (the content is new), set-user-id and set-group-id bits and capabilities (they
vouched for the old content), and hard links (the other names keep the old content, on purpose).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

ACCESS_LIST: Final = "system.posix_acl_access"
_UNSUPPORTED: Final = (errno.ENOTSUP, errno.ENODATA, errno.ENOSYS, errno.EINVAL)


def copy_attributes(old_fd: int, new_fd: int) -> list[str]:
    """Give the new, still empty file what the old one has.

    Returns:
        What could not be kept, in words; never something that opens the file to more people.
    Raises:
        OSError: The access list could not be kept.
    """
    old, new = os.fstat(old_fd), os.fstat(new_fd)
    mode = stat.S_IMODE(old.st_mode) & 0o777
    notes = []
    if old.st_gid != new.st_gid and not _chown(new_fd, -1, old.st_gid):
        mode &= ~0o070  # the rights were meant for another group
        notes.append(f"its group {old.st_gid} could not be kept, so the group's rights were dropped")
    if old.st_uid != new.st_uid and not _chown(new_fd, old.st_uid, -1):
        notes.append(f"its owner {old.st_uid} could not be kept; it now belongs to the server's user")
    if hasattr(os, "listxattr"):
        notes += _copy_extended(old_fd, new_fd)
    os.fchmod(new_fd, mode)
    return notes


def _chown(fd: int, uid: int, gid: int) -> bool:
    try:
        os.fchown(fd, uid, gid)
    except OSError:
        return False
    return True


def _copy_extended(old_fd: int, new_fd: int) -> list[str]:
    try:
        names = os.listxattr(old_fd)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return []
        raise
    if ACCESS_LIST in names:
        os.setxattr(new_fd, ACCESS_LIST, os.getxattr(old_fd, ACCESS_LIST))
    elif ACCESS_LIST in os.listxattr(new_fd):  # inherited from the folder's default list
        os.removexattr(new_fd, ACCESS_LIST)
    lost = []
    for name in names:
        if name.startswith("user."):
            try:
                os.setxattr(new_fd, name, os.getxattr(old_fd, name))
            except OSError:
                lost.append(name)
    return [f"extended attributes that could not be kept: {', '.join(lost)}"] if lost else []

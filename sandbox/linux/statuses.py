"""How a process ended that is not our child, as `wait(2)` would say it."""

from __future__ import annotations

import fcntl
import os
import signal

from sandbox.linux import memory

_PIDFD_GET_INFO = 0xC040FF0B
_INFO_BYTES, _EXIT_CODE_AT, _INFO_EXIT = 64, 60, 1 << 3  # struct pidfd_info, Linux 6.15
_MAX_STATUS = 0xFFFF


def read(pid: int, pidfd: int) -> int | None:
    """What `wait(2)` would say of a process that ended; `None` where it cannot be read.

    It is read from its zombie, or, where somebody waited for that, from the descriptor.
    """
    fields = memory.stat(pid)
    if fields and len(fields) > 49 and fields[0] in {b"Z", b"X"}:
        return int(fields[49])
    info = bytearray(_INFO_EXIT.to_bytes(_INFO_BYTES, "little"))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    if not int.from_bytes(info[:8], "little") & _INFO_EXIT:
        return None
    return int.from_bytes(info[_EXIT_CODE_AT:], "little")


def believable(said: object) -> int:
    """A status that user code may have made up: whoever did not come through never ended well."""
    if type(said) is int and 0 < said <= _MAX_STATUS:
        left = os.WIFEXITED(said) and os.WEXITSTATUS(said) != 0
        if left or os.WIFSIGNALED(said):
            return said
    return int(signal.SIGKILL)

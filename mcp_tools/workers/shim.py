"""Stands between the server and one worker, so that the worker's whole tree of processes can be ended.

Run as a script by the server: one process for each worker. It adopts what the worker leaves behind
(on Linux), so nothing that a function started can get out of its reach, whichever group or session it is
in. When the server says so, when the server ends, or when the worker ends, it kills all of them, and ends
itself only when none is left: its end is the proof. Standard library only, and little of that.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds for each worker
if TYPE_CHECKING:
    from typing import NoReturn

WORKER_FD = 3
"""Where the worker finds its channel to the server."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_AGAIN_MS, _SLOWLY_MS = 2, 200
_TOLD_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(control_fd: int, calls_fd: int, server: int, command: list[str]) -> NoReturn:
    """Start the worker, wait for an end, and make it everybody's.

    Args:
        control_fd: A socket: anything that comes, and its end, means that the worker has to go. What
            became of the worker goes out.
        calls_fd: The worker's own channel to the server.
        server: Process id of the server.
        command: What the worker executes.
    """
    control = socket.socket(fileno=control_fd)
    for fd in (control_fd, calls_fd):
        os.set_inheritable(fd, False)
    wake = _wake_on_signals()
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    poll = select.poll()
    poll.register(control_fd, select.POLLIN)
    poll.register(wake, select.POLLIN)
    server_end = _end_of(server)
    if server_end is not None:
        poll.register(server_end, select.POLLIN)
    worker = 0
    if os.getppid() == server:  # else it ended before we could watch it
        worker = os.fork()
        if worker == 0:
            _be_worker(calls_fd, command)
    os.close(calls_fd)

    status: int | None = None
    while worker and status is None:
        ready = {fd for fd, _ in poll.poll()}
        if ready - {wake} or _is_told_to_end(wake):
            break
        status, _ = _reap(worker)
    if worker:
        end_tree(worker, wake)
    try:
        control.send(json.dumps({"status": status}).encode())
    finally:  # also where the server is gone
        os._exit(0)


def end_tree(worker: int, wake: int) -> None:
    """Kill all our children until there is none. Children of those become ours as they die."""
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    pause_ms = _AGAIN_MS
    while True:
        if (
            sys.platform != "linux"
        ):  # nothing becomes ours there: what stayed in its group is all we can reach
            _kill_group(worker)
        for pid in children() or [worker]:
            _kill(pid)
        if not _reap(worker)[1]:
            return
        if not poll.poll(pause_ms):
            pause_ms = min(pause_ms * 2, _SLOWLY_MS)  # one that a disk or another user's rights keep
        _is_told_to_end(wake)


def children() -> list[int]:
    """Our children. The list may lack some that were born meanwhile."""
    own = os.getpid()
    try:
        with open(f"/proc/self/task/{own}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        pass  # no Linux, or a kernel without that list
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(name) == own]
    except OSError:
        return []


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _kill(pid: int) -> None:
    """Kill a child with its group. It is not reaped yet, so its number is nobody else's."""
    try:
        _kill_group(os.getpgid(pid))
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it ended; or runs with the rights of another user, and is not ours to end


def _kill_group(group: int) -> None:
    """Kill a whole group at once, also those in it that are just forking. Never our own."""
    if group != os.getpgrp():
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def _reap(worker: int) -> tuple[int | None, bool]:
    """Take leave of children that ended. Returns the worker's status, and whether children are left."""
    status = None
    while True:
        try:
            pid, found = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if pid == 0:
            return status, True
        if pid == worker:
            status = os.waitstatus_to_exitcode(found)


def _be_worker(calls_fd: int, command: list[str]) -> NoReturn:
    try:
        parent = os.getppid()
        os.setsid()
        if sys.platform == "linux":
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        if calls_fd == WORKER_FD:
            os.set_inheritable(calls_fd, True)
        else:
            os.dup2(calls_fd, WORKER_FD)
        os.execv(command[0], command)  # noqa: S606 - the server's own interpreter
    except BaseException as error:
        os.write(2, f"the worker cannot be started: {error}\n".encode())
    os._exit(127)


def _wake_on_signals() -> int:
    """Return a descriptor that can be read once a child ended or we are told to end."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_TOLD_TO_END):
        signal.signal(number, lambda *_: None)
    return reader


def _is_told_to_end(wake: int) -> bool:
    try:
        return any(number in _TOLD_TO_END for number in os.read(wake, 4096))
    except BlockingIOError:
        return False


def _end_of(pid: int) -> int | None:
    """A descriptor that can be read once `pid` ended, where there is such a thing.

    Elsewhere the end of the control socket has to do, which a fork of the server may hold open.
    """
    if sys.platform == "linux":
        try:
            return os.pidfd_open(pid)
        except OSError:
            return None
    return None


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), *(ctypes.c_ulong(0),) * 3)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])

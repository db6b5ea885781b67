"""Behind the outer wall: one process waits for the end, the other is the zygote.

The reaper waits for the server's end or the zygote's; when it goes, the kernel ends everything in the
namespaces, at once and whatever state it is in. That the zygote is not pid 1 itself also keeps its pid
different from the children's: OpenSSL notices a fork by the pid, and would give every child the same random
bytes.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys

from sandbox.linux import libc, tree, walls, wire, zygote

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from typing import NoReturn

    from sandbox.linux.outer import Start


def serve(level: int, start: Start) -> NoReturn:
    """Fork the zygote and be its reaper."""
    graves, undertaker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        graves.close()
        _be_zygote(level, start, undertaker)
    start.control.close()
    start.launcher.close()
    undertaker.close()
    _reap(child, start, graves)


def _reap(child: int, start: Start, graves: socket.socket) -> NoReturn:
    """Wait for the first of: the zygote ends, the server ends, the server lets go. Then end, and so all the
    rest.

    Meanwhile let go of the mount namespaces of children that ended, which is slow and would hold up the
    zygote.
    """
    poll = select.poll()
    zygote_end = os.pidfd_open(child)
    for fd, event in (
        (zygote_end, select.POLLIN),
        (start.server, select.POLLIN),
        (start.lifeline, select.POLLHUP),
    ):
        poll.register(fd, event)
    poll.register(graves, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll(1000)}
        if ready - {graves.fileno()}:
            if os.getpid() != 1:  # L2: nothing goes by itself; the children go with the zygote
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            os._exit(0)
        if ready:
            for fd in wire.receive(graves)[1]:
                os.close(fd)
        _reap_orphans(child)


def _reap_orphans(child: int) -> None:
    """As pid 1 the reaper inherits what outlived its parent; the zygote is not among them."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == child:
            return
        os.waitpid(found.si_pid, 0)


def _be_zygote(level: int, start: Start, undertaker: socket.socket) -> NoReturn:
    spec = start.spec
    status = 0
    try:
        if level < 4:
            libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
            os.makedirs(spec["scratch"], 0o711)
            os.chmod(spec["scratch"], 0o711)  # noqa: S103 - children may pass through it, and list nothing
            # Inside bubblewrap a plan is made of what is there, which is what was planned outside.
            packages = [tree.inside(path) if level == 3 else path for path in spec["packages"]]
            spec["sources"] = tree.plan(packages, network=spec["network"])
        if level == 4:
            libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
            libc.mount(
                "tmpfs",
                walls.TMP,
                "tmpfs",
                libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC,
                "size=64m,nr_inodes=4k",
            )
        spec["cache"] = f"{spec['scratch']}/cache" if level == 2 else tree.CACHE
        if level == 2:
            os.mkdir(spec["cache"])
        zygote.Zygote(spec, start.control, start.slots, level, start.succeeded, undertaker).run()
    except BaseException as error:
        status = 3
        try:
            start.failed(error)
        except OSError:
            print(f"sandbox: {type(error).__name__}: {error}", file=sys.stderr)
    os._exit(status)

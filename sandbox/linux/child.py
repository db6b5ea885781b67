"""A child's life: through the walls while it is idle, then one request."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time

from sandbox.linux import landlock, libc, removal, runner, seccomp, tree, walls
from sandbox.linux import session as sessions

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from sandbox.linux.cgroups import Slot
    from sandbox.linux.wire import Message

CALLS_FD, PROCESSES_FD, COUNTER_FD = 4, 6, 7
_AT_ONCE = 1000  # files and folders that are deleted while others wait: 10 ms
_OWN_OF_SESSION = 3  # processes: its init, its template, its caller
_OWN_OF_ZYGOTE = 16  # itself, the reaper, and those that are about to go
READY, FAILED = b"R", b"E"


def can_keep_state(level: int) -> bool:
    """Whether a session can go back to the state before a call: its init must be able to end processes."""
    return level == 4 or (level == 3 and landlock.scopes_signals())


def seccomp_program(spec: Message, level: int) -> bytes:
    """The filter of every child of this zygote; `for_pid` fills in the pid that it may signal."""
    alone = can_keep_state(level)
    return seccomp.build(
        fork=level > 2,
        network=spec["network"],
        metadata=level == 4,
        own_sessions=level == 4,
        signal_only_pid=None if alone else seccomp.PID_TO_COME,
    )


class WalledInit(sessions.Init):
    """Init of a session. It may write to files of `/proc`; the code, behind one more wall, may not.

    `is_counted`: its cgroup counts CPU time, which init reads from `COUNTER_FD`.
    """

    def __init__(
        self,
        *arguments: Any,
        by_session: bool,
        is_counted: bool,
        rules: list[tuple[str, int]],
        program: bytes,
        network: bool,
    ) -> None:
        super().__init__(*arguments, by_session=by_session)
        self._is_counted = is_counted
        if is_counted:
            from sandbox.linux.cgroups import (
                used_ns,
            )  # loaded already; where there is no slot nobody needs it

            self._used_ns = used_ns
        self._rules, self._program, self._network = rules, program, network

    def _counted_ns(self) -> int:
        return self._used_ns(COUNTER_FD) - time.process_time_ns() if self._is_counted else 0

    def _wall_in(self) -> None:
        try:
            if self._is_counted:
                os.close(COUNTER_FD)
            landlock.restrict(self._rules, network=self._network)
            seccomp.install(self._program)
        except BaseException:
            os._exit(4)  # no word of it, so init ends too

    def _shut_in(self) -> None:
        seccomp.install(self._program)


def live(
    spec: Message,
    level: int,
    program: bytes,
    channel: socket.socket,
    streams: tuple[int, int],
    slot: Slot | None,
    *,
    session: bool,
    keeps_state: bool,
    rehearses: bool,
) -> NoReturn:
    """Lock this process down, say so, and serve one call, or all calls of a session. Never returns."""
    try:
        allowed = _enter(
            spec,
            level,
            program,
            channel,
            streams,
            slot,
            session=session,
            lists_processes=session and keeps_state,
            rehearses=rehearses,
        )
        served = socket.socket(fileno=3)
        if session and not keeps_state:
            served.send(READY)
            sessions.serve_in_place(served, socket.socket(fileno=CALLS_FD), spec["session_idle_s"])
        if session:
            idle_s, cpu_ns = spec["session_idle_s"], spec["limits"]["cpu_ns"]
            WalledInit(
                served,
                socket.socket(fileno=CALLS_FD),
                idle_s,
                cpu_ns,
                PROCESSES_FD,
                by_session=level == 3,
                is_counted=slot is not None,
                rules=allowed,
                program=program,
                network=spec["network"],
            ).serve()
        served.send(READY)
        runner.serve_one(served)
    except BaseException as error:
        _fail(channel, error)
    os._exit(4)


def _fail(channel: socket.socket, error: BaseException) -> None:
    """Say which wall could not be put up."""
    for fd in (channel.fileno(), 3):
        try:
            os.write(fd, FAILED + f"{type(error).__name__}: {error}".encode())
        except OSError:
            continue
        return


def clean(spec: Message, level: int, pid: int) -> None:
    """Remove what a child leaves where it has no mounts of its own."""
    if level == 4:
        return
    folder = scratch(spec, pid)
    if removal.remove(folder, most=_AT_ONCE):
        return
    # So much that calls would wait for it: somebody else does it, whose parent is not the zygote.
    helper = os.fork()
    if helper == 0:
        try:
            if os.fork() == 0:
                libc.close_range(0)
                removal.remove(folder)
        finally:
            os._exit(0)
    os.waitpid(helper, 0)


def scratch(spec: Message, pid: int) -> str:
    """L2, L3: the folder of the child `pid`; its name cannot be guessed by another."""
    return f"{spec['scratch']}/{pid}"


def _enter(
    spec: Message,
    level: int,
    program: bytes,
    channel: socket.socket,
    streams: tuple[int, int],
    slot: Slot | None,
    *,
    session: bool,
    lists_processes: bool,
    rehearses: bool,
) -> list[tuple[str, int]]:
    """Go through every wall; returns what Landlock lets code do. Afterwards 0 to 3 are stdin, stdout, stderr
    and the channel, and nothing else is open.

    Of a session also `CALLS_FD`, where its calls come from, and `PROCESSES_FD`: its init may list processes;
    code may not everywhere, and does not inherit it; and with a slot `COUNTER_FD`, its clock, also for init
    alone. For init's last walls see `WalledInit`.
    """
    walls.ordinary_signals()
    if slot is not None:
        slot.enter()
    limits = spec["limits"]
    base = walls.TMP
    if level == 4:
        # Lost when a root server changed its user; /proc/self would be root's without it.
        libc.prctl(libc.PR_SET_DUMPABLE, 1)
        outer_id = os.getuid()
        walls.private_folders(limits)
        walls.own_user(outer_id)
    else:
        base = scratch(spec, os.getpid())
        walls.leave_with_parent()
    walls.working_folders(base)
    if level == 2:
        walls.unused_user(base)
    if level > 2 or not spec["cwd"]:
        os.chdir(spec["cwd"] or f"{base}/work")
    if level < 4:
        name_folders(base)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    processes = [os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)] if lists_processes else []
    counter = [slot.cpu_fd] if processes and slot is not None else []
    walls.only_descriptors((null, null, null, channel.fileno(), *streams, *processes, *counter))
    walls.bound(limits, processes=_processes(spec, level), cgroup=slot is not None)
    if session and level == 3:
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)  # dead templates would count until pid 1 sees them
    runner.use_streams()
    folders = _open_folders(spec) if level == 2 else {}
    if spec["cwd"] in folders:
        os.fchdir(folders[spec["cwd"]])
    allowed = rules(spec, level, base, folders)
    own = [("/proc", landlock.OVERWRITE)] if lists_processes else []
    filtered = None if lists_processes else seccomp.for_pid(program, os.getpid())
    walls.confine([*allowed, *own], filtered, network=spec["network"])
    for fd in folders.values():
        os.close(fd)
    if rehearses:
        runner.rehearse()
    if not session:
        os.dup2(CALLS_FD, 1)
        os.dup2(CALLS_FD + 1, 2)
        os.close(CALLS_FD)
    os.close(CALLS_FD + 1)
    _own_randomness()
    return allowed


def _processes(spec: Message, level: int) -> int | None:
    """What the kernel may let this child's user have: at L3 all children are one user to it."""
    each = int(spec["limits"]["processes"])
    if level == 3:
        calls = int(spec["running"]) + int(spec["sessions"])
        return calls * (each + _OWN_OF_SESSION) + int(spec["pool"]) + _OWN_OF_ZYGOTE
    if level == 2 and os.getuid() < walls.FIRST_UNUSED_ID:
        return None
    return each


def name_folders(base: str) -> None:
    """Tell the code where its folders are. What the zygote set already stays: setting it costs pages."""
    runner.OUT = f"{base}/out"
    names = {"HOME": base, "TMPDIR": base, "SANDBOX_OUT": runner.OUT}
    if "matplotlib" not in sys.modules:  # preloaded, it has its cache, where this process cannot write
        names["MPLCONFIGDIR"] = f"{base}/.matplotlib"
    for name, value in names.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _open_folders(spec: Message) -> dict[str, int]:
    """L2: the folders of the host, which stay where they are. A descriptor stays what it was when checked."""
    opened = {}
    for source, target, _, device, inode in spec["mounts"]:
        fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != (device, inode):
            raise OSError(errno.ESTALE, walls.ANOTHER_FOLDER, source)
        opened[target] = fd
    return opened


def rules(spec: Message, level: int, base: str, opened: dict[str, int]) -> list[tuple[str, int]]:
    """What Landlock lets a child touch; `opened`: folders of the host that no mount puts at their target."""
    readable = ["/"]
    if level < 4:
        readable = [*spec["sources"], spec["cache"], f"/proc/{os.getpid()}"]
    devices = [f"/dev/{name}" for name in tree.DEVICES]
    return [
        *((path, landlock.EXECUTE) for path in readable),
        (base, landlock.WRITE),
        *(
            (
                f"/proc/self/fd/{opened[target]}" if target in opened else target,
                landlock.WRITE if writable else landlock.EXECUTE,
            )
            for _, target, writable, _, _ in spec["mounts"]
        ),
        *((path, landlock.WRITE) for path in devices),
    ]


def _own_randomness() -> None:
    """Python reseeds `random` after a fork; NumPy's global generator would be the same in every child."""
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()

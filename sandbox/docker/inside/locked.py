"""What a process does inside a container before it may run code: the inner walls of a call.

The container is the outer wall, and is the same for the agent and the code, user included. So here the code
loses what would let it reach the agent: signals, descriptors, and files that are not its own.
"""

from __future__ import annotations

import os

from sandbox.linux import landlock, libc, runner, seccomp, walls

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from sandbox.linux.wire import Message

READY, FAILED = b"R", b"E"
_REASON_CHARS = 1000
_FAR_MORE = 8
CHANNEL_FD, CALLS_FD, PROCESSES_FD = 3, 4, 5
_DEVICES = ("null", "zero", "full", "random", "urandom", "shm")
_FIRST_TO_END = "1000"  # of all processes, when the kernel looks for memory


def name_folders(base: str) -> None:
    """Tell the code where its folders are."""
    runner.OUT = f"{base}/out"
    os.environ.update({"HOME": base, "TMPDIR": base, "SANDBOX_OUT": runner.OUT})
    os.environ["MPLCONFIGDIR"] = f"{base}/.matplotlib"


def enter(setup: Message, *, limits_memory: bool, limits_processes: bool, protected: tuple[int, ...]) -> None:
    """Go through every inner wall. Only descriptors that this process is to keep may be open.

    Args:
        setup: What the server said.
        limits_memory: Whether the container's cgroup bounds memory; else each process has its own bound.
        limits_processes: Whether it bounds processes; else the kernel refuses far more than the agent lets
            be, so that it can end them.
        protected: The processes that may not be signalled.
    Raises:
        OSError: A wall could not be put up.
    """
    walls.ordinary_signals()
    # Taken away from the agent, and inherited from it; /proc/self would be root's.
    libc.prctl(libc.PR_SET_DUMPABLE, 1)
    first_to_end()
    walls.leave_with_parent()
    base = setup["folder"]
    walls.working_folders(base)
    os.chdir(setup["cwd"] or f"{base}/work")
    most = None if limits_processes else _processes_of_user() + _FAR_MORE * setup["limits"]["processes"]
    walls.bound(setup["limits"], processes=most, cgroup=limits_memory)
    runner.use_streams()
    if _has_capabilities():
        libc.drop_capabilities()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    if landlock.abi():
        landlock.restrict(_rules(setup, base), network=setup["network"])
    seccomp.install(
        seccomp.build(
            fork=True,
            network=setup["network"],
            metadata=True,
            own_sessions=True,
            protected_pids=protected,
        )
    )
    runner.rehearse()


def _processes_of_user() -> int:
    """Those of ours and of others; the kernel counts them together."""
    own, count = os.getuid(), 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == own:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue  # it ended
    return count


def first_to_end() -> None:
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # a kernel of its own, such as gVisor's, ends processes by another rule
    try:
        os.write(fd, _FIRST_TO_END.encode())
    finally:
        os.close(fd)


def reason(error: BaseException) -> str:
    """Which wall could not be put up."""
    return f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace").decode()[:_REASON_CHARS]


def _has_capabilities() -> bool:
    sets = status_words("CapInh", "CapPrm", "CapEff", "CapAmb")
    return any(int(each, 16) for each in sets.values())


def status_words(*names: str) -> dict[str, str]:
    """Chosen lines of this process's `/proc/self/status`, those that there are."""
    found = {}
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, text = line.partition(":")
            if name in names:
                found[name] = text.split()[0]
    return found


def _rules(setup: Message, base: str) -> list[tuple[str, int]]:
    wanted = [
        ("/", landlock.EXECUTE),
        (base, landlock.WRITE),
        *(
            (path, landlock.WRITE if writable else landlock.EXECUTE)
            for path, _, _, writable in setup["mounts"]
        ),
        *((f"/dev/{name}", landlock.WRITE) for name in _DEVICES),
    ]
    return [(path, access) for path, access in wanted if os.path.exists(path)]

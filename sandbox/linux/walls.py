"""What a child does before it may run code, in the order that makes it safe. Nothing here is undone.

At L4 the zygote forks each child into a pid namespace of its own; everything else a child does by itself,
while it is idle, so that no call waits for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal

from sandbox.linux import landlock, libc

INNER_ID = 1000  # user and group of the code inside its namespaces
FIRST_UNUSED_ID = 0x70000000  # from here to 0x7FFFFFFF no distribution or container manager gives out ids
TMP = "/tmp"  # noqa: S108 - the child's own
ANOTHER_FOLDER = "it is another folder now than when the sandbox was made"
WORK = "/work"  # where `working_dir` is mounted
OWN_NAMESPACES = libc.CLONE_NEWNS | libc.CLONE_NEWUTS | libc.CLONE_NEWCGROUP
_SMALLEST_RANGE = 8192  # users of a container: above those that its distribution gives out
_CPU_GRACE_S = 2  # the kernel counts whole seconds; ours is the exact limit


def private_folders(limits: dict[str, int]) -> None:
    """L4: own mounts, before the user namespace: only here may the process mount `/proc`.

    Raises:
        OSError: A step was refused; its `filename` names the step.
    """
    libc.unshare(OWN_NAMESPACES, "CLONE_NEWNS|NEWIPC|NEWUTS|NEWCGROUP")
    flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
    size = f"size={limits['disk_bytes']},nr_inodes={limits['files']},mode=700"
    libc.mount("tmpfs", TMP, "tmpfs", flags, size)
    libc.mount("proc", "/proc", "proc", flags, "subset=pid")


def own_user(outer_id: int) -> None:
    """L4: a user namespace of the child's own: its processes are counted by themselves.

    `outer_id` is the child's user and group in the zygote's namespace.
    """
    libc.unshare(libc.CLONE_NEWUSER, "CLONE_NEWUSER")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INNER_ID} {outer_id} 1"),
        ("gid_map", f"{INNER_ID} {outer_id} 1"),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, text.encode())
        os.close(fd)


def working_folders(base: str) -> None:
    for folder in (base, f"{base}/work", f"{base}/out", f"{base}/.shm"):
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass


def bound(limits: dict[str, int], *, processes: int | None, cgroup: bool) -> None:
    """Resource limits of each process; with a cgroup, the whole call's memory is bounded there instead.

    `processes` is for all that the kernel counts together with the caller: those of its user, in its user
    namespace. `None`: others that we know nothing of would count, too.
    """

    def limit(what: int, value: int) -> None:
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))

    # 1, not 0: a host's crash handler behind a pipe is started in spite of 0, but not at 1 (core(5)).
    limit(resource.RLIMIT_CORE, 1)
    limit(resource.RLIMIT_NOFILE, limits["open_files"])
    limit(resource.RLIMIT_FSIZE, limits["disk_bytes"])
    if processes is not None:
        limit(resource.RLIMIT_NPROC, processes)
    limit(resource.RLIMIT_MEMLOCK, 0)
    limit(resource.RLIMIT_MSGQUEUE, 0)
    limit(resource.RLIMIT_NICE, 0)
    limit(resource.RLIMIT_RTPRIO, 0)
    limit(resource.RLIMIT_SIGPENDING, 256)
    if limits["cpu_s"]:
        limit(resource.RLIMIT_CPU, limits["cpu_s"] + _CPU_GRACE_S)
    if not cgroup:
        mapped = int(_read("/proc/self/statm").split()[0]) * resource.getpagesize()
        limit(resource.RLIMIT_AS, mapped + limits["memory_bytes"])


def only_descriptors(descriptors: tuple[int, ...]) -> None:
    """Keep `descriptors` as 0, 1, 2, … and close every other; a program that is executed inherits 0 to 2."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in descriptors]
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < 3)
    libc.close_range(len(descriptors))


def leave_with_parent() -> None:
    """L2, L3: end when the zygote does, and be the leader of a session that nothing of the call can leave."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()


def _read(path: str) -> bytes:
    """A small file, without the objects of `open`: they cost each child a fifth of a millisecond."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 16 * 1024)  # 340 lines of a map, at most
    finally:
        os.close(fd)


def unused_id() -> int:
    """A user and group that own nothing, another for each process; inside a container one that it has."""
    wanted = FIRST_UNUSED_ID + os.getpid()
    lines = _read("/proc/self/uid_map").splitlines()
    ranges = [(int(first), int(count)) for first, _, count in map(bytes.split, lines)]
    if any(first <= wanted < first + count for first, count in ranges):
        return wanted
    first, count = max(ranges, key=lambda each: each[1])
    if count < _SMALLEST_RANGE:
        raise OSError(errno.EINVAL, f"only {count} users exist in this user namespace", "uid_map")
    return (
        first + count - _SMALLEST_RANGE + os.getpid() % (_SMALLEST_RANGE // 2)
    )  # below "nobody", at the end


def unused_user(base: str) -> None:
    """L2: where the server is root, become a user that owns nothing but `base`."""
    if os.getuid() != 0:
        return
    nobody = unused_id()
    for folder in (base, f"{base}/work", f"{base}/out", f"{base}/.shm"):
        os.chown(folder, nobody, nobody)
    os.setgroups([])
    os.setresgid(nobody, nobody, nobody)
    os.setresuid(nobody, nobody, nobody)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)  # changing the user cleared it


def confine(rules: list[tuple[str, int]], seccomp_program: bytes | None, *, network: bool) -> None:
    """The last step: no capability, no way to gain any, Landlock, and then our list of system calls.

    Without a list the caller is to install it before any code runs.
    """
    from sandbox.linux import seccomp

    libc.drop_capabilities()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    landlock.restrict(rules, network=network)
    if seccomp_program is not None:
        seccomp.install(seccomp_program)


def ordinary_signals() -> None:
    """What an interpreter expects; the zygote waits for its children with other settings."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)

"""The outer wall of each level, made once; children make their own inside it (walls.py)."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys

from sandbox.linux import landlock, libc, reaper, removal, tree, walls, wire

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from typing import NoReturn

    from sandbox.linux.cgroups import Slot
    from sandbox.linux.wire import Message

SCRATCH_PREFIX = "mcp-sandbox-"
_CACHE_BYTES = 64 << 20  # what preloaded modules may write
_BUBBLEWRAP = ("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap")
_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_INSIDE = (
    "import sys; sys.path.append(sys.argv[1]); from sandbox.linux import outer; sys.path.pop(); "
    "outer.inside(*map(int, sys.argv[2:]))"
)
_OUTER = libc.CLONE_NEWUSER | libc.CLONE_NEWPID | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS | libc.CLONE_NEWCGROUP


class Start:
    """What a process needs that starts a zygote.

    Args:
        spec: From `Plan.message`.
        control: To the server.
        lifeline: Read end of a pipe that the server keeps open as long as it wants us.
        server: Descriptor of the server's process.
        slots: Cgroup slots, one for each child; none without a cgroup.
    """

    def __init__(
        self, spec: Message, control: socket.socket, lifeline: int, server: int, slots: list[Slot]
    ) -> None:
        self.spec = spec
        self.control = control
        self.lifeline = lifeline
        self.server = server
        self.slots = slots
        self.launcher: socket.socket  # to say how it went; of the attempt that this is for

    def failed(self, error: BaseException) -> None:
        """Tell the launcher which step was refused, and why."""
        step, code, text = type(error).__name__, 0, str(error)
        if isinstance(error, OSError):
            step = error.filename if isinstance(error.filename, str) else step
            code, text = error.errno or 0, error.strerror or text
        # What is wrong with the configuration is wrong at every level: none but the strongest is tried.
        everywhere = isinstance(error, ImportError) or code in {errno.ESTALE, errno.ENOTDIR}
        wire.send(self.launcher, {"failed": step, "errno": code, "text": text, "everywhere": everywhere})

    def succeeded(self) -> None:
        """Tell the launcher that the first child is behind its walls."""
        wire.send(self.launcher, {"ok": True})

    def ask(self, request: Message) -> Message:
        """Have the launcher do something that only it can, and wait for it."""
        wire.send(self.launcher, request)
        answer, _ = wire.receive(self.launcher)
        if answer is None or "failed" in answer:
            raise OSError(errno.EPERM, str(answer), "uid_map")
        return answer


def namespaces(start: Start) -> None:
    """L4: the outer namespaces, the tree, the reaper, the zygote."""
    spec = start.spec
    outer = _OUTER | (0 if spec["network"] else libc.CLONE_NEWNET)
    sources = tree.plan(spec["packages"], network=spec["network"])
    if os.getuid() == 0:
        # Built as root, because the interpreter may be where only root can look; then root is given up for
        # good.
        unused_id = walls.unused_id()
        libc.unshare(libc.CLONE_NEWNS, "CLONE_NEWNS")
        tree.build(sources, _mounts(spec, unused_id), links=list(spec["links"]))
        os.setgroups([])  # inside the namespace it is too late: root's groups would stay
        libc.unshare(outer | libc.CLONE_NEWNS, "CLONE_NEWUSER|NEWPID|NEWNET|…")
        start.ask({"map": unused_id})
        os.setresgid(walls.INNER_ID, walls.INNER_ID, walls.INNER_ID)
        os.setresuid(walls.INNER_ID, walls.INNER_ID, walls.INNER_ID)
    else:
        user, group = os.getuid(), os.getgid()
        libc.unshare(outer | libc.CLONE_NEWNS, "CLONE_NEWUSER|NEWPID|NEWNET|…")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{walls.INNER_ID} {user} 1"),
            ("gid_map", f"{walls.INNER_ID} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        tree.build(sources, _mounts(spec, 0), links=list(spec["links"]))
    socket.sethostname("sandbox")
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)  # of the launcher: nobody else would clean up
    if first := os.fork():
        start.launcher.close()
        start.control.close()
        os.waitpid(first, 0)
        os._exit(0)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    reaper.serve(4, start)


def _mounts(spec: Message, unused_id: int) -> list[tuple[int, str, bool, int]]:
    """The folders of the host, opened in this mount namespace; each must be the one the server opened."""
    opened = []
    for source, target, writable, device, inode in spec["mounts"]:
        fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != (device, inode):
            raise OSError(errno.ESTALE, walls.ANOTHER_FOLDER, source)
        opened.append((fd, target, writable, _owner_map(found, unused_id) if unused_id else 0))
    return opened


def _owner_map(owner: os.stat_result, unused_id: int) -> int:
    """Descriptor of a user namespace in which the folder's owner is the sandbox's user.

    So a root server's sandbox, which runs as a user that owns nothing, acts as the owner in that folder only.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    holder = os.fork()
    if holder == 0:
        try:
            libc.unshare(libc.CLONE_NEWUSER, "CLONE_NEWUSER")
            os.write(write_end, b"+")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write_end)
    try:
        if os.read(read_end, 1) != b"+":
            raise OSError(
                errno.EPERM, "no user namespace to map the owner of a mounted folder", "CLONE_NEWUSER"
            )
        for name, number in (("uid_map", owner.st_uid), ("gid_map", owner.st_gid)):
            with open(f"/proc/{holder}/{name}", "w", encoding="ascii") as file:
                file.write(f"{number} {unused_id} 1")
        return os.open(f"/proc/{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(read_end)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


def bubblewrap(start: Start) -> None:
    """L3: let bubblewrap make the outer wall, where a profile of the host allows that to it alone."""
    program = next((path for path in _BUBBLEWRAP if os.access(path, os.X_OK)), None)
    if program is None:
        raise OSError(errno.ENOENT, "bubblewrap is not installed", "bwrap")
    sources = tree.plan(start.spec["packages"], network=start.spec["network"])
    inherited = (start.control.fileno(), start.lifeline, start.server, start.launcher.fileno())
    for fd in inherited:
        os.set_inheritable(fd, True)
    if os.getuid() == 0:
        _check_readable_by_others([*sources, _PACKAGE_PARENT])
        _become_nobody(walls.unused_id())
    argv = bubblewrap_argv(program, start.spec, sources)
    python = tree.inside(os.path.realpath(sys.executable))
    argv += [python, "-I", "-S", "-c", _INSIDE, tree.inside(_PACKAGE_PARENT), *map(str, inherited)]
    os.execv(program, argv)  # noqa: S606 - an argument list, without a shell


def bubblewrap_argv(program: str, spec: Message, sources: list[str]) -> list[str]:
    """The outer wall of L3 as bubblewrap is told of it: in order, so that what comes later wins."""
    limits = spec["limits"]
    room = limits["disk_bytes"] * (spec["running"] + spec["pool"] + spec["sessions"])
    argv = [
        program,
        "--unshare-user",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    argv += [] if spec["network"] else ["--unshare-net"]
    argv += ["--uid", str(walls.INNER_ID), "--gid", str(walls.INNER_ID), "--hostname", "sandbox"]
    argv += ["--die-with-parent", "--as-pid-1", "--cap-drop", "ALL"]
    argv += ["--proc", "/proc", "--size", str(room), "--tmpfs", walls.TMP]
    argv += ["--size", str(_CACHE_BYTES), "--tmpfs", tree.CACHE]
    for path in (*sources, f"{_PACKAGE_PARENT}/sandbox"):
        argv += ["--ro-bind", path, tree.inside(path)]
    for link in spec["links"]:
        if os.path.islink(link):
            argv += ["--symlink", os.readlink(link), link]
    for name in tree.DEVICES:
        argv += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for source, target, writable, _, _ in spec["mounts"]:
        argv += ["--bind" if writable else "--ro-bind", source, target]
    return [*argv, "--remount-ro", "/", "--"]


def inside(control_fd: int, lifeline_fd: int, server_fd: int, launcher_fd: int) -> NoReturn:
    """Where bubblewrap started us: pid 1 of its namespaces. Never returns."""
    for fd in (control_fd, lifeline_fd, server_fd, launcher_fd):
        os.set_inheritable(fd, False)
    start = Start({}, socket.socket(fileno=control_fd), lifeline_fd, server_fd, [])
    start.launcher = socket.socket(fileno=launcher_fd)
    start.spec = start.ask({"spec": True})
    for _, target, _, device, inode in start.spec["mounts"]:
        found = os.stat(target)
        if (found.st_dev, found.st_ino) != (device, inode):
            start.failed(OSError(errno.ESTALE, walls.ANOTHER_FOLDER, target))
            os._exit(1)
    reaper.serve(3, start)


def bare(start: Start) -> None:
    """L2: no outer wall; each child's own is all there is."""
    if not landlock.abi():
        raise OSError(errno.ENOSYS, "this kernel has no Landlock, or it is switched off", "landlock")
    for source, target, _, device, inode in start.spec["mounts"]:
        if target not in (source, walls.WORK):
            raise OSError(errno.EOPNOTSUPP, f"{source} cannot be seen as {target} without a mount", "target")
        found = os.stat(source)
        if (found.st_dev, found.st_ino) != (device, inode):
            raise OSError(errno.ESTALE, walls.ANOTHER_FOLDER, source)
    _sweep_scratch()
    if os.getuid() == 0:
        _check_readable_by_others(tree.plan(start.spec["packages"], network=start.spec["network"]))
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)  # of the launcher: nobody else would clean up
    reaper.serve(2, start)


def _check_readable_by_others(sources: list[str]) -> None:
    """A root server's children run as a user that owns nothing: the interpreter must be open to all."""
    for path in sources:
        above = path
        while above != "/":
            if not os.stat(above).st_mode & 0o005:
                raise OSError(
                    errno.EACCES, f"{above} is not readable for others than its owner", "interpreter"
                )
            above = os.path.dirname(above)


def _become_nobody(unused_id: int) -> None:
    os.setgroups([])
    os.setresgid(unused_id, unused_id, unused_id)
    os.setresuid(unused_id, unused_id, unused_id)


def _sweep_scratch() -> None:
    """Remove folders of launchers that were ended before they could; their names tell whose they were."""
    namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    for name in os.listdir(walls.TMP):
        owner, _, rest = name.removeprefix(SCRATCH_PREFIX).partition("-")
        is_ours = name.startswith(SCRATCH_PREFIX) and rest.startswith(f"{namespace}-") and owner.isdigit()
        if is_ours and not os.path.exists(f"/proc/{owner}"):
            removal.remove(f"{walls.TMP}/{name}")

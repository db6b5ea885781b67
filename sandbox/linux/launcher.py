"""From an exec'd interpreter to a zygote behind the strongest outer wall that this host allows.

The launcher stays outside, in the host's namespaces: it maps users, owns the cgroup, and cleans up after the
last process. Below it, at L4:

    launcher ─► reaper (pid 1 of the outer namespaces) ─► zygote (pid 2) ─► children

The reaper waits for the server's end or the zygote's; when it goes, the kernel ends everything in the
namespaces, at once and whatever state it is in. That the zygote is not pid 1 itself also keeps its pid
different from the children's: OpenSSL notices a fork by the pid, and would give every child the same random
bytes.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys

from sandbox.linux import landlock, libc, memory, tree, walls, wire, zygote

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from typing import NoReturn

    from sandbox.linux.cgroups import Home, Slot
    from sandbox.linux.wire import Message

CGROUP_PREFIX = "mcp-sandbox-"
SCRATCH_PREFIX = "mcp-sandbox-"
_END_ROUNDS = 1000
_BUBBLEWRAP = ("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap")
_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_INSIDE = (
    "import sys; sys.path.append(sys.argv[1]); from sandbox.linux import launcher; sys.path.pop(); "
    "launcher.inside(*map(int, sys.argv[2:]))"
)
_OUTER = libc.CLONE_NEWUSER | libc.CLONE_NEWPID | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS | libc.CLONE_NEWCGROUP


class Attempt:
    """What a process that tries a level tells the launcher."""

    def __init__(self, theirs: socket.socket | None = None) -> None:
        if theirs is None:
            self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs = theirs

    def failed(self, step: str, code: int, text: str) -> None:
        wire.send(self.theirs, {"failed": step, "errno": code, "text": text})

    def succeeded(self) -> None:
        wire.send(self.theirs, {"ok": True})

    def ask(self, request: Message) -> Message:
        """Have the launcher do something that only it can, and wait for it."""
        wire.send(self.theirs, request)
        answer, _ = wire.receive(self.theirs)
        if answer is None or "failed" in answer:
            raise OSError(errno.EPERM, str(answer), "uid_map")
        return answer


def main(control_fd: int, lifeline_fd: int, server_pid: int) -> NoReturn:
    """Serve the sandbox until the server is gone. Never returns.

    Args:
        control_fd: `SOCK_SEQPACKET` to the server; the first packet is the specification (spec.py).
        lifeline_fd: Read end of a pipe that the server keeps open as long as it wants us.
        server_pid: The server's own pid, to notice when it is gone before we look.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the server's end is our end, not a key that somebody pressed
    control = socket.socket(fileno=control_fd)
    spec, _ = wire.receive(control)
    if spec is None:
        os._exit(0)
    server = os.pidfd_open(server_pid)
    if os.getppid() != server_pid:
        os._exit(0)
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    tried: list[Message] = []
    home, name, slots = _cgroup(spec, tried)
    status = 1
    try:
        pid = None
        for level in (4, 3, 2):
            if (
                not spec["minimum_level"] <= level + (level == 4 and bool(slots))
                or level > spec["maximum_level"]
            ):
                continue
            pid = _attempt(level, spec, control, lifeline_fd, server, slots if level == 4 else [], tried)
            if pid is not None:
                break
        if pid is None:
            wire.send(control, {"refused": tried})
        else:
            if tried:
                wire.send(control, {"tried": tried})
            control.close()
            _wait_for(pid)
            status = 0
    except OSError as error:
        print(f"sandbox: {error}", file=sys.stderr)
    finally:
        _remove(spec["scratch"])
        if home is not None:
            home.remove(name)
    os._exit(status)


def _cgroup(spec: Message, tried: list[Message]) -> tuple[Home | None, str, list[Slot]]:
    if spec["maximum_level"] < 5:
        return None, "", []
    from sandbox.linux import cgroups

    count = spec["pool"] + spec["running"] + spec["sessions"] + 2
    limits = spec["limits"]
    try:
        home = cgroups.find()
        home.sweep(prefix=CGROUP_PREFIX)
        name = cgroups.owner_name(CGROUP_PREFIX)
        slots = home.make(name, count, memory_bytes=limits["memory_bytes"], processes=limits["processes"])
    except cgroups.NoCgroup as missing:
        tried.append(
            {"level": "L4+", "failed": "cgroup", "errno": 0, "text": missing.reason, "remedy": missing.remedy}
        )
        return None, "", []
    except OSError as error:
        tried.append({"level": "L4+", "failed": "cgroup", "errno": error.errno, "text": str(error)})
        return None, "", []
    return home, name, slots


def _attempt(
    level: int,
    spec: Message,
    control: socket.socket,
    lifeline: int,
    server: int,
    slots: list[Slot],
    tried: list[Message],
) -> int | None:
    """Try one level in a process of its own; return the pid to wait for, `None` if it cannot be had."""
    attempt = Attempt()
    first = os.fork()
    if first == 0:
        attempt.ours.close()
        try:
            {4: _namespaces, 3: _bubblewrap, 2: _bare}[level](spec, control, lifeline, server, slots, attempt)
        except OSError as error:
            step = error.filename if isinstance(error.filename, str) else type(error).__name__
            attempt.failed(step, error.errno or 0, error.strerror or str(error))
        except BaseException as error:
            attempt.failed(type(error).__name__, 0, str(error))
        os._exit(1)
    attempt.theirs.close()
    while True:
        said, _ = wire.receive(attempt.ours)
        if said is None:
            said = {"failed": "bwrap" if level == 3 else "start", "errno": 0, "text": _last_line_of_stderr()}
        if "ok" in said:
            return first
        if "map" in said:
            try:
                _map_users(first, int(said["map"]))
                answer: Message = {"ok": True}
            except OSError as error:
                answer = {"failed": str(error)}
            wire.send(attempt.ours, answer)
            continue
        if "spec" in said:
            wire.send(attempt.ours, spec)
            continue
        tried.append({"level": f"L{level}", **said})
        attempt.ours.close()
        _end_descendants()
        return None


def _namespaces(
    spec: Message, control: socket.socket, lifeline: int, server: int, slots: list[Slot], attempt: Attempt
) -> None:
    """L4: the outer namespaces, the tree, the reaper, the zygote."""
    outer = _OUTER | (0 if spec["network"] else libc.CLONE_NEWNET)
    sources = tree.plan(spec["packages"], network=spec["network"])
    if os.getuid() == 0:
        # Built as root, because the interpreter may be where only root can look; then root is given up for
        # good.
        unused_id = walls.FIRST_UNUSED_ID + os.getpid()
        libc.unshare(libc.CLONE_NEWNS, "CLONE_NEWNS")
        tree.build(sources, _mounts(spec, unused_id), links=list(spec["links"]))
        os.setgroups([])  # inside the namespace it is too late: root's groups would stay
        libc.unshare(outer | libc.CLONE_NEWNS, "CLONE_NEWUSER|NEWPID|NEWNET|…")
        attempt.ask({"map": unused_id})
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
    _reap_and_serve(4, spec, control, lifeline, server, slots, attempt)


def _mounts(spec: Message, unused_id: int) -> list[tuple[int, str, bool, int]]:
    """The folders of the host, opened in this mount namespace; each must be the one the server opened."""
    opened = []
    for source, target, writable, device, inode in spec["mounts"]:
        fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != (device, inode):
            raise OSError(errno.ESTALE, "it is another folder now than when the sandbox was made", source)
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


def _map_users(pid: int, unused_id: int) -> None:
    """Give the namespace of `pid`, which root made, the one user that owns nothing outside."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
            file.write(f"{walls.INNER_ID} {unused_id} 1")


def _reap_and_serve(
    level: int,
    spec: Message,
    control: socket.socket,
    lifeline: int,
    server: int,
    slots: list[Slot],
    attempt: Attempt,
) -> None:
    """Fork the reaper, pid 1 of the namespaces. The calling process waits for it and ends with it."""
    reaper = os.fork()
    if reaper:
        attempt.theirs.close()
        control.close()
        os.waitpid(reaper, 0)
        os._exit(0)
    _fork_zygote(level, spec, control, lifeline, server, slots, attempt)


def _fork_zygote(
    level: int,
    spec: Message,
    control: socket.socket,
    lifeline: int,
    server: int,
    slots: list[Slot],
    attempt: Attempt,
) -> NoReturn:
    """The zygote is a child of this process, which waits for its end or the server's."""
    graves, undertaker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        graves.close()
        _serve(level, spec, control, slots, attempt, undertaker)
    control.close()
    attempt.theirs.close()
    undertaker.close()
    reap(child, lifeline, server, graves)


def reap(child: int, lifeline: int, server: int, graves: socket.socket) -> NoReturn:
    """Wait for the first of: the zygote ends, the server ends, the server lets go. Then end, and so all the
    rest.

    Meanwhile let go of the mount namespaces of children that ended, which is slow and would hold up the
    zygote.
    """
    poll = select.poll()
    zygote_end = os.pidfd_open(child)
    for fd, event in ((zygote_end, select.POLLIN), (server, select.POLLIN), (lifeline, select.POLLHUP)):
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


def _serve(
    level: int,
    spec: Message,
    control: socket.socket,
    slots: list[Slot],
    attempt: Attempt,
    undertaker: socket.socket,
) -> NoReturn:
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
        worker = zygote.Zygote(spec, control, slots, level, attempt.succeeded, undertaker)
        worker.run()
    except BaseException as error:
        status = 3
        try:
            name = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else ""
            attempt.failed(name or type(error).__name__, getattr(error, "errno", None) or 0, str(error))
        except OSError:
            print(f"sandbox: {type(error).__name__}: {error}", file=sys.stderr)
    os._exit(status)


def _bubblewrap(
    spec: Message, control: socket.socket, lifeline: int, server: int, slots: list[Slot], attempt: Attempt
) -> None:
    """L3: let bubblewrap make the outer wall, where a profile of the host allows that to it alone."""
    program = next((path for path in _BUBBLEWRAP if os.access(path, os.X_OK)), None)
    if program is None:
        raise OSError(errno.ENOENT, "bubblewrap is not installed", "bwrap")
    sources = tree.plan(spec["packages"], network=spec["network"])
    inherited = (control.fileno(), lifeline, server, attempt.theirs.fileno())
    for fd in inherited:
        os.set_inheritable(fd, True)
    if os.getuid() == 0:
        _check_readable_by_others([*sources, _PACKAGE_PARENT])
        _become_nobody(walls.FIRST_UNUSED_ID + os.getpid())
    argv = bubblewrap_argv(program, spec, sources)
    python = tree.inside(os.path.realpath(sys.executable))
    argv += [python, "-I", "-S", "-c", _INSIDE, tree.inside(_PACKAGE_PARENT), *map(str, inherited)]
    os.execve(  # noqa: S606 - an argument list, without a shell
        program,
        argv,
        dict(os.environ),
    )


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
    argv += [
        "--proc",
        "/proc",
        "--size",
        str(room),
        "--tmpfs",
        walls.TMP,
        "--size",
        str(64 << 20),
        "--tmpfs",
        tree.CACHE,
    ]
    for path in (*sources, f"{_PACKAGE_PARENT}/sandbox"):
        argv += ["--ro-bind", path, tree.inside(path)]
    for link in spec["links"]:
        if os.path.islink(link):
            argv += ["--symlink", os.readlink(link), link]
    for name in tree.DEVICES:
        argv += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    argv += [
        "--proc",
        "/proc",
        "--size",
        str(room),
        "--tmpfs",
        walls.TMP,
        "--size",
        str(64 << 20),
        "--tmpfs",
        tree.CACHE,
    ]
    for source, target, writable, _, _ in spec["mounts"]:
        argv += ["--bind" if writable else "--ro-bind", source, target]
    return [*argv, "--remount-ro", "/", "--"]


def inside(control_fd: int, lifeline_fd: int, server_fd: int, attempt_fd: int) -> NoReturn:
    """Where bubblewrap started us: pid 1 of its namespaces. Never returns."""
    attempt = Attempt(socket.socket(fileno=attempt_fd))
    control = socket.socket(fileno=control_fd)
    for fd in (control_fd, lifeline_fd, server_fd, attempt_fd):
        os.set_inheritable(fd, False)
    spec = attempt.ask({"spec": True})
    for _, target, _, device, inode in spec["mounts"]:
        found = os.stat(target)
        if (found.st_dev, found.st_ino) != (device, inode):
            attempt.failed(target, errno.ESTALE, "it is another folder now than when the sandbox was made")
            os._exit(1)
    _fork_zygote(3, spec, control, lifeline_fd, server_fd, [], attempt)
    os._exit(1)


def _bare(
    spec: Message, control: socket.socket, lifeline: int, server: int, slots: list[Slot], attempt: Attempt
) -> None:
    """L2: no outer wall; each child's own is all there is."""
    if not landlock.abi():
        raise OSError(errno.ENOSYS, "this kernel has no Landlock, or it is switched off", "landlock")
    _sweep_scratch()
    if os.getuid() == 0:
        _check_readable_by_others(tree.plan(spec["packages"], network=spec["network"]))
    _fork_zygote(2, spec, control, lifeline, server, [], attempt)


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


def _last_line_of_stderr() -> str:
    """What a program that we executed said before it ended; our stderr is a file."""
    try:
        text = os.pread(2, 4000, max(0, os.fstat(2).st_size - 4000)).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    return text.rpartition("\n")[2] or "it ended without a word"


def _wait_for(pid: int) -> None:
    while True:
        try:
            if os.waitpid(pid, 0)[0] == pid:
                break
        except ChildProcessError:
            break
    try:
        while True:
            os.waitpid(-1, 0)  # whatever the subreaper inherited
    except ChildProcessError:
        pass


def _end_descendants() -> None:
    """End a failed attempt and everything it started; what it forked comes to us, the subreaper."""
    for _ in range(_END_ROUNDS):
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    own = os.getpid()
    found = []
    for name in os.listdir("/proc"):
        fields = memory.stat(int(name)) if name.isdigit() else None
        if fields is not None and int(fields[1]) == own:
            found.append(int(name))
    return found


def _sweep_scratch() -> None:
    """Remove folders of launchers that were ended before they could; their names tell whose they were."""
    for name in os.listdir(walls.TMP):
        owner = name.removeprefix(SCRATCH_PREFIX).partition("-")[0]
        if name.startswith(SCRATCH_PREFIX) and owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            _remove(f"{walls.TMP}/{name}")


def _remove(folder: str) -> None:
    if os.path.lexists(folder):
        import shutil  # only below L4 is there anything to remove

        shutil.rmtree(folder, ignore_errors=True)

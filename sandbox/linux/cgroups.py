"""Cgroups: limit and measure all processes of a call together, which no rlimit can.

The launcher finds a cgroup that it may divide (`find`) and makes slots in it (`Home.make`). A slot is a
cgroup with limits and is used for one call after another. It works by descriptors opened at its creation, so
also in a process that left the host's file tree and changed its user: the kernel judges writes to cgroup
files by who opened them. Never leave these descriptors to untrusted code.

Both versions are spoken: 2 where it can limit memory and processes, else 1, where each controller may have a
hierarchy of its own.
"""

from __future__ import annotations

import errno
import os
import time

TYPE_CHECKING = False  # importing `typing` for it would cost milliseconds
if TYPE_CHECKING:
    from collections.abc import Sequence

REMOVE_S = 2.0
TRIAL = "sandbox-trial-"
CONTROLLERS = ("memory", "pids", "cpuacct")  # by their names in version 1; version 2 always counts CPU time
_SPARED_BYTES = 4 * 1024**2  # what the kernel itself keeps for an empty cgroup is less


class NoCgroup(Exception):
    """No cgroup can be used. `reason` names what is missing, `remedy` the setting that provides it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


def find() -> Home:
    """Find a cgroup that limits memory and processes of cgroups made in it, by making one and removing it.

    Version 2 forbids processes beside cgroups with controllers. So where nobody did it yet, the processes
    of our own cgroup are moved into one inside it, `sandbox-server`; only when the cgroup was delegated to
    us or holds nothing but the server and what it started.

    Raises:
        NoCgroup: There is none. Nothing was changed.
    """
    from sandbox.linux.cgroup_find import find_home

    return find_home()


def owner_name(prefix: str) -> str:
    """A new name for cgroups of the calling process; `Home.sweep` sees from it whether that still lives."""
    # Pids of another pid namespace say nothing to us, hence the namespace.
    random = f"{_pid_namespace():x}x{os.urandom(4).hex()}"
    return f"{prefix}{os.getpid()}-{_start_time(os.getpid())}-{random}"


class Home:
    """A cgroup, per controller on version 1, that we may divide. Made by `find`.

    Args:
        version: 1 or 2.
        folders: The folder of the cgroup by controller, each of `CONTROLLERS`.
    """

    def __init__(self, version: int, folders: dict[str, str]) -> None:
        self.version = version
        self._folders = folders
        self._bases = tuple(dict.fromkeys(folders.values()))

    def make(self, name: str, count: int, *, memory_bytes: int, processes: int) -> list[Slot]:
        """Make `count` slots, in folders `<name>/0`, `<name>/1` and so on.

        Args:
            name: New; from `owner_name`, so that a later server can clean up after this one.
            memory_bytes: Of each slot, swap included. At the limit the kernel ends one of its processes.
            processes: Processes and threads of each slot; at the limit fork fails with EAGAIN.

        Raises:
            NoCgroup: A folder or limit was refused. Nothing of `name` is left.
        """
        slots: list[Slot] = []
        try:
            for base in self._bases:
                os.mkdir(f"{base}/{name}")
                if self.version == 2:
                    write_text(f"{base}/{name}/cgroup.subtree_control", "+memory +pids")
            for number in range(count):
                for base in self._bases:
                    os.mkdir(f"{base}/{name}/{number}")
                folders = {each: f"{base}/{name}/{number}" for each, base in self._folders.items()}
                self._limit(folders, memory_bytes, processes)
                slots.append(Slot(self.version, folders))
        except OSError as failure:
            for slot in slots:
                slot.close()
            self.remove(name)
            raise refused(self.version, failure) from failure
        return slots

    def remove(self, name: str) -> None:
        """Kill what is left in the slots of `name` and remove them; can be called again.

        Takes at most `REMOVE_S`: a process that even SIGKILL cannot end keeps its cgroup.
        """
        deadline = time.monotonic() + REMOVE_S
        pause_s = 0.0005
        tops = [f"{base}/{name}" for base in self._bases]
        while tops := [top for top in tops if not removed(top)]:
            for top in tops:
                self._kill(top)
            if time.monotonic() + pause_s > deadline:
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.02)

    def sweep(self, *, prefix: str) -> None:
        """Remove the cgroups whose name is `owner_name(prefix)` of a process that ended without doing it."""
        names = {name for base in self._bases for name in _children(base)}
        for name in names:
            for each in (prefix, TRIAL):
                if name.startswith(each) and _owner_is_gone(name.removeprefix(each)):
                    self.remove(name)

    def _limit(self, folders: dict[str, str], memory_bytes: int, processes: int) -> None:
        write_text(f"{folders['pids']}/pids.max", str(processes))
        memory = folders["memory"]
        if self.version == 1:
            write_text(f"{memory}/memory.limit_in_bytes", str(memory_bytes))
            swap, most = f"{memory}/memory.memsw.limit_in_bytes", memory_bytes  # memory and swap together
        else:
            write_text(f"{memory}/memory.max", str(memory_bytes))
            swap, most = f"{memory}/memory.swap.max", 0
        try:
            write_text(swap, str(most))
        except FileNotFoundError:
            return  # a kernel without swap, or that does not count it

    def _kill(self, top: str) -> None:
        for folder, _folders, _files in os.walk(top, topdown=False):
            try:
                if os.path.exists(f"{folder}/cgroup.kill"):  # version 2 since Linux 5.14
                    write_text(f"{folder}/cgroup.kill", "1")
                else:
                    _kill_each(folder)
            except OSError:  # it is gone; whatever else it may be, the caller looks whether something is left
                continue


class Slot:
    """One cgroup with limits, for one call after another, by descriptors.

    Usable in the process that made it and those forked from it; `close` it in each.
    """

    def __init__(self, version: int, folders: dict[str, str]) -> None:
        self._version = version
        self._fds: list[int] = []
        groups = tuple(dict.fromkeys(folders.values()))
        memory, pids, cpu = (folders[controller] for controller in CONTROLLERS)
        # Version 1 can move a thread alone. That spares the kernel a lock over all forks and exits of the
        # system, for which an idle system waits milliseconds, and which holds up the others meanwhile.
        members = "tasks" if version == 1 else "cgroup.procs"
        try:
            self._members = [self._open(f"{group}/{members}", os.O_WRONLY) for group in groups]
            self._pids_events = self._open(f"{pids}/pids.events")
            self._pids_current = self._open(f"{pids}/pids.current")
            if version == 1:
                self._usage = self._open(f"{memory}/memory.usage_in_bytes")
                self._peak, self._peak_resets = self._open_peak(f"{memory}/memory.max_usage_in_bytes")
                self._oom = self._open(f"{memory}/memory.oom_control")
                self._reclaim = self._open_if_there(f"{memory}/memory.force_empty")
                self._cpu = self._open(f"{cpu}/cpuacct.usage")
            else:
                self._usage = self._open(f"{memory}/memory.current")
                self._peak, self._peak_resets = self._open_peak(f"{memory}/memory.peak")
                self._oom = self._open(f"{memory}/memory.events")
                self._reclaim = self._open_if_there(f"{memory}/memory.reclaim")  # since Linux 5.19
                self._cpu = self._open(f"{cpu}/cpu.stat")
        except OSError:
            self.close()
            raise
        self._base = (0, 0, 0, 0)
        self.reset()

    def enter(self) -> None:
        """Move the calling process in. It must have one thread; what it forks afterwards is in too.

        Memory that it uses already stays charged to where it was. Takes milliseconds where earlier calls
        left much of the host's files in the cache, and on version 2.

        Raises:
            OSError: It is not, or only partly, in.
        """
        left_over = self.memory_bytes()
        if left_over > _SPARED_BYTES:
            self._give_back(left_over)
        for fd in self._members:
            os.write(fd, b"0")

    def enter_pid(self, pid: int) -> None:
        """Move another process in, which must have one thread; `pid` as the calling process sees it.

        Takes milliseconds on an idle system. Prefer `enter`.

        Raises:
            OSError: It is not, or only partly, in; `ProcessLookupError`: it ended.
        """
        for fd in self._members:
            os.write(fd, b"%d" % pid)

    def read(self) -> tuple[int, int, int, int]:
        """What happened since the last reset.

        Returns:
            The most memory used at one time in bytes, 0 where the kernel cannot tell; processes that the
            kernel ended for lack of memory; forks that the limit of processes refused; CPU time in
            nanoseconds.
        """
        peak, ooms, refused, cpu = self._counters()
        base_peak, base_ooms, base_refused, base_cpu = self._base
        if not self._peak_resets and peak <= base_peak:
            peak = 0
        return peak, ooms - base_ooms, refused - base_refused, cpu - base_cpu

    @property
    def cpu_fd(self) -> int:
        """What `used_ns` reads. It can only be read, so others may have it."""
        return self._cpu

    @property
    def cpu_base_ns(self) -> int:
        """What `used_ns` was at the last reset."""
        return self._base[3]

    def memory_bytes(self) -> int:
        """Memory charged to the slot now."""
        return int(_read(self._usage))

    def reset(self) -> None:
        """Make `read` count from here. Best called when the next call begins, with its process inside."""
        if self._peak_resets and self._peak is not None:
            os.write(self._peak, b"0")
        self._base = self._counters()

    def is_empty(self) -> bool:
        """Whether no process is in it, not even an ended one that nobody waited for."""
        return int(_read(self._pids_current)) == 0

    def close(self) -> None:
        """Close the descriptors; can be called again. The cgroup stays."""
        while self._fds:
            os.close(self._fds.pop())

    def _counters(self) -> tuple[int, int, int, int]:
        peak = 0 if self._peak is None else int(_read(self._peak))
        ooms = _field(self._oom, b"oom_kill")
        refused = _field(self._pids_events, b"max")
        return peak, ooms, refused, used_ns(self._cpu)

    def _give_back(self, size: int) -> None:
        """Free pages of files that earlier calls read or wrote; they would count as memory of the next."""
        if self._reclaim is None:
            return
        try:
            os.write(self._reclaim, b"%d" % size if self._version == 2 else b"0")
        except OSError as failure:
            if failure.errno not in (errno.EAGAIN, errno.EINTR):  # not all of it could be freed
                raise

    def _open(self, path: str, flags: int = os.O_RDONLY) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        self._fds.append(fd)
        return fd

    def _open_if_there(self, path: str) -> int | None:
        try:
            return self._open(path, os.O_WRONLY)
        except FileNotFoundError:
            return None

    def _open_peak(self, path: str) -> tuple[int | None, bool]:
        """A descriptor of the peak, and whether writing to it resets it (version 2: since Linux 6.12)."""
        try:
            fd = self._open(path, os.O_RDWR)
            os.write(fd, b"0")
        except OSError:
            try:
                return self._open(path), False
            except FileNotFoundError:
                return None, False  # before Linux 5.19
        return fd, True


def used_ns(fd: int) -> int:
    """CPU time that all processes of a slot ever used, in nanoseconds; `fd` is a copy of its `cpu_fd`.

    Raises:
        OSError: The slot was removed.
    """
    said = _read(fd)
    return int(said) if said[:1].isdigit() else _number_of(said, b"usage_usec") * 1000  # version 1, or 2


def refused(version: int, failure: OSError) -> NoCgroup:
    where = failure.filename or "the cgroup"
    return NoCgroup(
        f"{where} cannot be written by uid {os.geteuid()}: {failure.strerror}",
        remedy(version, failure.errno or 0),
    )


def remedy(version: int, code: int) -> str:
    if code == errno.EROFS:
        return "start the container with --security-opt writable-cgroups=true, or --privileged"
    if version == 2:
        user = "" if os.geteuid() == 0 else "--user "
        command = f"systemd-run {user}--scope -p Delegate=yes …"
        return f"start the server with `{command}`, or set Delegate=yes in its unit"
    return "start the server as root, or boot with cgroup version 2 (systemd.unified_cgroup_hierarchy=1)"


def _owner_is_gone(owner: str) -> bool:
    """Whether `owner`, an `owner_name` without prefix, names a process of our pid namespace that ended."""
    pid, _, rest = owner.partition("-")
    started, _, random = rest.partition("-")
    if not (pid.isdecimal() and started.isdecimal() and random.startswith(f"{_pid_namespace():x}x")):
        return False
    return _start_time(int(pid)) != int(started)


def stat_fields(pid: int) -> list[str]:
    """The fields of `/proc/<pid>/stat` from the third, the state, on; empty if there is no such process."""
    try:
        return read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _start_time(pid: int) -> int | None:
    """When the process started, in ticks since boot; None if it ended."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _kill_each(folder: str) -> None:
    """SIGKILL every process in `folder` once."""
    import signal  # only here: rare, and it would cost every process of the sandbox its import

    if os.path.exists(f"{folder}/pids.max"):
        write_text(f"{folder}/pids.max", "0")  # so that nothing forks faster than we kill
    for pid in pids_in(folder):
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            # Opened first, checked then: a pid that was given to somebody else meanwhile is not in the slot.
            if pid in pids_in(folder):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)


def pids_in(folder: str) -> list[int]:
    """The processes in a cgroup that our pid namespace can see; none if the cgroup is gone."""
    try:
        return [int(line) for line in read_text(f"{folder}/cgroup.procs").split() if line != "0"]
    except OSError:
        return []


def removed(top: str) -> bool:
    """Remove a cgroup and those inside it; False if something is left."""
    for folder, _folders, _files in os.walk(top, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:  # still in use, or gone
            continue
    return not os.path.exists(top)


def _children(folder: str) -> Sequence[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def read_text(path: str) -> str:
    with open(path, "rb") as file:
        return os.fsdecode(file.read())


def write_text(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as failure:
        failure.filename = path
        raise
    finally:
        os.close(fd)


def _read(fd: int) -> bytes:
    return os.pread(fd, 4096, 0)


def _field(fd: int, name: bytes) -> int:
    """The number of the line `name number`."""
    return _number_of(_read(fd), name)


def _number_of(lines: bytes, name: bytes) -> int:
    for line in lines.splitlines():
        key, _, value = line.partition(b" ")
        if key == name:
            return int(value)
    raise OSError(errno.ENODATA, f"the kernel counts no {name.decode()} here")

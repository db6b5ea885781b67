"""The agent: our one process in a container. It runs no code of a call; it starts, watches, bounds and ends
the processes that do, and speaks with the server. See `sandbox.docker.frames` for what they say.

What it needs is there before it says that a call can come. When the server goes, so does everything here.
"""

from __future__ import annotations

import importlib
import os
import signal
import site
import sys
import time

from sandbox.docker.frames import BrokenFrame
from sandbox.docker.inside import locked, processes
from sandbox.docker.inside.counters import Counters
from sandbox.docker.inside.link import Link, Loop
from sandbox.docker.inside.session import Kept
from sandbox.docker.inside.single import InPlace, Single
from sandbox.linux import landlock, libc, runner, walls

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from typing import NoReturn

    from sandbox.docker.inside.worker import Worker
    from sandbox.linux.wire import Message

_ABOVE_ALL = 64  # first of the descriptors of the connection, out of the way of everything that code gets
_FLUSH_S = 5.0
_PR_GET_NO_NEW_PRIVS = 39
_WITHIN_REACH = (
    "this kernel has no Landlock, so code could reach the streams of the container's first process; "
    "start the container without an init of its own"
)
_DEFAULTS: Message = {
    "folder": walls.TMP,
    "cwd": "",
    "preload": [],
    "environment": {},
    "mounts": [],
    "network": False,
    "session": False,
    "keep_state": True,
    "session_idle_s": 1800.0,
    "max_output_bytes": 100_000,
}
"""What a `setup` frame may leave out.

- `folder`: what the code may write to; `HOME`, with `work` and `out` in it.
- `cwd`: where the code starts; `""` is `work` in `folder`.
- `preload`: names of modules.
- `environment`: all variables of the code beside `PATH`, `LD_LIBRARY_PATH` and those that name folders.
- `mounts`: `[path, device, inode, writable]`; an inode of 0 is not compared.
- `session`: whether calls share their variables; `keep_state`: whether to try to roll back.
- `max_output_bytes`: of each stream.
- `limits`, which must be there: `memory_bytes`, `disk_bytes`, `files`, `processes`, `open_files`, `cpu_s` and
  `cpu_ns` (0: none).
"""


class Agent:
    """Reads what the server says until it goes, or until nothing more can run here."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.counters = Counters()
        self.worker: Worker | None = None
        self.is_over = False
        self.keeps_state = processes.has_pidfds()
        high = [_moved(fd) for fd in (0, 1)]
        self.link = Link(self.loop, high[0], high[1])
        self.loop.watch(high[0], self._obey)
        woken, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._woken = woken
        self.loop.watch(woken, self._child_ended)

    def run(self) -> int:
        """The exit status: 0 when it did what it was for."""
        self.link.send({"hello": self._hello()})
        while not (self.is_over or self.link.is_gone):
            self.loop.turn(self.worker.patience_s() if self.worker else None)
            if self.worker is not None:
                self.worker.tick()
                self.is_over = self.is_over or self.worker.is_over
        status = self.worker.exit_status if self.worker is not None else 0
        processes.end_all(os.getpid(), self._reap)
        until_s = time.monotonic() + _FLUSH_S
        while not self.link.is_flushed and time.monotonic() < until_s:
            self.loop.turn(until_s - time.monotonic())
        return status

    def _hello(self) -> Message:
        found = locked.status_words("CapEff", "Seccomp")
        return {
            "python": ".".join(map(str, sys.version_info[:3])),
            "machine": libc.MACHINE,
            "seccomp": found.get("Seccomp") == "2",
            "landlock": landlock.abi(),
            "cgroup": self.counters.version,
            "limits_memory": self.counters.limits_memory,
            "limits_processes": self.counters.limits_processes,
            "keeps_state": self.keeps_state,
            "cap_eff": int(found.get("CapEff", "0"), 16),
            "no_new_privs": libc.prctl(_PR_GET_NO_NEW_PRIVS),  # gVisor shows no line of it in /proc
            "uid": os.getuid(),
        }

    def _obey(self) -> None:
        try:
            for message, blobs in self.link.received():
                if "setup" in message:
                    self._set_up({**_DEFAULTS, **message["setup"]})
                elif self.worker is None:
                    self._fail("the server asks for something before it said what to set up")
                elif "call" in message:
                    self.worker.begin(message, blobs)
                elif "kill" in message and self.worker.call and self.worker.call.number == message["kill"]:
                    self.worker.kill(None)
        except (BrokenFrame, KeyError, ValueError, TypeError) as error:
            self._fail(f"the server's frame cannot be carried out: {locked.reason(error)}")

    def _fail(self, reason: str, **more: str) -> None:
        self.link.send({"failed": reason, **more})
        self.is_over = True

    def _set_up(self, setup: Message) -> None:
        if self.worker is not None:
            raise ValueError("a second setup")
        if _is_within_reach():
            self._fail(_WITHIN_REACH, needs="no init")
            return
        try:
            _check_mounts(setup["mounts"])
            _settle(setup)
            threads = map(int, os.listdir("/proc/self/task"))  # modules may have started some
            protected = tuple({1, *threads})
            kind = Single if not setup["session"] else Kept if self._can_keep(setup) else InPlace
            self.worker = kind(self.loop, self.link, setup, self.counters, protected, self._reap)
            self.worker.start()
        except (OSError, ImportError) as error:
            self._fail(locked.reason(error))

    def _can_keep(self, setup: Message) -> bool:
        return self.keeps_state and bool(setup["keep_state"])

    def _child_ended(self) -> None:
        try:
            os.read(self._woken, 4096)
        except BlockingIOError:
            pass
        self._reap()

    def _reap(self) -> None:
        """Take the word of every process that ended: ours, and the orphans of calls."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.worker is None:
                continue
            cpu_ns = int((usage.ru_utime + usage.ru_stime) * 1e9)
            self.worker.reaped_cpu_ns += cpu_ns
            if pid == self.worker.pid:
                self.worker.ended(status, cpu_ns, usage.ru_maxrss * 1024)


def main() -> NoReturn:
    """Serve the server at descriptors 0 and 1 until it goes. Never returns."""
    try:
        _become_ordinary()
        status = Agent().run()
    except BaseException as error:
        print(f"sandbox: the agent: {locked.reason(error)}", file=sys.stderr)
        status = 1
    os._exit(status)


def _become_ordinary() -> None:
    """Be nobody special, but out of reach for what runs as the same user."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(walls.INNER_ID, walls.INNER_ID, walls.INNER_ID)
        os.setresuid(walls.INNER_ID, walls.INNER_ID, walls.INNER_ID)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # a group of its own: nobody can signal it without naming it
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))  # the first process would not notice it


def _moved(fd: int) -> int:
    """A copy of a descriptor of the connection; what imported modules print must not get into it."""
    import fcntl

    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE_ALL)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)
    return copy


def _is_within_reach() -> bool:
    """Whether code could get at what else holds the other ends of our connection's descriptors.

    Docker's init has them too, belongs to the same user, and is not closed to others as we are: over its
    descriptors code could speak to the server in our place. Landlock keeps it away; so does being the first
    process ourselves.
    """
    if os.getpid() == 1 or landlock.abi():
        return False
    try:
        os.listdir("/proc/1/fd")
    except OSError:
        return False
    return True


def _check_mounts(mounts: list[list[object]]) -> None:
    """Whether the folders are those that the server meant when it made the sandbox.

    Raises:
        OSError: One is missing, or is another one.
    """
    for path, device, inode, _ in mounts:
        found = os.stat(str(path))
        if inode and (found.st_dev, found.st_ino) != (device, inode):
            raise OSError(f"{path}: {walls.ANOTHER_FOLDER}")


def _settle(setup: Message) -> None:
    """Have the environment and the modules that the code will have.

    Raises:
        ImportError: A module that was to be there before the first call is not.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    os.environ.clear()
    os.environ.update({**kept, **setup["environment"]})
    locked.name_folders(setup["folder"])
    sys.path += [path for path in _site_packages() if path not in sys.path and os.path.isdir(path)]
    for name in setup["preload"]:
        try:
            importlib.import_module(name)
        except BaseException as error:
            reason = f"preload: the module {name} cannot be imported: {locked.reason(error)}"
            raise ImportError(reason) from error
    runner.prepare()


def _site_packages() -> list[str]:
    """Where the image keeps its packages: folders of the interpreter, and of a virtual environment."""
    found = site.getsitepackages()
    environment = os.path.dirname(os.path.dirname(os.path.abspath(sys.executable)))
    if os.path.exists(f"{environment}/pyvenv.cfg"):
        found.insert(0, f"{environment}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")
    return found

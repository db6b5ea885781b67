"""`dockerd` of our own, for tests and benchmarks: it touches nothing of another engine and leaves nothing.

It needs no pytest, so that benchmarks can use it too.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

START_S = 30.0
# dockerd gives its containers' supervisors this long; we kill the containers first.
STOP_S = 20.0
PING_S = 5.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CGROUPS = Path("/sys/fs/cgroup")
CAP_SYS_ADMIN = 21


class NoEngine(Exception):
    """An engine cannot be had here; the text says what is missing."""


class OwnEngine:
    """An engine with folders, a network namespace, a mount namespace and a cgroup of its own.

    Its bridge network exists and leads nowhere: containers on it reach each other and the engine's
    namespace, but not this machine. It ends when the thread that started it ends, however that happens.

    Args:
        options: More options of `dockerd`, such as `"--userns-remap=default"`.
        cgroup: Where its containers are counted, in each hierarchy; it goes with the engine.
    """

    def __init__(self, *options: str, cgroup: str | None = None) -> None:
        # A socket's address has 107 bytes, so not somewhere below a test's folder.
        self.folder = Path(tempfile.mkdtemp(prefix="docker-"))
        self.cgroup = cgroup or f"/mcp-tools-{os.getpid()}-{secrets.token_hex(4)}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "sock"

    @property
    def address(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Of `dockerd`; its network namespace is where its bridge is."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, also again after `stop` or `kill`: images and containers are still there.

        Raises:
            NoEngine: With what is missing, or what the engine said last.
        """
        _check_that_it_can_run()
        (self.folder / "config.json").write_text("{}")  # not this machine's own configuration
        options = {
            "config-file": self.folder / "config.json",
            "data-root": self.folder / "data",
            "exec-root": self.folder / "exec",
            "pidfile": self.folder / "pid",
            "host": self.address,
            "iptables": "false",
            "ip6tables": "false",
            "userland-proxy": "false",
            "exec-opt": "native.cgroupdriver=cgroupfs",
            "cgroup-parent": self.cgroup,
        }
        argv = [
            *("unshare", "--net", "--mount", "--propagation", "slave"),
            *("setpriv", "--pdeathsig", "TERM"),
            *("dockerd", *(f"--{name}={value}" for name, value in options.items()), *self._options),
        ]
        # A number that something else has by now would be waited for, also a zombie's.
        for path in ("pid", "exec/containerd/containerd.pid"):
            (self.folder / path).unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            environ = {"PATH": PATH, "HOME": str(self.folder)}
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ
            )
        deadline = time.monotonic() + START_S
        while not answers(self.socket):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = " ".join(self.log().splitlines()[-1:])
                self.stop()
                raise NoEngine(f"needs a Docker engine, and dockerd does not start: {said}")
            time.sleep(0.02)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """End it and its containers."""
        self._kill_containers()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once; its containers run on until `stop` or `remove`."""
        self._end(signal.SIGKILL)
        self._kill_supervisors("containerd")

    def remove(self) -> None:
        """End it, and remove everything it had."""
        self.stop()
        self._kill_containers()
        self._kill_supervisors("containerd", "containerd-shim", "containerd-shim-runc-v2")
        remove_cgroups(self.cgroup)
        # Its mounts went with the last process of its mount namespace.
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> OwnEngine:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _end(self, signal_number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal_number)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _kill_containers(self) -> None:
        """The only processes in our cgroup are those of our containers."""
        deadline = time.monotonic() + STOP_S
        while pids := self._in_containers():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of containers do not end: {sorted(pids)}")
            time.sleep(0.01)

    def _in_containers(self) -> set[int]:
        pids = set()
        for folder in _cgroups(self.cgroup):
            for path in (folder / "cgroup.procs", *folder.rglob("*/cgroup.procs")):
                with contextlib.suppress(OSError):
                    pids |= {int(word) for word in path.read_text().split()}
        return pids

    def _kill_supervisors(self, *programs: str) -> None:
        deadline = time.monotonic() + STOP_S
        while pids := self._supervisors(programs):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of the engine do not end: {pids}")
            time.sleep(0.01)

    def _supervisors(self, programs: Sequence[str]) -> list[int]:
        """containerd and its shims, told by our folder, which nothing else names."""
        mine = os.fsencode(self.folder / "exec" / "containerd")
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes()
                if os.path.basename(line.split(b"\0")[0]).decode() in programs and mine in line:
                    found.append(int(path.parent.name))
        return found


def answers(path: Path) -> bool:
    """Whether an engine answers at this socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PING_S)
        try:
            connection.connect(os.fspath(path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
            return b" 200 " in connection.recv(64)
        except OSError:
            return False


def remove_cgroups(name: str) -> None:
    """Remove a cgroup and those in it from every hierarchy."""
    for folder in _cgroups(name):
        for inner in sorted(folder.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
            _remove_cgroup(inner)
        _remove_cgroup(folder)


def _cgroups(name: str) -> Iterator[Path]:
    for hierarchy in (CGROUPS, *CGROUPS.glob("*/")):
        folder = hierarchy / name.removeprefix("/")
        if folder.is_dir():
            yield folder


def _remove_cgroup(folder: Path) -> None:
    """A process that just ended leaves its cgroup a moment later."""
    deadline = time.monotonic() + 2
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > deadline or not folder.exists():
                return None
            time.sleep(0.01)


def _check_that_it_can_run() -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise NoEngine("needs a Docker engine that answers, or root on Linux to start one")
    status = Path("/proc/self/status").read_text()
    if not int(status.split("CapEff:")[1].split()[0], 16) >> CAP_SYS_ADMIN & 1:
        raise NoEngine("needs a Docker engine that answers, or CAP_SYS_ADMIN to start one")
    for program, package in (
        ("dockerd", "docker.io"),
        ("containerd", "containerd"),
        ("docker-init", "docker.io"),
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
    ):
        if shutil.which(program, path=PATH) is None:
            raise NoEngine(f"needs a Docker engine, and {program} is not installed (package {package})")

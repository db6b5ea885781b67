"""Docker as a peer: an engine of our own, an image made from the host's interpreter, `run` and `exec`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.sandbox.peers import PYTHON
from benchmarks.sandbox.subject import ENVIRONMENT, SNIPPET, Command, NotAvailable, run

START_S = 30.0
STOP_S = 20.0
# What people are told to pass, and what such lists usually lack: pids, capabilities, privileges, a user.
FLAGS = (
    *("--network", "none", "--memory", "256m", "--cpus", "1", "--pids-limit", "64"),
    *("--read-only", "--tmpfs", "/tmp:size=64m", "--user", "1000:1000"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--log-driver", "none"),
)


class Engine:
    """`dockerd` with data of its own, in a network namespace of its own, so that no other engine notices."""

    def __init__(self, folder: Path, cgroup: str | None) -> None:
        self.folder = folder
        self._parent = [] if cgroup is None else ["--cgroup-parent", f"{cgroup}/docker"]

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Start it; if what follows fails, end it again and say why the subject is not available."""
        self.start()
        try:
            yield
        except Exception as error:
            self.stop()
            raise NotAvailable(str(error)) from None

    def start(self) -> None:
        for program, package in (
            ("dockerd", "docker.io"),
            ("docker", "docker.io"),
            ("unshare", "util-linux"),
        ):
            if shutil.which(program, path=ENVIRONMENT["PATH"]) is None:
                raise NotAvailable(f"{program} is not installed (package {package})")
        if os.geteuid() != 0:
            raise NotAvailable("an engine of our own needs root")
        self.folder.mkdir()
        options = {
            "data-root": self.folder / "data",
            "exec-root": self.folder / "exec",
            "pidfile": self.folder / "pid",
            "host": self.address,
            "bridge": "none",
            "iptables": "false",
            "ip6tables": "false",
        }
        argv = ["unshare", "--net", "dockerd", *(f"--{name}={value}" for name, value in options.items())]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, env=ENVIRONMENT)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = (self.folder / "log").read_text().splitlines()[-1:]
                self.stop()
                raise NotAvailable(f"dockerd does not start: {' '.join(last)}")
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for line in Path("/proc/self/mounts").read_text().splitlines():
            mount = line.split()[1]
            if mount.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", mount], check=False)

    @property
    def address(self) -> str:
        return f"unix://{self.folder}/sock"

    def command(self, *arguments: str) -> list[str]:
        return ["docker", "--host", self.address, *arguments]

    def run_command(self, *arguments: str) -> list[str]:
        return self.command("run", *FLAGS, *self._parent, *arguments)

    def _answers(self) -> bool:
        with contextlib.suppress(RuntimeError):
            run(self.command("version"))
            return True
        return False

    def import_image(self) -> None:
        """The interpreter, its libraries and its standard library, without packages."""
        interpreter = os.path.realpath(PYTHON)
        library = run([PYTHON, "-I", "-c", "import os; print(os.path.dirname(os.__file__))"]).strip()
        needed = [word for word in run(["ldd", interpreter]).split() if word.startswith("/")]
        image = self.folder / "image.tar"
        with tarfile.open(image, "w", dereference=True) as tar:
            for path in (interpreter, *needed):
                tar.add(path)
            tar.add(interpreter, PYTHON)
            tar.add(library, filter=_without_what_calls_never_use)
        run(self.command("import", str(image), "bench"))
        image.unlink()


def _without_what_calls_never_use(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if {"test", "dist-packages", "idlelib"} & set(member.name.split("/")) else member


class DockerRun(Command):
    """A container for each call."""

    async def open(self) -> None:
        self.engine = Engine(self.scratch / "docker-run", self.cgroup)
        self.argv = self.engine.run_command("--rm", "--interactive", "bench", PYTHON, "-")
        self.stdin = SNIPPET.encode()
        with self.engine.started():
            self.engine.import_image()
            self.run(0)

    async def close(self) -> None:
        self.engine.stop()


class DockerExec(Command):
    """A process for each call in one container that runs all the time."""

    async def open(self) -> None:
        self.engine = Engine(self.scratch / "docker-exec", self.cgroup)
        self.argv = self.engine.command("exec", "--interactive", "waiting", PYTHON, "-")
        self.stdin = SNIPPET.encode()
        wait = "import signal; signal.pause()"
        with self.engine.started():
            self.engine.import_image()
            run(self.engine.run_command("--detach", "--name", "waiting", "bench", PYTHON, "-c", wait))
            self.run(0)

    async def close(self) -> None:
        run(self.engine.command("rm", "--force", "waiting"))
        self.engine.stop()

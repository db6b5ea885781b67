"""Docker as a peer: an engine of our own, an image made from the host's interpreter, `run` and `exec`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from benchmarks.sandbox.peers import PYTHON
from benchmarks.sandbox.subject import ENVIRONMENT, SNIPPET, Command, NotAvailable, run
from sandbox.docker.host_python import archive_host_python
from tests.own_engine import OwnEngine

# What people are told to pass, and what such lists usually lack: pids, capabilities, privileges, a user.
FLAGS = (
    *("--network", "none", "--memory", "256m", "--cpus", "1", "--pids-limit", "64"),
    *("--read-only", "--tmpfs", "/tmp:size=64m", "--user", "1000:1000"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--log-driver", "none"),
)


class Engine:
    """An engine of our own, as tests have it, and the `docker` command."""

    def __init__(self, cgroup: str | None) -> None:
        self._own = OwnEngine(cgroup=None if cgroup is None else f"{cgroup}/docker")

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Start it; if what follows fails, end it again and say why the subject is not available."""
        try:
            if shutil.which("docker", path=ENVIRONMENT["PATH"]) is None:
                raise NotAvailable("docker is not installed (package docker.io)")
            self._own.start()
            yield
        except Exception as error:
            self.stop()
            raise NotAvailable(str(error)) from None

    def stop(self) -> None:
        self._own.remove()

    def command(self, *arguments: str) -> list[str]:
        return ["docker", "--host", self._own.address, *arguments]

    def run_command(self, *arguments: str) -> list[str]:
        return self.command("run", *FLAGS, *arguments)

    def import_image(self) -> None:
        """The interpreter that others run too, its libraries and its standard library, without packages."""
        image = self._own.folder / "image.tar"
        with image.open("wb") as file:
            archive_host_python(file, interpreter=PYTHON)
        run(self.command("import", str(image), "bench"))
        image.unlink()


class DockerRun(Command):
    """A container for each call."""

    async def open(self) -> None:
        self.engine = Engine(self.cgroup)
        self.argv = self.engine.run_command("--rm", "--interactive", "bench", "python3", "-")
        self.stdin = SNIPPET.encode()
        with self.engine.started():
            self.engine.import_image()
            self.run(0)

    async def close(self) -> None:
        self.engine.stop()


class DockerExec(Command):
    """A process for each call in one container that runs all the time."""

    async def open(self) -> None:
        self.engine = Engine(self.cgroup)
        self.argv = self.engine.command("exec", "--interactive", "waiting", "python3", "-")
        self.stdin = SNIPPET.encode()
        wait = "import signal; signal.pause()"
        with self.engine.started():
            self.engine.import_image()
            run(self.engine.run_command("--detach", "--name", "waiting", "bench", "python3", "-c", wait))
            self.run(0)

    async def close(self) -> None:
        run(self.engine.command("rm", "--force", "waiting"))
        self.engine.stop()

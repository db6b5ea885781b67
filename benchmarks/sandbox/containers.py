"""Docker as a peer: an engine of our own, an image made from the host's interpreter, `run` and `exec`."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.sandbox.accounting import pss_mib
from benchmarks.sandbox.peers import PYTHON
from benchmarks.sandbox.subject import ENVIRONMENT, SNIPPET, Command, NotAvailable, Subject, check, run
from sandbox import DockerSandbox, SandboxConfig
from sandbox.docker.host_python import archive_host_python
from tests.own_engine import OwnEngine

SETTLE_S = 1.5  # a new container is there by then
WARM_CALLS = 5
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

    @property
    def address(self) -> str:
        return self._own.address

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


class OursInDocker(Subject):
    """Our sandbox in containers: a call in a fresh one from the pool, or in a session of the caller's own."""

    def __init__(self, scratch: Path, cgroup: str | None, *, in_session: bool = False) -> None:
        super().__init__(scratch, cgroup)
        self.in_session = in_session

    async def open(self) -> None:
        self.engine = Engine(self.cgroup)
        with self.engine.started():
            self.engine.import_image()
            self.sandbox = DockerSandbox("bench", SandboxConfig(), engine=self.engine.address)
            result = await self.sandbox.execute(self.snippet)
            if not result.success:
                raise NotAvailable(str(result.error))

    async def call(self, caller: int) -> str:
        session = f"caller {caller}" if self.in_session else None
        result = await self.sandbox.execute(self.snippet, session=session)
        return result.stdout if result.success else f"{result.ended_by}: {result.error} {result.stderr}"

    async def more(self) -> dict[str, float]:
        """Calls while the pool is full, which the gap of 10 ms does not let it be; PSS of a container."""
        if self.in_session:
            return {}
        taken_ms = []
        for _ in range(WARM_CALLS):
            await asyncio.sleep(SETTLE_S)
            started = time.perf_counter()
            check(await self.call(0))
            taken_ms.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(SETTLE_S)
        listed = run(self.engine.command("ps", "--quiet")).split()
        found = [
            sum(pss_mib(int(pid)) for pid in run(self.engine.command("top", each, "-o", "pid")).split()[1:])
            for each in listed
        ]
        return {
            "call, pool full, ms": statistics.median(taken_ms),
            "idle container PSS MiB": statistics.mean(found),
        }

    async def close(self) -> None:
        self.sandbox.close()
        self.engine.stop()


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

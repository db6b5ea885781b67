"""The agent as an ordinary process over pipes instead of in a container: as root, and as its user."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from sandbox.docker import bundle, frames

USER = 1000
WAIT_S = 20.0
LIMITS = {
    "memory_bytes": 256 * 1024**2,
    "disk_bytes": 64 * 1024**2,
    "files": 4096,
    "processes": 32,
    "open_files": 256,
    "cpu_s": 0,
    "cpu_ns": 0,
}
# Whatever the agent does or fails to do, a test takes no more of this machine: all processes of its user.
BOUNDED = ["prlimit", "--nproc=400"]
AS_CONTAINER = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
    *("--bounding-set=-all", "--inh-caps=-all"),
]


@dataclass(kw_only=True)
class Ended:
    """All that the agent said of one call."""

    end: dict[str, Any]
    out: bytes = b""
    err: bytes = b""
    report: bytes = b""
    said: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)


class Agent:
    def __init__(self, process: subprocess.Popen[bytes], folder: str) -> None:
        self.process = process
        self.folder = folder
        self.hello: dict[str, Any] = {}
        self._reader = frames.Reader(max_header_bytes=1 << 20, max_blob_bytes=1 << 26)
        self._frames: list[tuple[dict[str, Any], list[bytes]]] = []
        self.number = 0

    def send(self, header: dict[str, Any], blobs: list[bytes] | None = None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(frames.encode(header, blobs or []))
        self.process.stdin.flush()

    def receive(self, within_s: float = WAIT_S) -> tuple[dict[str, Any], list[bytes]]:
        """The next frame; `({}, [])` at the end."""
        assert self.process.stdout is not None
        until_s = time.monotonic() + within_s
        while not self._frames:
            left_s = until_s - time.monotonic()
            assert left_s > 0, "the agent says nothing"
            if not select.select([self.process.stdout], [], [], left_s)[0]:
                continue
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                return {}, []
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    def set_up(self, limits: dict[str, int] | None = None, **setup: Any) -> dict[str, Any]:
        """Say what it is to do; returns its answer."""
        limits = LIMITS | (limits or {})
        self.send({"setup": {"folder": self.folder, "limits": limits} | setup})
        return self.ready()

    def ready(self) -> dict[str, Any]:
        said = self.receive()[0]
        self.number = said.get("ready", self.number)
        return said

    def begin(self, code: str, *, wall_s: float = 10.0, files: dict[str, bytes] | None = None) -> None:
        given = files or {}
        names = [[name, len(data)] for name, data in given.items()]
        header = {"call": self.number, "wall_s": wall_s, "code": code, "files": names}
        self.send({**header, "max_files": 16, "max_bytes": 8 << 20}, list(given.values()))

    def end(self) -> Ended:
        """What comes until the call is over."""
        found = Ended(end={})
        while not found.end:
            header, blobs = self.receive()
            assert header, "the agent ended in the middle of a call"
            if "out" in header:
                if header["out"] == 1:
                    found.out += blobs[0]
                else:
                    found.err += blobs[0]
            elif "report" in header:
                found.report += blobs[0]
            else:
                assert {"ended", "failed"} & header.keys(), header
                found.end = header
        with suppress(ValueError):  # of code that ended, or that has words of its own
            size = int.from_bytes(found.report[:4], "little")
            found.said, rest = json.loads(found.report[4 : 4 + size]), found.report[4 + size :]
            for name, length in found.said["artifacts"]:
                found.artifacts[name], rest = rest[:length], rest[length:]
        return found

    def call(self, code: str, **options: Any) -> Ended:
        self.begin(code, **options)
        return self.end()

    def left(self) -> list[int]:
        """Processes of code that are not gone: they work in this agent's folder."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{name}/cwd").startswith(f"{self.folder}/"):
                    found.append(int(name))
            except OSError:
                continue
        return found


@contextmanager
def agent(
    python: str, *, as_container: bool = True, environment: dict[str, str] | None = None
) -> Iterator[Agent]:
    """A running agent that said hello."""
    folder = tempfile.mkdtemp(prefix="agent-")
    if os.getuid() == 0:
        os.chown(folder, USER, USER)
    argv = [python, *bundle.command()[1:]]
    if as_container and os.getuid() == 0:
        argv = [*AS_CONTAINER, *argv]
    argv = [*BOUNDED, *argv]
    try:
        with running(argv, folder, environment={"PATH": os.environ["PATH"], **(environment or {})}) as found:
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(
    argv: list[str], folder: str, *, environment: dict[str, str], payload: bytes | None = None
) -> Iterator[Agent]:
    """The agent that `argv` starts, once it said hello."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd="/",
    )
    found = Agent(process, folder)
    assert process.stdin is not None
    try:
        process.stdin.write(payload or bundle.payload())
        process.stdin.flush()
        found.hello = found.receive()[0]
        yield found
    finally:
        process.stdin.close()
        try:
            process.wait(WAIT_S)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

"""The two places where an attack is made: in the open, for the control, and inside a sandbox."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from sandbox.base import Sandbox
from sandbox.errors import SandboxError
from sandbox.selfcheck.stage import Stage, processes_named
from sandbox.types import Artifact, EndedBy, SandboxConfig, SandboxResult

LATE_S = 1.0  # a call that is over later than this after its limit has outlived it
_POLITE_S = 0.3
_KEPT_BYTES = 64 * 1024**2
_KEPT_ARTIFACT_BYTES = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One run. `outlived` says how it went on after its end, `""` if it did not."""

    result: SandboxResult
    outlived: str = ""


class Stumbled(Exception):
    """The server raised something that is no answer of a sandbox, over what code did."""


class Arena(Protocol):
    """Where code runs.

    `run` takes what `Sandbox.execute_sync` takes. What is only for the control and means nothing inside:
    `polite` is the signal that a supervisor without walls sends at the time limit; `loose` runs an
    interpreter that looks for modules in its working folder.
    """

    config: SandboxConfig
    walled: bool

    def run(
        self,
        code: str,
        *,
        files: Mapping[str, bytes | str] | None = None,
        timeout_seconds: float | None = None,
        session: str | None = None,
        tenant: str = "",
        polite: int = signal.SIGTERM,
        loose: bool = False,
        folder: Path | None = None,
    ) -> Ran: ...


class Walled:
    """Inside a sandbox."""

    walled = True

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.config = sandbox.config

    def run(
        self,
        code: str,
        *,
        files: Mapping[str, bytes | str] | None = None,
        timeout_seconds: float | None = None,
        session: str | None = None,
        tenant: str = "",
        polite: int = signal.SIGTERM,
        loose: bool = False,
        folder: Path | None = None,
    ) -> Ran:
        started = time.monotonic()
        try:
            result = self.sandbox.execute_sync(
                code, files=files, timeout_seconds=timeout_seconds, session=session, tenant=tenant
            )
        except SandboxError:
            raise
        except Exception as error:
            raise Stumbled(f"{type(error).__name__}: {error}") from error
        limit = timeout_seconds or self.config.timeout_seconds
        took = min(result.duration_ms / 1000, time.monotonic() - started)
        late = f"it was over after {took:.1f} s, its limit was {limit:g} s"
        return Ran(result=result, outlived=late if took > limit + LATE_S else "")


class Bare:
    """In the open: the same interpreter as a plain subprocess, ended as a simple supervisor would end it."""

    walled = False

    def __init__(self, stage: Stage, config: SandboxConfig) -> None:
        self._stage = stage
        self.config = config

    def run(
        self,
        code: str,
        *,
        files: Mapping[str, bytes | str] | None = None,
        timeout_seconds: float | None = None,
        session: str | None = None,
        tenant: str = "",
        polite: int = signal.SIGTERM,
        loose: bool = False,
        folder: Path | None = None,
    ) -> Ran:
        limit = timeout_seconds or self.config.timeout_seconds
        work = folder or self._stage.folder / self._stage.name()
        (work / "out").mkdir(parents=True, exist_ok=True)
        for name, data in (files or {}).items():
            (work / name).write_bytes(data.encode() if isinstance(data, str) else data)
        flags = [] if loose else ["-I", "-S"]
        started = time.monotonic()
        with _Pipes() as pipes:
            process = subprocess.Popen(  # noqa: S603 - this is the point
                [sys.executable, *flags, "-c", code],
                cwd=work,
                env={**os.environ, "HOME": str(work)},
                stdin=subprocess.DEVNULL,
                stdout=pipes.ends[0],
                stderr=pipes.ends[1],
                pass_fds=(self._stage.inheritable,),
                start_new_session=True,
            )
            outlived = ""
            try:
                in_time = pipes.read_until_end(process.pid, limit)
                if not in_time:
                    os.kill(process.pid, polite)
                    if not pipes.read_until_end(process.pid, _POLITE_S):
                        outlived = f"{signal.Signals(polite).name} did not end it"
            finally:
                # Before it is waited for: its number is still its own.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return_code = process.returncode
        ended = EndedBy.CRASH if return_code < 0 else EndedBy.EXIT
        artifacts = _collected(work / "out")
        if folder is None:
            shutil.rmtree(work, ignore_errors=True)
        result = SandboxResult(
            success=return_code == 0,
            stdout=pipes.text(0),
            stderr=pipes.text(1),
            return_code=return_code,
            ended_by=ended if in_time else EndedBy.TIME,
            artifacts=artifacts,
            duration_ms=(time.monotonic() - started) * 1000,
        )
        return Ran(result=result, outlived=outlived)


class _Pipes:
    """What a process writes, read until it has ended and nobody holds its output open: as `communicate`."""

    def __enter__(self) -> Self:
        pairs = (os.pipe(), os.pipe())
        self.ends = [pair[1] for pair in pairs]
        self._data = {pair[0]: bytearray() for pair in pairs}
        self._open = list(self._data)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for fd in (*self._data, *self.ends):
            os.close(fd)

    def read_until_end(self, pid: int, seconds: float) -> bool:
        """Read on for at most `seconds`; False if it is not over then. The process is not reaped."""
        while self.ends:
            os.close(self.ends.pop())  # those are the child's
        end = time.monotonic() + seconds
        pidfd = os.pidfd_open(pid)
        waiting = {pidfd, *self._open}
        try:
            while waiting:
                poll = select.poll()
                for fd in waiting:
                    poll.register(fd, select.POLLIN)
                left = end - time.monotonic()
                if left <= 0:
                    return False
                for fd, _ in poll.poll(left * 1000):
                    if fd == pidfd:
                        waiting.discard(fd)
                    elif piece := os.read(fd, 1 << 16):
                        if len(self._data[fd]) < _KEPT_BYTES:
                            self._data[fd] += piece
                    else:
                        waiting.discard(fd)
                        self._open.remove(fd)
        finally:
            os.close(pidfd)
        return True

    def text(self, stream: int) -> str:
        return bytes(list(self._data.values())[stream]).decode(errors="replace")


def _collected(folder: Path) -> tuple[Artifact, ...]:
    """What a collector without a second thought takes from a folder: it follows links."""
    artifacts = []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                data = file.read(_KEPT_ARTIFACT_BYTES)
            artifacts.append(Artifact(name=path.name, media_type="application/octet-stream", data=data))
    return tuple(artifacts)


def end_processes_named(name: str) -> list[int]:
    """Kill what a control left behind under `name`; returns which processes that were."""
    found = processes_named(name)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return found

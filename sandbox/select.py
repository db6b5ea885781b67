"""What this host can enforce, found by doing it, and which backend that makes the right one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sandbox.errors import Missing, SandboxBusy, SandboxConfigError, SandboxError, SandboxUnavailable
from sandbox.types import IsolationLevel, SandboxConfig

if TYPE_CHECKING:
    from sandbox.docker import DockerSandbox
    from sandbox.linux.backend import PythonSandbox

Backend = Literal["auto", "linux", "docker"]
DEFAULT_IMAGE = "python:3.11-slim"
_FIRST_CONTAINER_S = 30.0
_GOOD_ENOUGH = IsolationLevel.L4  # no container of Docker is stronger, and none is as fast


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What this host can enforce.

    Args:
        level: The strongest level that a sandbox really reached here; `NONE` if there is none.
        missing: Why it is not higher, with the knob for each step up; empty at L4+.
        seconds: How long finding out took, with the start of an interpreter and the end of the sandbox.
        walls_seconds: The part of it in which levels were tried and one child was locked down.
    """

    level: IsolationLevel
    missing: tuple[Missing, ...]
    seconds: float
    walls_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A sandbox that ran something already, and why it is this one.

    Args:
        sandbox: Close it at the end.
        backend: `"linux"` or `"docker"`.
        level: What it runs at.
        missing: Why nothing stronger was chosen.
    """

    sandbox: PythonSandbox | DockerSandbox
    backend: str
    level: IsolationLevel
    missing: tuple[Missing, ...]


def detect(config: SandboxConfig | None = None) -> Host:
    """Start an embedded sandbox with one child, see at which level it comes up, and end it again.

    Args:
        config: The sandbox that is meant to run; its mounts and packages are part of what has to work.
            `None` for the defaults.

    Raises:
        SandboxConfigError: A folder of the configuration does not exist.
        SandboxDied: It came up at no level and gave no reason, such as an interpreter that cannot start.
    """
    began_s = time.monotonic()
    level, walls_s = IsolationLevel.NONE, 0.0
    missing: tuple[Missing, ...] = ()
    try:
        with _embedded(replace(config or SandboxConfig(), pool_size=1)) as sandbox:
            level, missing, walls_s = sandbox.level or level, sandbox.missing, sandbox.walls_seconds
    except SandboxUnavailable as refusal:
        missing = refusal.missing
    return Host(level=level, missing=missing, seconds=time.monotonic() - began_s, walls_seconds=walls_s)


def choose(
    config: SandboxConfig | None = None,
    *,
    backend: Backend = "auto",
    image: str = DEFAULT_IMAGE,
    runtime: str | None = None,
    engine: str | None = None,
) -> Choice:
    """Start the sandbox that isolates strongest here and return it. Blocks, for a second where it is Docker.

    Nothing is below `config.minimum_level`: what cannot reach it is refused, never run.

    Args:
        config: `None` for the defaults.
        backend: `"linux"` or `"docker"` take only that. `"auto"` takes the embedded one at L4 or above, and
            otherwise the stronger of the two; of two equal ones the embedded one, which is faster.
        image, runtime, engine: As `DockerSandbox` takes them.

    Raises:
        SandboxConfigError: The configuration, or `backend`, makes no sense.
        SandboxUnavailable: None reaches the level; its `missing` says what each would need.
        SandboxDied: One came up and ended again, without a reason.
    """
    config = config or SandboxConfig()
    if backend not in ("auto", "linux", "docker"):
        raise SandboxConfigError("backend", f"must be auto, linux or docker, not {backend!r}")
    starts: dict[str, Callable[[], PythonSandbox | DockerSandbox]] = {
        "linux": lambda: _embedded(config),
        "docker": lambda: _container(config, image, runtime, engine, forced=backend == "docker"),
    }
    best: Choice | None = None
    failure: SandboxError | None = None
    missing: tuple[Missing, ...] = ()
    for name in ("linux", "docker") if backend == "auto" else (backend,):
        try:
            sandbox = starts[name]()
        except SandboxUnavailable as refusal:
            missing += refusal.missing
            continue
        except SandboxError as error:
            failure = error
            missing += (Missing(level="L3", step=name, reason=str(error), remedy="Try `mcp-tools doctor`."),)
            continue
        level = sandbox.level or IsolationLevel.NONE
        missing += sandbox.missing
        worse: PythonSandbox | DockerSandbox | None = sandbox
        if best is None or level > best.level:
            worse = None if best is None else best.sandbox
            best = Choice(sandbox=sandbox, backend=name, level=level, missing=())
        if worse is not None:
            worse.close()
        if level >= _GOOD_ENOUGH:
            break
    if best is None and failure is not None:
        raise failure
    if best is None:
        raise SandboxUnavailable("this host cannot isolate code well enough", missing)
    return replace(best, missing=missing)


def _embedded(config: SandboxConfig) -> PythonSandbox:
    """An embedded sandbox that has run nothing, at the level that it reached."""
    if not sys.platform.startswith("linux"):
        elsewhere = Missing(
            level="L2",
            step="Linux",
            reason=f"the embedded sandbox needs Linux, this is {sys.platform}",
            remedy="Use the Docker sandbox.",
        )
        raise SandboxUnavailable("the embedded sandbox cannot run here", (elsewhere,))
    from sandbox.linux.backend import PythonSandbox

    sandbox = PythonSandbox(config)
    try:
        sandbox.execute_sync("")
    except BaseException:
        sandbox.close()
        raise
    return sandbox


def _container(
    config: SandboxConfig, image: str, runtime: str | None, engine: str | None, *, forced: bool
) -> DockerSandbox:
    """A Docker sandbox that has run nothing."""
    if config.packages is not None and not forced:
        image_of_its_own = Missing(
            level="L3",
            step="Docker",
            reason="a container has the packages of its image, not those of `packages`",
            remedy="Make an image with `mcp-tools sandbox build-image`, and choose the backend docker.",
        )
        raise SandboxUnavailable("Docker was not tried", (image_of_its_own,))
    from sandbox.docker import DockerSandbox

    sandbox = DockerSandbox(image, config, runtime=runtime, engine=engine)
    until_s = time.monotonic() + _FIRST_CONTAINER_S
    try:
        while True:
            try:
                sandbox.execute_sync("")
                break
            except (
                SandboxBusy
            ):  # it is being started still: `queue_seconds` is for calls, which want warm ones
                if time.monotonic() >= until_s:
                    raise
    except BaseException:
        sandbox.close()
        raise
    return sandbox

"""What the owner decides about `execute_python`, before anything of the sandbox is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from mcp_tools.errors import ConfigError

if TYPE_CHECKING:
    from typing import TypeAlias

    from sandbox import Mount, SandboxConfig

    Limits: TypeAlias = "PythonOptions | SandboxConfig"

EXTRA_S: Final = 5.0
"""The tool's deadline is the sandbox's time limit and this: for the way there and back."""

DEFAULT_IMAGE: Final = "python:3.11-slim"
"""What containers are made from, unless the owner names another; the sandbox's own default."""

QUEUE_S: Final = 4.0
"""How long a call waits for its turn: within the deadline, or it would end without what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonOptions:
    """Settings of `execute_python`; each means what it means in `sandbox.SandboxConfig`.

    A class of its own, because the server describes the tool at its start, and loading the sandbox for
    that would cost milliseconds that most sessions never need.

    Args:
        minimum_level: `L2`, `L3`, `L4` or `L4+`.
        backend: `auto`, `linux` or `docker`; see `sandbox.select.choose`.
        image, runtime, engine: Of containers, as `sandbox.DockerSandbox` takes them.
    """

    timeout_seconds: float = 30.0
    max_memory_mb: int = 256
    max_disk_mb: int = 64
    max_processes: int = 32
    max_output_bytes: int = 100_000
    session_idle_seconds: float = 1800.0
    allow_network: bool = False
    working_dir: str | None = None
    mounts: tuple[Mount, ...] = ()
    packages: str | None = None
    preload: tuple[str, ...] = ()
    pool_size: int = 4
    minimum_level: str = "L2"
    backend: str = "auto"
    image: str = DEFAULT_IMAGE
    runtime: str | None = None
    engine: str | None = None


def sandbox_config(limits: Limits) -> SandboxConfig:
    """Return the configuration to run with. Loads `sandbox`.

    Raises:
        SandboxConfigError: It makes no sense.
    """
    from sandbox import IsolationLevel, SandboxConfig

    if not isinstance(limits, PythonOptions):
        return replace(limits, queue_seconds=min(limits.queue_seconds, QUEUE_S))
    return SandboxConfig(
        timeout_seconds=limits.timeout_seconds,
        max_memory_mb=limits.max_memory_mb,
        max_disk_mb=limits.max_disk_mb,
        max_processes=limits.max_processes,
        max_output_bytes=limits.max_output_bytes,
        session_idle_seconds=limits.session_idle_seconds,
        allow_network=limits.allow_network,
        working_dir=limits.working_dir,
        mounts=limits.mounts,
        packages=limits.packages,
        preload=limits.preload,
        pool_size=limits.pool_size,
        minimum_level=IsolationLevel.parse(limits.minimum_level),
        queue_seconds=QUEUE_S,
    )


def in_container(limits: Limits) -> str | None:
    """Return the image where code surely runs in a container: its packages are not those of this machine."""
    return limits.image if isinstance(limits, PythonOptions) and limits.backend == "docker" else None


def network(limits: Limits) -> str:
    """Return a sentence on what code can reach where it has a network; which it is, `auto` decides later."""
    of_host = "this machine's network, with everything that listens on it"
    if in_container(limits) is not None:
        return "It has the network of a container: this machine, and all that this machine can reach."
    if isinstance(limits, PythonOptions) and limits.backend == "auto":
        return f"It has {of_host}, or that of a container of this machine."
    return f"It has {of_host}."


def writable_folders(limits: Limits) -> list[tuple[str, str]]:
    """Return the folders of the host that code can change, each with where it sees it."""
    found = [] if limits.working_dir is None else [(limits.working_dir, "/work")]
    return found + [(mount.source, mount.target or mount.source) for mount in limits.mounts if mount.writable]


def readable_folders(limits: Limits) -> list[tuple[str, str]]:
    """Return the folders of the host that code can read and not change, each with where it sees it."""
    return [(mount.source, mount.target or mount.source) for mount in limits.mounts if not mount.writable]


def is_closed(limits: Limits) -> bool:
    """Whether code can change nothing outside of its sandbox."""
    return not limits.allow_network and not writable_folders(limits)


def packages_folder(packages: str) -> str:
    """Return the folder that holds the packages: a virtual environment has its own.

    Raises:
        ConfigError: There is no such folder.
    """
    if not os.path.exists(os.path.join(packages, "pyvenv.cfg")):
        found = [packages]
    else:
        lib = os.path.join(packages, "lib")
        names = sorted(os.listdir(lib)) if os.path.isdir(lib) else []
        found = [os.path.join(lib, name, "site-packages") for name in names if name.startswith("python3.")]
    found = [folder for folder in found if os.path.isdir(folder)]
    if len(found) != 1:
        raise ConfigError(
            f"python_packages names {packages}, which is no virtual environment and no site-packages folder"
        )
    return found[0]


def check_folders(limits: Limits) -> None:
    """Look at start for what would fail at each call.

    Raises:
        ConfigError: A folder that is named does not exist.
    """
    if limits.packages is not None:
        packages_folder(limits.packages)
    for folder, _ in writable_folders(limits) + readable_folders(limits):
        if not os.path.isdir(folder):
            raise ConfigError(f"{folder}, which execute_python is to see, is no folder")

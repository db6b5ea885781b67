"""From a `SandboxConfig` to what the launcher is told, and which interpreter it runs. Starts nothing."""

from __future__ import annotations

import glob
import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.environment import environment
from sandbox.errors import SandboxConfigError
from sandbox.limits import limits
from sandbox.linux.walls import WORK
from sandbox.types import Mount, SandboxConfig

if TYPE_CHECKING:
    from sandbox.linux.wire import Message

_PATH = "/usr/bin:/bin"
_LINKS = ("/lib", "/lib64", "/usr/lib64")
_MIN_PYTHON = (3, 11)
_VERSION = re.compile(r"/python3\.(\d+)t?/site-packages$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder of the host, opened once: the descriptor keeps its inode from being given to another."""

    fd: int
    source: str
    target: str
    writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a zygote needs to know.

    Args:
        python: Interpreter that is executed.
        site_packages: Folders that are added to the end of `sys.path`.
        environment: All variables that the interpreter starts with.
        folders: Mounted folders; close them with the sandbox.
        config: What it was made from.
    """

    python: str
    site_packages: tuple[str, ...]
    environment: dict[str, str]
    folders: tuple[Folder, ...]
    config: SandboxConfig

    def message(self, *, scratch: str) -> Message:
        """What goes to the launcher. `scratch`: a folder that it may make, for levels without own mounts."""
        config = self.config
        return {
            "packages": list(self.site_packages),
            "preload": list(config.preload),
            "network": config.allow_network,
            "mounts": [
                (each.source, each.target, each.writable, found.st_dev, found.st_ino)
                for each in self.folders
                for found in [os.fstat(each.fd)]
            ],
            "cwd": WORK if config.working_dir is not None else "",
            "links": _LINKS,
            "scratch": scratch,
            "pool": config.pool_size,
            "running": config.max_concurrent_calls,
            "sessions": config.max_sessions,
            "minimum_level": int(config.minimum_level),
            "maximum_level": int(config.maximum_level),
            "session_idle_s": config.session_idle_seconds,
            "limits": limits(config),
        }


def plan(config: SandboxConfig) -> Plan:
    """Find the interpreter and the packages, and open the folders.

    Raises:
        SandboxConfigError: A folder or the packages do not exist or cannot be used.
    """
    python, site_packages = _packages(config.packages)
    mounts = list(config.mounts)
    if config.working_dir is not None:
        mounts.append(Mount(source=config.working_dir, target=WORK, writable=True))
    folders: list[Folder] = []
    try:
        for mount in mounts:
            source = os.path.realpath(mount.source)
            field = "working_dir" if mount.target == WORK else "mounts"
            try:
                fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise SandboxConfigError(field, f"{mount.source!r}: {error.strerror}") from error
            folders.append(
                Folder(fd=fd, source=source, target=mount.target or source, writable=mount.writable)
            )
    except BaseException:
        for folder in folders:
            os.close(folder.fd)
        raise
    return Plan(
        python=python,
        site_packages=site_packages,
        environment={"PATH": _PATH, **environment(config)},
        folders=tuple(folders),
        config=config,
    )


def _packages(path: str | None) -> tuple[str, tuple[str, ...]]:
    """The interpreter to run and the folders to add to its path."""
    own = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]  # of a virtual environment, the real one
    if path is None:
        return own, ()
    folder = os.path.realpath(path)
    if not os.path.isdir(folder):
        raise SandboxConfigError("packages", f"{path!r} is no folder")
    python = f"{folder}/bin/python"
    if not os.path.exists(f"{folder}/pyvenv.cfg"):
        return own, (folder,)
    if not os.path.exists(python):
        raise SandboxConfigError("packages", f"{path!r} is a virtual environment without an interpreter")
    sites = [each for each in glob.glob(f"{glob.escape(folder)}/lib/*/site-packages") if os.path.isdir(each)]
    version = _VERSION.search(sites[0]) if len(sites) == 1 else None
    if version is None:
        raise SandboxConfigError("packages", f"{path!r} has no lib/python3.*/site-packages")
    if (3, int(version[1])) < _MIN_PYTHON:
        raise SandboxConfigError("packages", f"{path!r} is for Python 3.{version[1]}; the sandbox needs 3.11")
    return os.path.realpath(python), (sites[0],)

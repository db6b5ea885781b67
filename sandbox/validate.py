"""Whether a `SandboxConfig` makes sense, before anything is started with it."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING

from sandbox.errors import SandboxConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.types import SandboxConfig

MAX_NAME_CHARS = 255
MAX_SECONDS = 7 * 24 * 3600.0  # beyond a week a limit is a mistake in the unit
_ABOVE_ZERO_S = ("timeout_seconds", "queue_seconds", "session_idle_seconds", "recycle_seconds")
_MANY = 2**40  # the kernel takes no more, whatever it is
_WHOLE = {
    "max_memory_mb": (16, _MANY),  # below this the interpreter itself does not run
    "max_output_bytes": (0, _MANY),
    "max_processes": (1, 2**22),
    "max_open_files": (16, _MANY),
    "max_disk_mb": (1, _MANY),
    "max_files": (16, _MANY),
    "pool_size": (1, 1000),
    "max_concurrent_calls": (1, 1000),
    "max_sessions": (0, 1000),
    "max_artifacts": (0, 1000),  # their names are kept in memory, whatever the code makes up
    "max_artifact_bytes": (0, _MANY),
    "max_tenants": (1, 1000),
    "recycle_calls": (1, _MANY),
}
# Names inside the sandbox that are its own, with everything below.
_OWN_FOLDERS = ("/tmp", "/proc", "/sys", "/dev", "/work", "/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc")  # noqa: S108
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z")


def check(config: SandboxConfig) -> None:
    """Raise `SandboxConfigError` for the first field that makes no sense, with what is allowed."""
    for name in _ABOVE_ZERO_S:
        seconds(name, getattr(config, name))
    if config.max_cpu_seconds is not None:
        seconds("max_cpu_seconds", config.max_cpu_seconds)
    for name, (least, most) in _WHOLE.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise SandboxConfigError(
                name, f"must be a whole number of at least {least} and at most {most}, not {value!r}"
            )
    if not isinstance(config.allow_network, bool):
        raise SandboxConfigError("allow_network", f"must be true or false, not {config.allow_network!r}")
    _check_levels(config)
    _check_environment(config.environment)
    if isinstance(config.preload, str):
        raise SandboxConfigError("preload", f"must be several names, not the text {config.preload!r}")
    for module in config.preload:
        if not isinstance(module, str) or not _MODULE.match(module):
            raise SandboxConfigError("preload", f"names {module!r}, which is no module")
    for name in ("working_dir", "packages"):
        if getattr(config, name) is not None:
            _check_path(name, getattr(config, name))
    _check_targets(config)


def _check_levels(config: SandboxConfig) -> None:
    from sandbox.types import IsolationLevel

    for name in ("minimum_level", "maximum_level"):
        if not isinstance(getattr(config, name), IsolationLevel):
            raise SandboxConfigError(name, f"must be an IsolationLevel, not {getattr(config, name)!r}")
    if config.maximum_level is IsolationLevel.NONE:
        raise SandboxConfigError("maximum_level", "is none: nothing could run")
    if config.minimum_level > config.maximum_level:
        raise SandboxConfigError(
            "minimum_level", f"is {config.minimum_level}, above maximum_level {config.maximum_level}"
        )


def _check_environment(environment: Mapping[str, str]) -> None:
    for key, value in environment.items():
        is_text = isinstance(key, str) and isinstance(value, str)
        if not is_text or not key or "=" in key or "\0" in key + value or not _can_be_encoded(key + value):
            raise SandboxConfigError("environment", f"has a variable that cannot be set: {key!r}")


def _check_path(field: str, path: object) -> None:
    """An empty path would be taken for the server's own working folder."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in str(path):
        raise SandboxConfigError(field, f"must be the path of a folder, not {path!r}")


def _can_be_encoded(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_targets(config: SandboxConfig) -> None:
    from sandbox.types import Mount

    targets: set[str] = set()
    for mount in config.mounts:
        if not isinstance(mount, Mount) or not isinstance(mount.writable, bool):
            raise SandboxConfigError("mounts", f"has {mount!r}, which is no Mount")
        _check_path("mounts", mount.source)
        target = mount.target or os.path.realpath(mount.source)
        if not os.path.isabs(target) or os.path.normpath(target) != target or target == "/":
            raise SandboxConfigError("mounts", f"target {target!r} must be an absolute path")
        if any(f"{target}/".startswith(f"{own}/") for own in _OWN_FOLDERS):
            raise SandboxConfigError(
                "mounts",
                f"target {target!r} is in a folder of the sandbox's own; name another, such as /data",
            )
        if any(
            f"{target}/".startswith(f"{each}/") or f"{each}/".startswith(f"{target}/") for each in targets
        ):
            raise SandboxConfigError("mounts", f"target {target!r} is named twice, or is inside another")
        targets.add(target)


def seconds(name: str, value: float) -> float:
    """Return `value` if it is a number of seconds above 0 and at most a week.

    Raises:
        SandboxConfigError: It is not; `name` says which it was.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SandboxConfigError(name, f"must be a number of seconds, not {value!r}")
    if not (math.isfinite(value) and 0 < value <= MAX_SECONDS):
        raise SandboxConfigError(
            name, f"must be above 0 and at most {MAX_SECONDS:.0f} seconds, not {value!r}"
        )
    return float(value)


def contents(files: Mapping[str, bytes | str]) -> list[bytes]:
    """What is in `files`, as bytes.

    Raises:
        SandboxConfigError: A name is not one of a file in the working folder, or a content is none.
    """
    found = []
    for name, data in files.items():
        if not isinstance(name, str):
            raise SandboxConfigError("files", f"has a {type(name).__name__} as a name")
        parts = name.split("/")
        if any(part in {"", ".", ".."} for part in parts) or "\0" in name or len(name) > MAX_NAME_CHARS:
            raise SandboxConfigError(
                "files",
                f"has the name {name!r}; it must be relative, without .., of {MAX_NAME_CHARS} letters",
            )
        if not isinstance(data, str | bytes | bytearray | memoryview):
            raise SandboxConfigError("files", f"has {type(data).__name__} as the content of {name!r}")
        if not _can_be_encoded(name) or (isinstance(data, str) and not _can_be_encoded(data)):
            raise SandboxConfigError("files", f"has a text at {name!r} that cannot be encoded")
        found.append(data.encode() if isinstance(data, str) else bytes(data))
    return found

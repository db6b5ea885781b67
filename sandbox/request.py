"""One call as its caller asked for it, checked: the same for every backend, before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.errors import SandboxConfigError
from sandbox.types import SandboxConfig
from sandbox.validate import contents, seconds

MAX_CODE_BYTES = 1024 * 1024
MAX_FILES_BYTES = 16 * 1024 * 1024  # of all files that are handed over together
MAX_FILES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What goes to the process that runs the code.

    Args:
        header: The code, the names and sizes of the files, and what may come back.
        blobs: The files' contents, in the order of `header["files"]`.
        wall_s: How long it may run.
    """

    header: Mapping[str, Any]
    blobs: list[bytes]
    wall_s: float


def checked(
    config: SandboxConfig,
    code: str,
    session: str | None,
    files: Mapping[str, bytes | str] | None,
    timeout_seconds: float | None,
    tenant: str,
) -> Request:
    """Return the call; its arguments are those of `Sandbox.execute`.

    Raises:
        SandboxConfigError: An argument makes no sense, or is over its limit.
    """
    wall_s = config.timeout_seconds
    if timeout_seconds is not None:
        wall_s = min(wall_s, seconds("timeout_seconds", timeout_seconds))
    for name, value in (("code", code), ("tenant", tenant), ("session", "" if session is None else session)):
        if not isinstance(value, str):
            raise SandboxConfigError(name, f"must be text, not {type(value).__name__}")
    if len(code.encode("utf-8", "surrogatepass")) > MAX_CODE_BYTES:
        raise SandboxConfigError("code", f"is larger than {MAX_CODE_BYTES} bytes")
    given = {} if files is None else files
    if not isinstance(given, Mapping):
        raise SandboxConfigError("files", f"must be names with contents, not {type(given).__name__}")
    if len(given) > MAX_FILES:
        raise SandboxConfigError("files", f"are more than {MAX_FILES}")
    blobs = contents(given)
    if sum(map(len, blobs)) > MAX_FILES_BYTES:
        raise SandboxConfigError("files", f"are larger than {MAX_FILES_BYTES} bytes together")
    header = {
        "code": code,
        "files": [[name, len(data)] for name, data in zip(given, blobs, strict=True)],
        "max_files": config.max_artifacts,
        "max_bytes": config.max_artifact_bytes,
    }
    return Request(header=header, blobs=blobs, wall_s=wall_s)

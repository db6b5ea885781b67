"""The backends that keep the contract, and sandboxes of each, shared by the tests that ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from sandbox import PythonSandbox, SandboxConfig

if TYPE_CHECKING:
    from sandbox.docker import DockerSandbox

AnySandbox: TypeAlias = "PythonSandbox | DockerSandbox"

# Small enough to be reached at once, and large enough for a guard that looks every few milliseconds.
SMALL: Mapping[str, Any] = {
    "timeout_seconds": 10.0,
    "max_memory_mb": 64,
    "max_output_bytes": 2000,
    "max_processes": 12,
    "max_open_files": 64,
    "max_disk_mb": 8,
    "max_files": 100,
    "max_artifacts": 4,
    "max_artifact_bytes": 100_000,
    "environment": {"MINE": "of the owner"},
    "pool_size": 2,
    "max_concurrent_calls": 4,
    "max_sessions": 4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One way to isolate.

    Args:
        name: Of the parameter, such as `"docker"`.
        kind: What results call it.
        runtime: What results say that the container ran under.
        open: Makes a sandbox of a configuration.
    """

    name: str
    kind: str
    runtime: str | None
    open: Callable[[SandboxConfig], AnySandbox]

    def make(self, **fields: Any) -> AnySandbox:
        """A sandbox of its own, for a test that closes it."""
        return self.open(SandboxConfig(**{**SMALL, **fields}))


class Boxes:
    """Sandboxes of one backend, each configuration once; all end together."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._made: dict[str, AnySandbox] = {}

    def __call__(self, **fields: Any) -> AnySandbox:
        key = repr(sorted(fields.items()))
        if key not in self._made:
            self._made[key] = self._backend.make(**fields)
        return self._made[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for box in self._made.values():
            box.close()

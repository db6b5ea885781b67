"""Runs Python code in containers of Docker or Podman, a fresh one for every call.

    from sandbox import DockerSandbox, SandboxConfig

    with DockerSandbox("python:3.11-slim", SandboxConfig(timeout_seconds=5)) as sandbox:
        result = sandbox.execute_sync("print(1 + 1)")

Names load on first use, and the `docker` SDK when an engine is first asked for something.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandbox.docker.backend import DockerSandbox

__all__ = ["DockerSandbox"]


def __getattr__(name: str) -> object:
    if name != "DockerSandbox":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sandbox.docker.backend import DockerSandbox

    globals()[name] = DockerSandbox
    return DockerSandbox

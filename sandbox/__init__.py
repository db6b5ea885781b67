"""Runs Python code in isolation, freshly isolated for every call. Imports nothing from mcp_tools.

    from sandbox import PythonSandbox, SandboxConfig

    with PythonSandbox(SandboxConfig(timeout_seconds=5)) as sandbox:
        result = sandbox.execute_sync("print(1 + 1)")
        print(result.stdout, result.isolation)

Names load on first use: the process that children are forked from imports parts of this package and must
stay small.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not from typing, which would cost every zygote milliseconds; checkers know the name
if TYPE_CHECKING:
    from sandbox.base import Sandbox
    from sandbox.docker.backend import DockerSandbox
    from sandbox.errors import (
        Missing,
        SandboxBusy,
        SandboxClosed,
        SandboxConfigError,
        SandboxDied,
        SandboxError,
        SandboxUnavailable,
    )
    from sandbox.linux.backend import PythonSandbox
    from sandbox.select import Choice, Host, choose, detect
    from sandbox.types import Artifact, EndedBy, IsolationLevel, Mount, SandboxConfig, SandboxResult

__all__ = [
    "Artifact",
    "Choice",
    "DockerSandbox",
    "EndedBy",
    "Host",
    "IsolationLevel",
    "Missing",
    "Mount",
    "PythonSandbox",
    "Sandbox",
    "SandboxBusy",
    "SandboxClosed",
    "SandboxConfig",
    "SandboxConfigError",
    "SandboxDied",
    "SandboxError",
    "SandboxResult",
    "SandboxUnavailable",
    "choose",
    "detect",
]

_HOME = {
    "Sandbox": "sandbox.base",
    "PythonSandbox": "sandbox.linux.backend",
    "DockerSandbox": "sandbox.docker.backend",
    **dict.fromkeys(("Artifact", "EndedBy", "IsolationLevel", "Mount"), "sandbox.types"),
    **dict.fromkeys(("SandboxConfig", "SandboxResult"), "sandbox.types"),
    **dict.fromkeys(("Choice", "Host", "choose", "detect"), "sandbox.select"),
}


def __getattr__(name: str) -> object:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME.get(name, "sandbox.errors")), name)
    globals()[name] = value
    return value

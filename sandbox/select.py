"""What this host can enforce, found by doing it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace

from sandbox.errors import Missing, SandboxUnavailable
from sandbox.types import IsolationLevel, SandboxConfig


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


def detect(config: SandboxConfig | None = None) -> Host:
    """Start a sandbox with one child, see at which level it comes up, and end it again.

    Args:
        config: The sandbox that is meant to run; its mounts and packages are part of what has to work.
            `None` for the defaults.

    Raises:
        SandboxConfigError: A folder of the configuration does not exist.
        SandboxDied: It came up at no level and gave no reason, such as an interpreter that cannot start.
    """
    began_s = time.monotonic()
    if sys.platform != "linux":
        elsewhere = Missing(
            level="L2",
            step="Linux",
            reason=f"the embedded sandbox needs Linux, this is {sys.platform}",
            remedy="Use the Docker sandbox.",
        )
        return Host(level=IsolationLevel.NONE, missing=(elsewhere,), seconds=0.0)
    from sandbox.linux.backend import PythonSandbox

    config = replace(config or SandboxConfig(), pool_size=1)
    level, walls_s = IsolationLevel.NONE, 0.0
    missing: tuple[Missing, ...] = ()
    try:
        with PythonSandbox(config) as sandbox:
            sandbox.execute_sync("")
            level, missing, walls_s = sandbox.level or level, sandbox.missing, sandbox.walls_seconds
    except SandboxUnavailable as refusal:
        missing = refusal.missing
    return Host(level=level, missing=missing, seconds=time.monotonic() - began_s, walls_seconds=walls_s)

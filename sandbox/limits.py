"""The limits of a call in the units of what enforces them, as each backend tells them to what runs inside."""

from __future__ import annotations

import math

from sandbox.types import SandboxConfig


def limits(config: SandboxConfig) -> dict[str, int]:
    """Bytes, nanoseconds and counts; a limit on CPU time of 0 is none."""
    cpu_s = config.max_cpu_seconds or 0
    return {
        "memory_bytes": config.max_memory_mb * 1024**2,
        "disk_bytes": config.max_disk_mb * 1024**2,
        "files": config.max_files,
        "processes": config.max_processes,
        "open_files": config.max_open_files,
        "cpu_s": math.ceil(cpu_s),  # for the kernel, which counts whole seconds of one process
        "cpu_ns": int(cpu_s * 1e9),
    }

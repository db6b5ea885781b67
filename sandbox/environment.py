"""The variables that the code of every backend sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.types import SandboxConfig


def environment(config: SandboxConfig) -> dict[str, str]:
    """The variables of the code but its PATH: ours, then the owner's, and nothing of the server's own.

    Numeric libraries are told to use one thread: a process that has threads cannot be forked well, and each
    thread counts as a process of the call.
    """
    return {
        "HOME": "/tmp",  # noqa: S108 - inside the sandbox
        "TMPDIR": "/tmp",  # noqa: S108
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": "/var/cache/sandbox",
        **dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
        ),
        "MALLOC_ARENA_MAX": "2",
        **config.environment,
    }

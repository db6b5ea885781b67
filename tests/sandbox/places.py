"""Other users and interpreters to run the sandbox as: what a host allows depends on who asks.

The package runs from a copy, and by an interpreter, that everyone can read; ours may be in a closed home.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
STRANGER = 54321  # a uid that nobody has
PATH = "/usr/local/bin:/usr/bin:/bin"


@functools.cache
def interpreter_for_all() -> str:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    ours = os.path.realpath(sys.executable)
    # setpriv keeps its rights until it executes: that alone would find an interpreter in a closed home.
    probe = (
        "import ctypes, os, ssl, sys; "
        "sys.exit(sys.version_info < (3, 11) or not os.access(sys.executable, os.X_OK))"
    )
    who = _as(STRANGER if os.geteuid() == 0 else None)
    for candidate in (ours, f"/usr/bin/{version}", f"/usr/local/bin/{version}", "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            argv = [candidate, "-I", "-c", probe]
            if subprocess.run(argv, cwd="/", capture_output=True, check=False, **who).returncode == 0:
                return candidate
    pytest.skip("needs an interpreter that every user can run")


def _as(uid: int | None) -> dict[str, Any]:
    """Not by setpriv: it keeps the rights of root up to the exec, and so runs what is closed to others."""
    return {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A copy of the package that everyone can read."""

    folder: Path

    def run(
        self,
        argv: Sequence[str],
        *,
        user: bool = False,
        path: str = PATH,
        timeout_s: float = 60,
        prefix: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run the interpreter with `argv`; the package can be imported.

        `user`: as an ordinary user, who is ourselves if we are one; otherwise as root.
        """
        if not user and os.geteuid() != 0:
            pytest.skip("needs root")
        uid = STRANGER if user and os.geteuid() == 0 else None
        return subprocess.run(
            [*prefix, interpreter_for_all(), *argv],
            cwd="/",
            env={
                "PATH": path,
                "PYTHONPATH": str(self.folder),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": "/tmp",
            },
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            **_as(uid),
        )


def copied_to(folder: Path) -> Elsewhere:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sandbox", folder / "sandbox", ignore=ignore)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return Elsewhere(folder=folder)

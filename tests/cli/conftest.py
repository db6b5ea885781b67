"""Running the command line: in this process where that is enough, in one of its own where it matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mcp_tools.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("--tools", "tests.cli.sample_tools:registry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a run of the command left."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


def command(*arguments: str, through: str = "") -> list[str]:
    """The command as a process of its own.

    Args:
        through: A shell script that ends in `exec "$@"`, for surroundings that only a shell can make.
    """
    argv = [sys.executable, "-m", "mcp_tools", *arguments]
    return ["/bin/sh", "-c", through, "sh", *argv] if through else argv


@pytest.fixture(autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, where nobody can be asked."""

    def run_it(*arguments: str) -> Done:
        try:
            code = main(arguments)
        except SystemExit as exit_:  # argparse ends like this
            code = exit_.code if isinstance(exit_.code, int) else 1
        out, err = capfd.readouterr()
        return Done(code=code, out=out, err=err)

    return run_it


@pytest.fixture
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The little that a client gives a server it starts."""
    home = tmp_path_factory.mktemp("home")
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def run_apart(environ: dict[str, str]) -> Run:
    """Run the command in a process of its own; keywords go to `subprocess.run`."""

    def run_it(*arguments: str, through: str = "", **options: Any) -> Done:
        options = {"stdin": subprocess.DEVNULL, "env": environ, "cwd": ROOT} | options
        if "input" in options:
            del options["stdin"]
        done = subprocess.run(
            command(*arguments, through=through),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)

    return run_it

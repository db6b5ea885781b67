"""`scripts/try` ends well: with a terminal and without one, with a yes, a no, and Ctrl-C."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import at_a_terminal

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, str(ROOT / "scripts/demo.py")]
WAIT_S = 60


def test_without_a_terminal_it_answers_itself_and_shows_everything(tmp_path: Path) -> None:
    done = subprocess.run(
        DEMO,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for piece in ("write_file", "Allow it? [y/N] y", "+coffee", "outside", "a person said no", "elicitation"):
        assert piece in done.stdout
    config = json.loads(done.stdout[done.stdout.index('{\n  "mcpServers"') : done.stdout.rindex("\n}\n") + 2])
    (server,) = config["mcpServers"].values()
    started = subprocess.run(
        [server["command"], *server["args"]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (started.returncode, started.stdout) == (0, b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("y\n", "+coffee"),
        ("n\n", "on disk is as it was"),
    ],
    ids=["yes", "no"],
)
def test_at_a_terminal_the_person_decides(typed: str, expected: str) -> None:
    with at_a_terminal(DEMO) as terminal:
        terminal.read_until("Allow it? [y/N]")
        terminal.type(typed)
        after = terminal.read_rest()
        assert terminal.process.returncode == 0
    assert expected in after
    assert "mcpServers" in after
    assert "Traceback" not in after


def test_ctrl_c_at_the_question_stops_it() -> None:
    with at_a_terminal(DEMO) as terminal:
        terminal.read_until("Allow it? [y/N]")
        terminal.interrupt()
        after = terminal.read_rest()
        assert terminal.process.returncode == 130
    assert "stopped" in after
    assert "Traceback" not in after

"""F, G: a program that is killed in the middle of a run leaves a log in which every call that began is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from mcp_tools.observe.audit import verify
from tests.agent.anthropic_server import AnthropicServer, asks, use

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [
    asks(use("t1", "quick", {"what": "a"}), use("t2", "quick", {"what": "b"})),
    asks(
        use("t3", "quick", {"what": "c"}),
        use("t4", "endless", {"what": "d"}),
        use("t5", "endless", {"what": "e"}),
    ),
]


def test_a_program_that_is_killed_leaves_every_call_that_began_on_record(tmp_path: Path) -> None:
    log = tmp_path / "state" / "audit.jsonl"
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    with AnthropicServer(SCRIPT) as server:
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.killed_program", server.url, str(log)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        killer = _killed_after(program, 30)
        assert program.stdout is not None
        begun = [program.stdout.readline().strip() for _ in range(5)]
        os.kill(program.pid, signal.SIGKILL)
        assert program.wait(10) == -signal.SIGKILL
        killer.cancel()
        program.stdout.close()
    assert sorted(begun) == ["endless d", "endless e", "quick a", "quick b", "quick c"]
    found = verify(log)
    assert found.is_whole
    records = [json.loads(line) for line in log.read_text().splitlines()]
    begun_in_log = {record["call_id"]: record for record in records if record["kind"] == "call.intent"}
    ended_in_log = {record["call_id"] for record in records if record["kind"] == "call.outcome"}
    assert len(begun_in_log) == 5
    # What has no end is named: nobody can know how far those two came.
    unfinished = {call.call_id for call in found.unfinished}
    assert unfinished == set(begun_in_log) - ended_in_log
    names = sorted(begun_in_log[call_id]["tool"] for call_id in unfinished if call_id in begun_in_log)
    assert [name for name in names if name == "endless"] == ["endless", "endless"]
    # The first turn was over: its calls have their ends, or the model could not have been asked again.
    assert sum(record["tool"] == "quick" for record in records if record["kind"] == "call.outcome") >= 2


def _killed_after(program: subprocess.Popen[str], seconds: float) -> threading.Timer:
    """Bound the wait for its lines."""
    timer = threading.Timer(seconds, program.kill)
    timer.daemon = True
    timer.start()
    return timer

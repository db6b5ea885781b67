"""Attacks on the server, and what it hands on: kill -1 for real, a stopped server, escapes in output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from sandbox.types import EndedBy
from tests.sandbox.places import PATH, STRANGER, Elsewhere, interpreter_for_all

KILLER = """
import json, os, sys
from sandbox import IsolationLevel, PythonSandbox, SandboxConfig
level = IsolationLevel.parse(sys.argv[1])
with PythonSandbox(SandboxConfig(minimum_level=level, maximum_level=level)) as sandbox:
    results = [sandbox.execute_sync("import os\\nos.kill(-1, 9)"), sandbox.execute_sync("print('alive')")]
    print(json.dumps([result.stdout for result in results]))
"""


@pytest.mark.parametrize("level", ["L4", "L3", "L2"])
def test_killing_everybody_kills_nobody_else(level: str, elsewhere: Elsewhere) -> None:
    """D-23. As a user of its own: should it work, it ends this test's processes only."""
    done = elsewhere.run(["-c", KILLER, level], user=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1] == "alive\n"


SPINNER = """
import json, sys, time
from sandbox import IsolationLevel, PythonSandbox, SandboxConfig
level = IsolationLevel.parse(sys.argv[1])
with PythonSandbox(SandboxConfig(minimum_level=level, maximum_level=level)) as sandbox:
    sandbox.execute_sync("pass")
    print("ready", flush=True)
    spun = sandbox.execute_sync("print('begun', flush=True)\\nwhile True: pass", timeout_seconds=0.5)
    after = sandbox.execute_sync("print(6 * 7)")
    print(json.dumps([spun.ended_by, spun.stdout, spun.cpu_ms, after.stdout]), flush=True)
"""


@pytest.mark.parametrize("level", ["L4", "L3", "L2"])
def test_a_server_that_is_stopped_in_a_call_does_not_give_the_call_more_time(
    level: str, elsewhere: Elsewhere
) -> None:
    """D-25."""
    who = {"user": STRANGER, "group": STRANGER, "extra_groups": []} if os.geteuid() == 0 else {}
    env = {"PATH": PATH, "PYTHONPATH": str(elsewhere.folder)}
    argv = [interpreter_for_all(), "-c", SPINNER, level]
    with subprocess.Popen(argv, env=env, cwd="/", stdout=subprocess.PIPE, text=True, **who) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        time.sleep(0.2)  # into the call
        server.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # three times what the call may take
        server.send_signal(signal.SIGCONT)
        said, _ = server.communicate(timeout=20)
    ended_by, stdout, cpu_ms, after = json.loads(said)
    assert (ended_by, stdout, after) == (EndedBy.TIME, "begun\n", "42\n")
    assert cpu_ms < 900


OUTPUT = """
import json
from sandbox import PythonSandbox, SandboxConfig
escapes = "\\x1b]0;title\\x07\\x1b[2J\\x1b[31m\\x9b2K\\u202e\\u2028\\r\\b"
with PythonSandbox(SandboxConfig(max_output_bytes=50_000)) as sandbox:
    shown = sandbox.execute_sync(f"print({escapes!r}, end='')")
    marks = sandbox.execute_sync("print('e' + chr(0x301) * 1_000_000)")
    broken = sandbox.execute_sync("import os; os.write(1, bytes(range(256)))")
    print(json.dumps([shown.stdout == escapes, len(marks.stdout.encode()), marks.stdout_dropped_bytes,
                      marks.stdout_replaced, broken.stdout_replaced, len(broken.stdout)]))
"""


def test_escapes_are_data_and_marks_without_end_are_bounded(elsewhere: Elsewhere) -> None:
    """D-24: nothing here is a terminal. What shows a result to one escapes it there."""
    done = elsewhere.run(["-c", OUTPUT], user=True)
    same, size, dropped, torn, replaced, length = json.loads(done.stdout)
    assert same
    assert size <= 50_000
    assert size + dropped in (2_000_002, 2_000_003, 2_000_001)
    assert not torn  # the limit does not cut a character in two
    assert replaced
    assert length <= 256

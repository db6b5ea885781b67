"""However a server ends, nothing of its sandboxes is left soon after: at every level, whoever runs it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.sandbox.levels import L4_PLUS, PLACES, USERS, Place, at
from tests.sandbox.life.family import Traces, eventually, traces
from tests.sandbox.places import PATH, STRANGER, Elsewhere, interpreter_for_all

GONE_S = 0.5
CLEAN_S = 2.0  # folders and cgroups, which the launcher removes after the last process

PROLOGUE = """
import os, signal, sys, threading, time
from sandbox import *
level = IsolationLevel.parse(sys.argv[1])
box = PythonSandbox(SandboxConfig(minimum_level=min(level, IsolationLevel.L4), maximum_level=level))
def ready():
    print(box.level, flush=True)
"""
IDLE = "box.execute_sync(''); ready(); signal.pause()"
BUSY = """
tree = "import os, sys, time\\nfork and os.fork() and os.fork()\\nprint(1)\\ntime.sleep(60)"
tree = f"fork = {level > IsolationLevel.L2}\\n{tree}"
def call(**more):
    threading.Thread(target=box.execute_sync, args=(tree,), kwargs=more, daemon=True).start()
for name in ("idle", "running"):
    assert box.execute_sync("x = 1", session=name).success
call()
call()
call(session="running")
time.sleep(0.2)  # until they run; what they write comes with their end
ready()
signal.pause()
"""
STARTING = "box.warm(); print('starting', flush=True); signal.pause()"


@contextlib.contextmanager
def server(elsewhere: Elsewhere, place: Place, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process of the user, which has a sandbox at the level and got as far as `code` says."""
    if place.user and os.geteuid() != 0 and place is not USERS[0]:
        pytest.skip("the tests run as an ordinary user anyway")
    other = place.user and os.geteuid() == 0
    process = subprocess.Popen(
        [interpreter_for_all(), "-c", PROLOGUE + code, str(place.level)],
        cwd="/",
        env={"PATH": PATH, "PYTHONPATH": str(elsewhere.folder), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **({"user": STRANGER, "group": STRANGER, "extra_groups": []} if other else {}),
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            said = process.stdout.readline().strip()
            if not said:
                problem = process.stderr.read()
                if "SandboxUnavailable" in problem:
                    pytest.skip(f"needs {place.level}: {problem.splitlines()[-1]}")
                pytest.fail(problem)
            if said != "starting":
                assert said == str(place.level)
            yield process
        finally:
            process.kill()


def check_nothing_is_left(seen: Traces) -> None:
    """No process soon after, and nothing else once the launcher has cleaned up."""
    assert eventually(lambda: not [each for each in seen.left() if each.startswith("process")], GONE_S), (
        seen.left()
    )
    assert eventually(lambda: not seen.left(), CLEAN_S), seen.left()


@at(*PLACES, *USERS)
def test_killed_server_with_calls_and_sessions_leaves_nothing(elsewhere: Elsewhere, place: Place) -> None:
    with server(elsewhere, place, BUSY) as process, traces(process.pid) as seen:
        assert len(seen.pids) > 8
        assert place.level != L4_PLUS.level or any("cgroup" in each for each in seen.left())
        seen.kill_server()
        check_nothing_is_left(seen)


@at(L4_PLUS)
def test_killed_server_with_an_idle_pool_leaves_nothing(elsewhere: Elsewhere, place: Place) -> None:
    with server(elsewhere, place, IDLE) as process, traces(process.pid) as seen:
        seen.kill_server()
        check_nothing_is_left(seen)


@at(L4_PLUS)
@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.02, 0.03, 0.05, 0.08])
def test_server_killed_during_the_start_leaves_nothing(
    elsewhere: Elsewhere, place: Place, delay_s: float
) -> None:
    with server(elsewhere, place, STARTING) as process:
        time.sleep(delay_s)  # there is no event inside the start
        with traces(process.pid) as seen:
            seen.kill_server()
            assert eventually(lambda: not seen.left(), CLEAN_S), seen.left()


@at(L4_PLUS)
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise OSError", 1),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT),
    ],
    ids=["end of the program", "sys.exit", "exception", "SIGTERM", "SIGINT"],
)
def test_server_that_does_not_close_leaves_nothing(
    elsewhere: Elsewhere, place: Place, ending: str, code: int
) -> None:
    live = "box.execute_sync('x = 1', session='a'); ready(); sys.stdin.readline()\n"
    with server(elsewhere, place, live + ending) as process, traces(process.pid) as seen:
        assert process.stdin is not None
        process.stdin.close()
        asked_s = time.monotonic()
        assert process.wait(5) == code
        assert time.monotonic() - asked_s < 2
        check_nothing_is_left(seen)
        assert process.stderr is not None
        problems = process.stderr.read()
        assert "sandbox" not in problems
        assert not problems or code not in {0, 3}

"""Sessions: what persists, what a call that is ended takes with it, and when a session goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandbox import EndedBy, SandboxError, SandboxResult
from tests.contract.backends import AnySandbox, Backend, Boxes


class Session:
    """A session of its own, ended with the test."""

    def __init__(self, box: AnySandbox, name: str) -> None:
        self.box = box
        self.name = name

    def __call__(self, code: str, timeout_seconds: float | None = None) -> SandboxResult:
        return self.box.execute_sync(code, session=self.name, timeout_seconds=timeout_seconds)

    def value(self, code: str) -> str | None:
        result = self(code)
        assert (result.stderr, result.success) == ("", True), result
        return result.value


@pytest.fixture(scope="module")
def long_lived(box: AnySandbox) -> Iterator[Session]:
    """One for all tests that leave it as they find it: beginning one costs a container."""
    session = Session(box, "long lived")
    yield session
    box.end_session(session.name)


@pytest.fixture
def session(box: AnySandbox, request: pytest.FixtureRequest) -> Iterator[Session]:
    made = Session(box, f"of {request.node.name}"[:100])
    yield made
    box.end_session(made.name)


def test_variables_imports_functions_and_files_persist(session: Session) -> None:
    first = session("import math\nx = [1]\ndef f(): return x + [math.floor(2.5)]\nopen('f', 'w').write('hi')")
    assert (first.session, first.session_started, first.session_lost) == (session.name, True, False)
    second = session("x.append(3)\nf(), open('f').read()")
    assert (second.value, second.session_started) == ("([1, 3, 2], 'hi')", False)
    assert session.value("_") == "([1, 3, 2], 'hi')"
    session("import os\nos.chdir('/tmp')\nos.environ['MINE'] = 'changed'")
    assert session.value("os.getcwd(), os.environ['MINE']") == "('/tmp', 'changed')"


def test_an_exception_or_an_exit_keeps_what_was_done_before_it(long_lived: Session) -> None:
    failed = long_lived("x = 5\n1 / 0\nx = 6")
    assert (failed.ended_by, failed.session_lost) == (EndedBy.EXCEPTION, False)
    assert long_lived.value("x") == "5"
    left = long_lived("x = 7\nexit(3)\nx = 8")
    assert (left.ended_by, left.return_code, left.session_lost) == (EndedBy.EXIT, 3, False)
    assert long_lived.value("x") == "7"


ENDINGS = {
    "time": ("import time\ntime.sleep(60)", EndedBy.TIME),
    "busy": ("while True: pass", EndedBy.TIME),
    "memory": ("kept = b'x' * (200 << 20)", EndedBy.MEMORY),
    "crash": ("import ctypes\nctypes.string_at(0)", EndedBy.CRASH),
    "left at once": ("import os\nos._exit(4)", EndedBy.EXIT),
    "output": ("while True: print('x' * 10_000)", EndedBy.OUTPUT),
    "processes that stay": (
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0: time.sleep(60)\ntime.sleep(60)",
        EndedBy.TIME,
    ),
}


@pytest.mark.parametrize(("code", "by"), ENDINGS.values(), ids=ENDINGS)
def test_a_call_that_is_ended_leaves_the_session_as_it_was(
    code: str, by: EndedBy, long_lived: Session
) -> None:
    long_lived("x = 1\nopen('f', 'w').write('before')")
    limit = 0.4 if by is EndedBy.TIME else None
    result = long_lived(f"x = 2\nprint('so far', flush=True)\n{code}", timeout_seconds=limit)
    assert (result.ended_by, result.session_lost, result.success) == (by, False, False), result
    assert result.stdout.startswith("so far\n")
    after = long_lived("x, open('f').read()")
    caught = result.return_code == 1  # the code met the limit and came to its end
    assert (after.value, after.session_started) == (f"({2 if caught else 1}, 'before')", False)


def test_threads_and_processes_end_with_the_call_that_started_them(long_lived: Session) -> None:
    code = """
import subprocess, sys, threading, time
ticks = []
def tick():
    while True:
        ticks.append(1)
        time.sleep(0.001)
thread = threading.Thread(target=tick, daemon=True)
thread.start()
process = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(60)"])
None
"""
    assert long_lived.value(code) is None
    after = "before = len(ticks)\ntime.sleep(0.05)\nlen(ticks) - before, thread.is_alive()"
    assert long_lived.value(after) == "(0, False)"
    assert long_lived.value("process.poll() is not None") == "True"


def test_files_and_artifacts_of_a_session_are_those_of_its_calls(session: Session) -> None:
    first = session("open('/tmp/out/a', 'w').write('1')")
    assert [(each.name, each.data) for each in first.artifacts] == [("a", b"1")]
    assert session("1").artifacts == ()
    changed = session("open('/tmp/out/a', 'w').write('22')")
    assert [(each.name, each.data) for each in changed.artifacts] == [("a", b"22")]
    given = session.box.execute_sync("open('given').read()", session=session.name, files={"given": "in"})
    assert given.value == "'in'"


def test_a_session_belongs_to_its_tenant(box: AnySandbox) -> None:
    box.execute_sync("x = 1", session="same", tenant="first")
    other = box.execute_sync("'x' in globals()", session="same", tenant="second")
    assert (other.value, other.session_started) == ("False", True)
    assert not box.end_session("same", tenant="third")
    assert box.end_session("same", tenant="second")
    assert box.execute_sync("x", session="same", tenant="first").value == "1"
    assert box.end_session("same", tenant="first")


def test_a_session_ends_when_it_is_told_to(session: Session) -> None:
    session("x = 1")
    assert session.box.end_session(session.name)
    assert not session.box.end_session(session.name)
    again = session("'x' in globals()")
    assert (again.value, again.session_started) == ("False", True)


def test_calls_of_one_session_run_one_after_another(long_lived: Session) -> None:
    long_lived("import time\nlog = []")

    def call(number: int) -> SandboxResult:
        return long_lived(f"log.append({number})\ntime.sleep(0.02)\nlog.append({number})")

    with ThreadPoolExecutor(4) as pool:
        assert all(result.success for result in pool.map(call, range(4)))
    log = eval(long_lived.value("log") or "[]")
    assert sorted(log) == sorted([*range(4)] * 2)
    assert log[::2] == log[1::2]


def test_a_session_that_is_ended_during_a_call_says_so(box: AnySandbox) -> None:
    with ThreadPoolExecutor(1) as pool:
        box.execute_sync("import time", session="s")
        code = "open('/tmp/out/begun', 'w').close()\nprint('so far', flush=True)\ntime.sleep(60)"
        call = pool.submit(box.execute_sync, code, session="s")
        time.sleep(0.3)
        assert box.end_session("s")
        result = call.result(timeout=10)
    assert (result.ended_by, result.session_lost, result.stdout) == (EndedBy.CANCELLED, True, "so far\n")


def test_a_session_that_nobody_uses_goes(boxes: Boxes) -> None:
    session = Session(boxes(session_idle_seconds=0.8, max_sessions=2), "idle")
    session("x = 1")
    for _ in range(3):
        time.sleep(0.3)
        assert session.value("x") == "1"  # each use begins the time anew
    time.sleep(1.6)
    result = session("'x' in globals()")
    assert (result.value, result.session_started) == ("False", True)


def test_at_the_limit_the_longest_idle_session_goes(boxes: Boxes) -> None:
    box = boxes(max_sessions=2)
    for name in ("a", "b", "a", "c"):
        box.execute_sync("n = globals().get('n', 0) + 1", session=name)
    assert box.execute_sync("n", session="a").value == "2"
    assert box.execute_sync("n", session="c").value == "1"
    assert box.execute_sync("'n' in globals()", session="b").session_started


def test_at_the_limit_a_session_in_use_does_not_go(backend: Backend) -> None:
    with backend.make(max_sessions=1, pool_size=1) as box, ThreadPoolExecutor(1) as pool:
        box.execute_sync("import time", session="busy")
        first = pool.submit(box.execute_sync, "time.sleep(1.5)\n'kept'", session="busy")
        time.sleep(0.2)
        with pytest.raises(SandboxError, match="busy"):
            box.execute_sync("1", session="another")
        assert first.result(timeout=20).value == "'kept'"

"""Sessions: what persists, what a call that is ended takes with it, and when a session goes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox import EndedBy, PythonSandbox, SandboxBusy, SandboxConfig, SandboxError, SandboxResult
from tests.sandbox.levels import L2, L3, L4, L4_PLUS, L4_USER, PLACES, Box, Boxes, Place, at

KEEPING = (L4_PLUS, L4, L3, L4_USER)
LIMITS: dict[str, Any] = {
    "timeout_seconds": 10.0,
    "max_memory_mb": 128,
    "max_sessions": 4,
    "max_processes": 12,
}


class Session:
    """A session of its own, ended with the test."""

    def __init__(self, box: Box, name: str) -> None:
        self.box = box
        self.name = name

    def __call__(self, code: str, **arguments: Any) -> SandboxResult:
        return self.box.execute_sync(code, session=self.name, **arguments)

    def value(self, code: str) -> str | None:
        result = self(code)
        assert (result.stderr, result.success) == ("", True), result
        return result.value


@pytest.fixture
def session(place: Place, boxes: Boxes, request: pytest.FixtureRequest) -> Any:
    made = Session(boxes.at(place, **LIMITS), f"of {request.node.name}")
    yield made
    made.box.end_session(made.name)


# --- What persists ----------------------------------------------------------------------------


@at(*PLACES, L4_USER)
def test_variables_imports_functions_classes_and_files_persist(session: Session) -> None:
    first = session(
        "import math\nx = [1]\ndef f(): return x + [math.floor(2.5)]\nclass A:\n    y = 3\n"
        "open('f', 'w').write('hi')"
    )
    assert (first.session_started, first.session_lost, first.session) == (True, False, session.name)
    second = session("x.append(A.y)\nf(), open('f').read()")
    assert (second.value, second.session_started) == ("([1, 3, 2], 'hi')", False)
    assert session.value("_") == "([1, 3, 2], 'hi')"
    session("import os\nos.chdir('/')\nos.environ['MINE'] = '1'")
    assert session.value("os.getcwd(), os.environ['MINE']") == "('/', '1')"


@at(*PLACES)
def test_an_exception_or_an_exit_keeps_what_was_done_before_it(session: Session) -> None:
    failed = session("x = 5\n1 / 0\nx = 6")
    assert (failed.ended_by, failed.session_lost) == (EndedBy.EXCEPTION, False)
    assert session.value("x") == "5"
    left = session("x = 7\nexit(3)\nx = 8")
    assert (left.ended_by, left.return_code, left.session_lost) == (EndedBy.EXIT, 3, False)
    assert session.value("x") == "7"


@at(*PLACES)
def test_a_syntax_error_changes_nothing(session: Session) -> None:
    session("x = 1")
    assert session("x = 2\ny = (").exception == "SyntaxError"
    assert session.value("x") == "1"


@at(*PLACES)
def test_a_traceback_shows_the_lines_of_the_call_they_are_from(session: Session) -> None:
    session("def f():\n    # a comment\n    return 1 / 0")
    result = session("x = 1\nf()  # called here")
    assert '  File "<code 2>", line 2, in <module>\n    f()  # called here\n' in result.stderr
    assert '  File "<code 1>", line 3, in f\n    return 1 / 0\n' in result.stderr


@at(*PLACES)
def test_what_a_call_did_to_its_streams_does_not_reach_the_next(session: Session) -> None:
    for code in (
        "import io, os, sys\nsys.stdout = sys.stderr = io.StringIO()",
        "sys.stdout.close()",
        "sys.stdout.detach()",
        "os.close(1)",
        "os.closerange(0, 3)",
        "sys.stdin.close()",
        "sys.stdout.write('no newline')",
    ):
        result = session(code)
        assert result.ended_by is EndedBy.EXIT, (code, result)
        after = session("print('out')\nprint('err', file=sys.stderr)\nsys.stdin.read()")
        assert (after.stdout, after.stderr, after.value) == ("out\n", "err\n", "''"), code
    assert not after.session_started


@at(*KEEPING)
def test_threads_and_processes_end_with_the_call_that_started_them(session: Session, place: Place) -> None:
    code = """
import subprocess, sys, threading, time
ticks = []
def tick():
    while True:
        ticks.append(1)
        time.sleep(0.001)
thread = threading.Thread(target=tick, daemon=True)
thread.start()
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
process.poll()
"""
    assert session.value(code) is None
    assert session.value("before = len(ticks)\ntime.sleep(0.05)\nlen(ticks) - before, thread.is_alive()") == (
        "(0, False)"
    )
    assert session.value("process.poll() is not None") == "True"


@at(*PLACES)
def test_randomness_goes_on_and_differs_between_sessions(
    session: Session, boxes: Boxes, place: Place
) -> None:
    numbers = [session.value("import random\nrandom.random()") for _ in range(3)]
    other = Session(session.box, "another")
    numbers += [other.value("import random\nrandom.random()")]
    assert len(set(numbers)) == 4
    session("random.seed(1)")
    seeded = [session.value("random.random()") for _ in range(2)]
    assert seeded == ["0.13436424411240122", "0.8474337369372327"]
    other.box.end_session("another")


@at(L4_PLUS, L4)
def test_a_large_state_persists(session: Session) -> None:
    session("numbers = list(range(700_000))\ntext = 'x' * 20_000_000")
    for _ in range(3):
        assert session.value("numbers.append(1)\nlen(numbers) - 700_000 > 0, len(text)") == "(True, 20000000)"
    assert session("time.sleep(9)\nimport time\ntime.sleep(9)", timeout_seconds=0.2).exception == "NameError"
    assert session.value("len(numbers)") == "700003"


@at(*PLACES)
def test_many_calls_are_one_state(session: Session) -> None:
    session("n = 0")
    for _ in range(60):
        result = session("n += 1\nn")
    assert (result.value, result.session_started) == ("60", False)


# --- What is taken back -----------------------------------------------------------------------

ENDINGS = {
    "time": ("import time\ntime.sleep(60)", EndedBy.TIME),
    "busy": ("while True: pass", EndedBy.TIME),
    "memory": ("kept = []\nwhile True: kept.append(bytearray(1 << 20))", EndedBy.MEMORY),
    "crash": ("import ctypes\nctypes.string_at(0)", EndedBy.CRASH),
    "killed by itself": ("import os\nos.kill(os.getpid(), 9)", EndedBy.CRASH),
    "left at once": ("import os\nos._exit(4)", EndedBy.EXIT),
    "output": ("while True: print('x' * 10_000)", EndedBy.OUTPUT),
    "processes that stay": (
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0: time.sleep(60)\ntime.sleep(60)",
        EndedBy.TIME,
    ),
}


@at(*KEEPING)
@pytest.mark.parametrize(("code", "ended_by"), ENDINGS.values(), ids=ENDINGS)
def test_a_call_that_is_ended_leaves_the_session_as_it_was(
    code: str, ended_by: EndedBy, session: Session
) -> None:
    session("x = 1\nopen('f', 'w').write('before')")
    limit = 0.3 if ended_by is EndedBy.TIME else None
    result = session(f"x = 2\nprint('so far')\n{code}", timeout_seconds=limit)
    assert (result.ended_by, result.session_lost) == (ended_by, False), result
    assert result.stdout.startswith("so far\n")
    assert not result.success
    after = session("x, open('f').read()")
    caught = result.return_code == 1  # the code met the limit and came to its end
    assert (after.value, after.session_started) == (f"({2 if caught else 1}, 'before')", False)


@at(L2)
@pytest.mark.parametrize("kind", ["time", "crash", "output"])
def test_where_nothing_can_fork_such_a_call_takes_the_session_with_it(kind: str, session: Session) -> None:
    session("x = 1")
    code, ended_by = ENDINGS[kind]
    result = session(f"x = 2\n{code}", timeout_seconds=0.3 if ended_by is EndedBy.TIME else None)
    assert (result.ended_by, result.session_lost) == (ended_by, True)
    after = session("'x' in globals()")
    assert (after.value, after.session_started, after.session_lost) == ("False", True, False)


@at(*KEEPING)
def test_processes_of_a_session_are_limited(session: Session) -> None:
    session("import os, time\nx = 1")
    bomb = "x = 2\nwhile True:\n    if os.fork() == 0:\n        time.sleep(60)\n        os._exit(0)"
    result = session(bomb, timeout_seconds=5)
    assert result.ended_by is EndedBy.PROCESSES
    assert session.value("x in (1, 2)") == "True"


@at(L4_PLUS, L4)
def test_cpu_time_is_that_of_each_call(place: Place, boxes: Boxes) -> None:
    session = Session(boxes.at(place, max_cpu_seconds=0.2, timeout_seconds=10.0), "cpu")
    session(
        "import time\ndef spin(s):\n    end = time.process_time() + s\n"
        "    while time.process_time() < end: pass\nx = 1"
    )
    for _ in range(3):
        assert session("spin(0.1)").success
    result = session("x = 2\nspin(9)")
    assert (result.ended_by, result.session_lost) == (EndedBy.CPU, False)
    assert session.value("x") == "1"


async def test_a_cancelled_call_is_taken_back(boxes: Boxes) -> None:
    box = boxes.here(**LIMITS)
    with anyio.fail_after(20):
        await box.execute("x = 1", session="cancelled")
        with anyio.move_on_after(0.2) as scope:
            await box.execute("x = 2\nimport time\ntime.sleep(60)", session="cancelled")
        assert scope.cancelled_caught
        result = await box.execute("x", session="cancelled")
    assert (result.value, result.session_started) == ("1", False)
    box.end_session("cancelled")


# --- Turns ------------------------------------------------------------------------------------


def test_calls_of_one_session_run_one_after_another(boxes: Boxes) -> None:
    box = boxes.here(**LIMITS)
    box.execute_sync("import time\nlog = []", session="turns")

    def call(n: int) -> SandboxResult:
        return box.execute_sync(f"log.append({n})\ntime.sleep(0.02)\nlog.append({n})", session="turns")

    with ThreadPoolExecutor(6) as pool:
        assert all(result.success for result in pool.map(call, range(6)))
    log = eval(box.execute_sync("log", session="turns").value or "[]")
    assert sorted(log) == sorted([*range(6)] * 2)
    assert log[::2] == log[1::2]
    box.end_session("turns")


def test_a_call_that_waits_too_long_for_its_turn_is_refused() -> None:
    config = SandboxConfig(queue_seconds=1.0, pool_size=1, timeout_seconds=10.0)
    with PythonSandbox(config) as box, ThreadPoolExecutor(1) as pool:
        box.execute_sync("import time", session="s")
        first = pool.submit(box.execute_sync, "time.sleep(2.5)\n'first'", session="s")
        time.sleep(0.2)
        with pytest.raises(SandboxBusy):
            box.execute_sync("1", session="s")
        assert first.result().value == "'first'"
        assert box.execute_sync("2", session="s").value == "2"


def test_two_sessions_run_at_once(boxes: Boxes) -> None:
    box = boxes.here(**LIMITS)
    for name in ("a", "b"):
        box.execute_sync("import time", session=name)
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda name: box.execute_sync("time.sleep(0.5)", session=name), ("a", "b")))
    assert all(result.success for result in results)
    assert time.monotonic() - started < 1
    for name in ("a", "b"):
        box.end_session(name)


# --- Whose, how many, how long ----------------------------------------------------------------


@at(*PLACES)
def test_a_session_belongs_to_its_tenant(place: Place, boxes: Boxes) -> None:
    box = boxes.at(place, **LIMITS)
    box.execute_sync("x = 1", session="same", tenant="first")
    other = box.execute_sync("'x' in globals()", session="same", tenant="second")
    assert (other.value, other.session_started) == ("False", True)
    assert not box.end_session("same", tenant="third")
    assert box.end_session("same", tenant="second")
    assert box.execute_sync("x", session="same", tenant="first").value == "1"
    assert box.end_session("same", tenant="first")


@at(*PLACES)
def test_a_session_ends_when_it_is_told_to(session: Session) -> None:
    session("x = 1")
    assert session.box.end_session(session.name)
    assert not session.box.end_session(session.name)
    assert not session.box.end_session("never there")
    again = session("'x' in globals()")
    assert (again.value, again.session_started) == ("False", True)


@at(L4_PLUS, L2)
def test_a_session_that_nobody_uses_goes(place: Place, boxes: Boxes) -> None:
    session = Session(boxes.at(place, session_idle_seconds=0.5), "idle")
    session("x = 1")
    for _ in range(4):
        time.sleep(0.15)
        assert session.value("x") == "1"  # each use begins the time anew
    time.sleep(0.8)
    result = session("'x' in globals()")
    assert (result.value, result.session_started) == ("False", True)


def test_at_the_limit_the_longest_idle_session_goes(boxes: Boxes) -> None:
    box = boxes.here(max_sessions=2)
    for name in ("a", "b", "a", "c"):
        box.execute_sync("n = globals().get('n', 0) + 1", session=name)
    assert box.execute_sync("n", session="a").value == "2"
    assert box.execute_sync("n", session="c").value == "1"
    assert box.execute_sync("'n' in globals()", session="b").session_started


def test_at_the_limit_a_session_in_use_does_not_go() -> None:
    with PythonSandbox(SandboxConfig(max_sessions=1, pool_size=1)) as box, ThreadPoolExecutor(1) as pool:
        box.execute_sync("import time", session="busy")
        first = pool.submit(box.execute_sync, "time.sleep(0.6)\n'kept'", session="busy")
        time.sleep(0.2)
        with pytest.raises(SandboxError, match="busy"):
            box.execute_sync("1", session="another")
        assert first.result().value == "'kept'"
        assert box.execute_sync("1", session="another").session_started


def test_without_sessions_none_is_begun(boxes: Boxes) -> None:
    box = boxes.here(max_sessions=0)
    with pytest.raises(SandboxError):
        box.execute_sync("1", session="a")
    assert box.execute_sync("1").value == "1"


def test_sessions_outlive_the_zygote_that_they_are_of() -> None:
    with PythonSandbox(SandboxConfig(recycle_calls=3, pool_size=1)) as box:
        box.execute_sync("x = [1]", session="old")
        for _ in range(10):
            assert box.execute_sync("print(1)").success
        result = box.execute_sync("x.append(2)\nx", session="old")
        assert (result.value, result.session_started) == ("[1, 2]", False)
        assert box.execute_sync("1", session="new").session_started


def test_a_session_that_is_ended_during_a_call_says_so() -> None:
    with PythonSandbox(SandboxConfig(pool_size=1)) as box, ThreadPoolExecutor(1) as pool:
        box.execute_sync("import time", session="s")
        call = pool.submit(box.execute_sync, "print('so far')\ntime.sleep(60)", session="s")
        time.sleep(0.2)
        assert box.end_session("s")
        result = call.result(timeout=10)
    assert (result.ended_by, result.session_lost, result.stdout) == (EndedBy.CANCELLED, True, "so far\n")


def test_numpy_continues_its_own_randomness(boxes: Boxes) -> None:
    numpy = pytest.importorskip("numpy")
    box = boxes.here(packages=str(Path(numpy.__file__).parents[1]), preload=("numpy",), max_memory_mb=512)
    code = "import numpy\nfloat(numpy.random.random())"
    session = [box.execute_sync(code, session="numpy").value for _ in range(3)]
    fresh = [box.execute_sync(code).value for _ in range(4)]
    other = box.execute_sync(code, session="numpy too").value
    assert len({*session, *fresh, other}) == 8

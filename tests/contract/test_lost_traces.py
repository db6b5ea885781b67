"""What code hides from those who measure it: ends and CPU time of its processes, its share of memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox import EndedBy, IsolationLevel, SandboxResult
from sandbox.request import MAX_CODE_BYTES, MAX_FILES
from sandbox.validate import MAX_NAME_CHARS
from tests.contract.backends import AnySandbox, Backend, Boxes

IGNORED = "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
LARGE_THEN_MORE = (
    "kept = bytearray(b'x') * (90 << 20)",
    "del kept\nmore = []\nwhile True: more.append(bytearray(b'x') * (1 << 20))",
)
NO_COUNTER = "gVisor counts the CPU time of a container nowhere inside of it"
# Ends well, with an ordinary exit, with one that only looks like it, and as nothing that there is.
WORDS = (0, 0x80, 0x17F, 1 << 16, -1, 2**70, True, None, "0")
BURNING_CHILDREN = f"""{IGNORED}
import time
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
for _ in range({{count}}):
    if os.fork() == 0:
        burn(0.1)
        os._exit(0)
    try:
        os.wait()
    except ChildProcessError:
        pass
"""


class Session:
    def __init__(self, box: AnySandbox, name: str) -> None:
        self.box = box
        self.name = name

    def __call__(self, code: str) -> SandboxResult:
        return self.box.execute_sync(code, session=self.name)


@pytest.fixture
def session(box: AnySandbox, request: pytest.FixtureRequest) -> Iterator[Session]:
    made = Session(box, f"of {request.node.name}"[:100])
    yield made
    box.end_session(made.name)


def _skip_without_counter(backend: Backend, box: AnySandbox) -> None:
    if backend.runtime == "runsc":
        pytest.skip(NO_COUNTER)
    if backend.kind == "linux" and box.execute_sync("").isolation < IsolationLevel.L4_PLUS:
        pytest.skip("needs L4+: without a cgroup nothing keeps the CPU time of children nobody waits for")


def test_a_session_outlives_a_call_without_memory_however_large_its_state_is(boxes: Boxes) -> None:
    session = Session(boxes(max_memory_mb=128), "large")
    before, call = LARGE_THEN_MORE
    assert session(f"x = 1\n{before}").success
    for _ in range(2):
        lost = session(call)
        assert (lost.ended_by, lost.session_lost) == (EndedBy.MEMORY, False), lost
        assert session("x, len(kept) >> 20").value == "(1, 90)"


@pytest.mark.parametrize("word", WORDS, ids=repr)
def test_a_made_up_status_makes_no_success_of_a_crash(session: Session, word: object) -> None:
    assert session(f"{IGNORED}os.waitpid = lambda *_: (0, {word!r})").success
    crashed = session("os.kill(os.getpid(), signal.SIGSEGV)")
    assert (crashed.success, crashed.ended_by, crashed.session_lost) == (False, EndedBy.CRASH, False)
    assert session("1 + 1").value == "2"


def test_how_a_call_crashed_is_known_though_its_session_ignores_its_children(session: Session) -> None:
    assert session(IGNORED).success
    assert session("os.kill(os.getpid(), signal.SIGSEGV)").return_code == -11
    assert session("os._exit(3)").return_code == 3


def test_what_a_session_does_with_the_ends_of_its_children_stays(session: Session) -> None:
    session(f"{IGNORED}\ndef heard(*_): pass\nsignal.signal(signal.SIGCHLD, heard)")
    for _ in range(2):
        assert session("signal.getsignal(signal.SIGCHLD) is heard").value == "True"
        assert session("os._exit(3)").return_code == 3
    session(IGNORED)
    assert session("signal.getsignal(signal.SIGCHLD).name").value == "'SIG_IGN'"


@pytest.mark.parametrize("in_session", [False, True], ids=["call", "session"])
def test_the_cpu_time_of_children_that_nobody_waits_for_is_counted(
    backend: Backend, box: AnySandbox, in_session: bool
) -> None:
    _skip_without_counter(backend, box)
    name = "counted" if in_session else None
    for _ in range(2):
        result = box.execute_sync(BURNING_CHILDREN.format(count=3), session=name)
        assert result.success, result
        assert 280 < result.cpu_ms < 1500
        quiet = box.execute_sync("import time; time.sleep(0.2)", session=name)
        assert quiet.cpu_ms < 50


@pytest.mark.parametrize("in_session", [False, True], ids=["call", "session"])
def test_the_limit_of_cpu_time_holds_for_children_that_nobody_waits_for(
    backend: Backend, boxes: Boxes, in_session: bool
) -> None:
    if in_session and backend.runtime == "runsc":
        pytest.skip(NO_COUNTER)
    box = boxes(max_cpu_seconds=0.5)
    name = "limited" if in_session else None
    result = box.execute_sync(BURNING_CHILDREN.format(count=60), session=name)
    assert (result.ended_by, result.session_lost) == (EndedBy.CPU, False), result
    assert result.cpu_ms < 2000
    if in_session:
        assert box.execute_sync("6 * 7", session=name).value == "42"


@pytest.mark.parametrize("letter", ["\x01", "\N{GRINNING FACE}"], ids=ascii)
def test_the_largest_request_that_is_allowed_runs(boxes: Boxes, letter: str) -> None:
    start, end = "text = '", "'\nimport os\nlen(text), len(os.listdir())"
    letters = (MAX_CODE_BYTES - len(start + end)) // len(letter.encode())
    # As many letters as a name may have, and no part with more bytes than a file system takes.
    parts = [letter * 40] * 6
    names = {
        f"{'/'.join(parts)}/{number:04}".ljust(MAX_NAME_CHARS, letter): b"" for number in range(MAX_FILES)
    }
    box = boxes(max_memory_mb=256, max_disk_mb=64, max_files=2 * MAX_FILES)
    result = box.execute_sync(f"{start}{letter * letters}{end}", files=names)
    assert (result.value, result.ended_by) == (f"({letters}, 1)", EndedBy.EXIT), result


def test_half_of_a_pair_in_the_code_is_an_error_of_the_code(box: AnySandbox) -> None:
    result = box.execute_sync("x = '\ud83d'")
    assert (result.ended_by, result.exception) == (EndedBy.EXCEPTION, "UnicodeEncodeError")

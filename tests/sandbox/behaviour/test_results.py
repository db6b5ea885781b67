"""What comes back from code: its output, its value, its exception, its status, and how it was measured."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import anyio
import pytest

from sandbox import EndedBy, PythonSandbox, SandboxResult
from tests.sandbox.behaviour.conftest import Run
from tests.sandbox.levels import PLACES, WITH_FORK, Boxes, Place, at

# --- Output -----------------------------------------------------------------------------------


@at(*PLACES)
def test_streams_are_apart_and_each_is_in_order(place: Place, boxes: Boxes) -> None:
    code = """
import os, sys
for n in range(3):
    print(n)
    print(-n, file=sys.stderr)
    os.write(1, b"w")
n
"""
    result = boxes.at(place).execute_sync(code)
    assert (result.stdout, result.stderr) == ("0\nw1\nw2\nw", "0\n-1\n-2\n")
    assert (result.success, result.return_code, result.ended_by) == (True, 0, EndedBy.EXIT)
    assert (result.error, result.exception, result.value) == (None, None, "2")


@pytest.mark.parametrize(
    ("ending", "ended_by"),
    [
        ("1 / 0", EndedBy.EXCEPTION),
        ("os._exit(3)", EndedBy.EXIT),
        ("ctypes.string_at(0)", EndedBy.CRASH),
        ("time.sleep(60)", EndedBy.TIME),
        ("blocks = [b'x' * 2**20 for _ in range(10**6)]", EndedBy.MEMORY),
        ("while True: print('x' * 10**6)", EndedBy.OUTPUT),
    ],
    ids=["exception", "exit", "crash", "time", "memory", "output"],
)
def test_output_is_kept_whatever_ends_the_code(ending: str, ended_by: EndedBy, run: Run) -> None:
    code = f"import ctypes, os, sys, time\nprint('so far', end='')\nsys.stderr.write('so bad')\n{ending}"
    result = run(code, timeout_seconds=0.5 if ended_by is EndedBy.TIME else None)
    assert result.ended_by is ended_by
    assert result.stdout.startswith("so far")
    assert result.stderr.startswith("so bad")
    assert not result.success


def test_bytes_that_are_no_text_are_replaced_and_flagged_for_their_stream(run: Run) -> None:
    result = run("import os\nos.write(1, b'a\\xffb')\nprint('\\N{SNOWMAN}', file=__import__('sys').stderr)")
    assert (result.stdout, result.stdout_replaced) == ("a\N{REPLACEMENT CHARACTER}b", True)
    assert (result.stderr, result.stderr_replaced) == ("\N{SNOWMAN}\n", False)


def test_a_lone_surrogate_is_printed_as_an_escape(run: Run) -> None:
    result = run("print('\\ud800')\n'\\ud800'")
    assert (result.stdout, result.value, result.success) == ("\\ud800\n", "'\\ud800'", True)


@pytest.mark.parametrize(
    ("written", "kept", "dropped"),
    [
        (b"x" * 100, "x" * 100, 0),
        (b"x" * 101, "x" * 100, 1),
        (b"", "", 0),
        (("x" * 99 + "é").encode(), "x" * 99, 2),
        (("x" * 97 + "😀").encode(), "x" * 97, 4),
        (("x" * 96 + "😀").encode(), "x" * 96 + "😀", 0),
        (("x" * 96 + "😀é").encode(), "x" * 96 + "😀", 2),
        (b"x" * 99 + b"\x80" + b"y", "x" * 99 + "\N{REPLACEMENT CHARACTER}", 1),
    ],
    ids=["at the limit", "one over", "nothing", "torn in 2", "torn in 4", "whole", "cut between", "no text"],
)
def test_the_limit_of_output_is_exact_and_cuts_no_character(
    written: bytes, kept: str, dropped: int, boxes: Boxes
) -> None:
    box = boxes.here(max_output_bytes=100, max_artifacts=3)
    result = box.execute_sync(f"import os\nif {written!r}: os.write(2, {written!r})\nprint('out')")
    assert (result.stderr, result.stderr_dropped_bytes) == (kept, dropped)
    assert result.stderr_replaced == ("\N{REPLACEMENT CHARACTER}" in kept)
    assert (result.stdout, result.stdout_dropped_bytes, result.success) == ("out\n", 0, True)


def test_no_output_at_all_can_be_allowed_and_is_counted(boxes: Boxes) -> None:
    result = boxes.here(max_output_bytes=0).execute_sync("print('abc')\n7")
    assert (result.stdout, result.stdout_dropped_bytes, result.value) == ("", 4, "7")
    assert result.success


@at(*PLACES)
def test_a_flood_ends_the_call_and_leaves_the_limit_of_it(place: Place, boxes: Boxes) -> None:
    box = boxes.at(place, max_output_bytes=1000)
    result = box.execute_sync("import os\nos.write(1, b'begin')\nwhile True: os.write(1, b'y' * 65536)")
    assert result.ended_by is EndedBy.OUTPUT
    assert result.stdout == "begin" + "y" * 995
    assert result.stdout_dropped_bytes > 16 * 1024**2
    assert (result.return_code, result.success) == (-1, False)
    assert "1000 bytes" in (result.error or "")


@pytest.mark.parametrize(
    ("closing", "kept"),
    [
        ("import os; os.close(1)", ""),
        ("import os; os.close(1); os.close(2)", ""),
        ("import sys; sys.stdout.close()", ""),
        ("import sys; sys.stdout = None; print(1)", ""),
        ("import sys; sys.stdout.detach()", ""),
        ("import sys; sys.stdout = open('/dev/full', 'w'); print(1)", ""),
        ("import os; os.closerange(0, 3)", ""),
    ],
)
def test_code_that_closes_its_output_is_answered_all_the_same(closing: str, kept: str, run: Run) -> None:
    result = run(f"{closing}\n40 + 2")
    assert (result.stdout, result.value, result.return_code) == (kept, "42", 0)
    assert result.success


def test_code_that_closes_its_output_and_sleeps_ends_at_its_limit(run: Run) -> None:
    """D-15."""
    result = run("import os, time\nos.closerange(0, 256)\ntime.sleep(60)", timeout_seconds=0.3)
    assert result.ended_by is EndedBy.TIME
    assert result.duration_ms < 1300


@at(*WITH_FORK)
def test_a_process_that_keeps_the_output_open_does_not_hold_up_the_call(place: Place, boxes: Boxes) -> None:
    """D-15."""
    code = """
import os, time
if os.fork() == 0:
    os.write(1, b"child;")
    time.sleep(60)
    os._exit(0)
time.sleep(0.1)
print("main")
"""
    result = boxes.at(place, timeout_seconds=10.0).execute_sync(code)
    assert (result.ended_by, result.stdout) == (EndedBy.EXIT, "child;main\n")
    assert result.duration_ms < 5000


def test_what_is_written_after_the_last_line_is_kept(run: Run) -> None:
    code = """
import atexit, threading, time
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.05), print("thread"))).start()
print("main")
"""
    assert run(code).stdout == "main\nthread\nexit function\n"


# --- Values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("6 * 7", "42"),
        ("x = 6 * 7", None),
        ("None", None),
        ("1; 'two'", "'two'"),
        ("'a'; x = 1", None),
        ("'only a text'", "'only a text'"),
        ("def f(): return 1", None),
        ("if True:\n    5", None),
        ("print('p')", None),
        ("# nothing at all", None),
        ("", None),
        ("from __future__ import annotations\ndef f(x: nope): 1\nf.__annotations__", "{'x': 'nope'}"),
        ("class A:\n    def __repr__(self): return 'my own'\nA()", "my own"),
        ("'größe 😀'", "'größe 😀'"),
        ("b'\\xff'", "b'\\xff'"),
        ("_ = 3\n_", "3"),
        ("x = [1]\nx.append(x)\nx", "[1, [...]]"),
        ("(lambda: (yield))().__class__.__name__", "'generator'"),
    ],
)
def test_the_value_of_the_last_expression(code: str, value: str | None, run: Run) -> None:
    result = run(code)
    assert (result.value, result.success, result.stderr) == (value, True, "")


def test_a_huge_value_is_cut_and_that_is_said(run: Run) -> None:
    value = run("'x' * 1_000_000").value
    assert value is not None
    assert value.startswith("'" + "x" * 9_999)
    assert value.endswith("… (990002 more characters)")
    assert len(value) < 10_100


def test_a_value_that_cannot_be_shown_is_an_exception_of_the_code(run: Run) -> None:
    result = run("class A:\n    def __repr__(self):\n        raise KeyError('hidden')\nprint('p')\nA()")
    assert (result.ended_by, result.exception, result.value) == (EndedBy.EXCEPTION, "KeyError", None)
    assert result.stdout == "p\n"
    assert "line 3, in __repr__" in result.stderr


@pytest.mark.parametrize("shown", ["'\\ud800 raw'", "str.__new__(type('S', (str,), {}), 'sub')"])
def test_a_value_is_a_text_that_can_be_sent_on(shown: str, run: Run) -> None:
    value = run(f"class A:\n    def __repr__(self):\n        return {shown}\nA()").value
    assert type(value) is str
    assert value.encode()


# --- Exceptions and exits ---------------------------------------------------------------------


def test_a_traceback_shows_the_lines_of_the_code_and_none_of_ours(run: Run) -> None:
    result = run(
        "def f(n):\n    return 1 / n\n\n"
        "try:\n    f(0)\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e"
    )
    assert result.stderr == (
        "Traceback (most recent call last):\n"
        '  File "<code>", line 5, in <module>\n'
        "    f(0)\n"
        '  File "<code>", line 2, in f\n'
        "    return 1 / n\n"
        "           ~~^~~\n"
        "ZeroDivisionError: division by zero\n"
        "\n"
        "The above exception was the direct cause of the following exception:\n"
        "\n"
        "Traceback (most recent call last):\n"
        '  File "<code>", line 7, in <module>\n'
        "    raise KeyError('k') from e\n"
        "KeyError: 'k'\n"
    )
    assert (result.ended_by, result.exception, result.return_code) == (EndedBy.EXCEPTION, "KeyError", 1)
    assert result.error == "the code ended with KeyError; see stderr"


@pytest.mark.parametrize("separator", ["\x0c", "\x1c", "\u2028", "\x85"], ids=ascii)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
def test_the_lines_of_a_traceback_are_those_that_the_parser_counts(
    end: str, separator: str, run: Run
) -> None:
    stderr = run(end.join([f"x = 'a{separator}b'", "y = 2", "1 / 0", ""])).stderr
    assert '  File "<code>", line 3, in <module>\n    1 / 0\n    ~~^~~\n' in stderr


@pytest.mark.parametrize(
    ("code", "exception", "said"),
    [
        ("x = (", "SyntaxError", "    x = (\n        ^\nSyntaxError: '(' was never closed"),
        (
            "x = 1\nreturn x",
            "SyntaxError",
            "    return x\n    ^^^^^^^^\nSyntaxError: 'return' outside function",
        ),
        ("if x:\npass", "IndentationError", "expected an indented block"),
        ("x = '\0'", "SyntaxError", "null bytes"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "KeyboardInterrupt\n"),
        ("raise GeneratorExit", "GeneratorExit", "GeneratorExit"),
        ("def f(): f()\nf()", "RecursionError", "Previous line repeated"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "E", "E: <exception str() failed>"),
        ("raise type('Two\\nlines', (Exception,), {})", "Two?lines", "Two\nlines"),
        ("raise type('L' * 10**6, (Exception,), {})", "L" * 200, "LLL"),
        (
            "raise ExceptionGroup('g', [ValueError(1), ExceptionGroup('h', [TypeError('deep')])])",
            "ExceptionGroup",
            "      | TypeError: deep\n",
        ),
        ("import asyncio\nasync def f(): raise OSError('in')\nasyncio.run(f())", "OSError", "OSError: in"),
        ("import os\nos.read(os.pipe2(os.O_NONBLOCK)[0], 1)", "BlockingIOError", "unavailable"),
        ("+" * 20_000 + "1", None, "Error"),
        ("'\ud800'", "UnicodeEncodeError", "surrogates not allowed"),
        ("import sys\nsys.excepthook = None\nraise ValueError('v')", "ValueError", "ValueError: v"),
        ("import traceback\ntraceback.print_exception = None\nraise ValueError", "ValueError", "ValueError"),
        ("import builtins\nbuiltins.type = builtins.isinstance = None\nraise ValueError", None, ""),
    ],
    ids=lambda value: None if value is None or "\0" in value else value[:24],
)
def test_what_goes_wrong_is_an_exception_of_the_code(
    code: str, exception: str | None, said: str, run: Run
) -> None:
    result = run(code)
    assert said in result.stderr
    if exception is not None:
        assert (result.ended_by, result.exception) == (EndedBy.EXCEPTION, exception)
    assert result.return_code == 1
    assert not result.success


@pytest.mark.parametrize(
    ("code", "status", "stderr"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(None)", 0, ""),
        ("sys.exit(0)", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit(True)", 1, ""),
        ("sys.exit(256)", 0, ""),
        ("sys.exit(300)", 44, ""),
        ("sys.exit(-1)", 255, ""),
        ("sys.exit(10**30)", 255, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("sys.exit(1.5)", 1, "1.5\n"),
        ("sys.exit(type('A', (), {'__str__': lambda self: 1 / 0})())", 1, "ZeroDivisionError"),
        ("raise SystemExit(4)", 4, ""),
        ("exit(5)", 5, ""),
        ("quit()", 0, ""),
        ("os._exit(6)", 6, ""),
        ("atexit.register(os._exit, 7)", 7, ""),
        ("threading.Thread(target=sys.exit, args=[8]).start()", 0, ""),
    ],
)
def test_the_return_code_is_that_of_an_interpreter(code: str, status: int, stderr: str, run: Run) -> None:
    result = run(f"import atexit, os, sys, threading\nprint('p')\n{code}")
    assert (result.return_code, result.ended_by, result.stdout) == (status, EndedBy.EXIT, "p\n")
    assert stderr in result.stderr
    assert bool(stderr) == bool(result.stderr)
    assert result.success == (status == 0)
    assert result.error == (None if status == 0 else f"the code exited with status {status}")


def test_what_interactive_code_expects_is_there(run: Run) -> None:
    result = run("import sys\nhelp(len)\nsys.argv, exit is quit, __name__")
    assert "Return the number of items in a container." in result.stdout
    assert result.value == "([''], True, '__main__')"


# --- What is measured -------------------------------------------------------------------------


def test_times_and_memory_are_plausible(run: Run) -> None:
    code = """
import time
end = time.process_time() + 0.2
while time.process_time() < end: pass
b = b"x" * 30_000_000
"""
    started = time.monotonic()
    result = run(code)
    took_ms = (time.monotonic() - started) * 1000
    assert 200 <= result.cpu_ms <= result.duration_ms + 50
    assert result.duration_ms <= took_ms
    assert 30_000_000 < result.peak_memory_bytes < 80_000_000
    asleep = run("import time\ntime.sleep(0.2)")
    assert 200 <= asleep.duration_ms < 2000
    assert asleep.cpu_ms < 50
    assert asleep.peak_memory_bytes < 30_000_000


@at(*WITH_FORK)
def test_the_cpu_time_of_all_processes_counts(place: Place, boxes: Boxes) -> None:
    code = """
import os, time
def spin():
    end = time.process_time() + 0.15
    while time.process_time() < end: pass
pids = []
for _ in range(2):
    pids.append(os.fork())
    if pids[-1] == 0:
        spin()
        os._exit(0)
for pid in pids:
    os.waitpid(pid, 0)
"""
    result = boxes.at(place).execute_sync(code)
    assert 290 <= result.cpu_ms < 600


@at(*WITH_FORK)
def test_the_cpu_time_of_processes_that_are_ended_with_the_call_counts(place: Place, boxes: Boxes) -> None:
    code = "import os, time\nfor _ in range(2):\n    if os.fork() == 0:\n        while True: 1\ntime.sleep(9)"
    result = boxes.at(place).execute_sync(code, timeout_seconds=0.4)
    assert result.ended_by is EndedBy.TIME
    assert 50 <= result.cpu_ms < 1200


def test_a_result_is_a_mapping_of_its_fields(run: Run) -> None:
    result = run("print(1)\n2")
    names = [field.name for field in fields(SandboxResult)]
    assert list(result) == names
    assert len(result) == len(names)
    assert dict(result) == {name: getattr(result, name) for name in names}
    assert (result["stdout"], result.get("value"), result.get("nothing", 5)) == ("1\n", "2", 5)
    assert "session" in result
    for name in ("nothing", "__len__", "_RESULT_FIELDS"):
        with pytest.raises(KeyError):
            result[name]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_call_can_be_awaited(backend: str, box: PythonSandbox) -> None:
    async def both() -> list[SandboxResult]:
        await box.execute("x = 1", session=backend)
        return [await box.execute("6 * 7"), await box.execute("x", session=backend)]

    assert [each.value for each in anyio.run(both, backend=backend)] == ["42", "1"]


async def test_a_call_awaited_is_the_same(box: PythonSandbox) -> None:
    result = await box.execute("print('out')\n[1]", files={"a": "b"})
    plain: dict[str, Any] = {"stdout": "out\n", "value": "[1]", "success": True, "return_code": 0}
    assert {name: result[name] for name in plain} == plain

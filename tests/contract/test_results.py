"""What a result says of a call: its streams, its value, its end, and what was measured."""

from __future__ import annotations

import dataclasses

import pytest

from sandbox import EndedBy, IsolationLevel, SandboxResult
from tests.contract.backends import AnySandbox, Backend, Boxes


def test_a_result_has_every_field_and_is_a_mapping_of_them(box: AnySandbox, backend: Backend) -> None:
    result = box.execute_sync("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    measured = {"duration_ms", "cpu_ms", "peak_memory_bytes", "isolation", "not_enforced"}
    expected = SandboxResult(
        success=True,
        stdout="out\n",
        stderr="err\n",
        return_code=0,
        ended_by=EndedBy.EXIT,
        value="42",
        backend=backend.kind,
        runtime=backend.runtime,
    )
    assert {name: result[name] for name in result if name not in measured} == {
        name: expected[name] for name in expected if name not in measured
    }
    assert set(result) == {field.name for field in dataclasses.fields(result)}
    assert 0 < result.duration_ms < 5000
    assert 0 < result.cpu_ms < 5000
    assert 1 << 20 < result.peak_memory_bytes < 64 << 20
    assert result.isolation is box.level
    assert result.isolation >= IsolationLevel.L3
    assert result.not_enforced == ()


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("1 + 1", "2"),
        ("'text'", "'text'"),
        ("None", None),
        ("x = 5", None),
        ("for _ in range(3): 7", None),
        ("", None),
        ("'x' * 20_000", None),
    ],
)
def test_the_value_is_that_of_the_last_expression(code: str, value: str | None, box: AnySandbox) -> None:
    result = box.execute_sync(code)
    assert (result.success, result.stdout, result.stderr) == (True, "", "")
    if "20_000" in code:
        assert result.value is not None
        assert 10_000 <= len(result.value) < 10_200
    else:
        assert result.value == value


@pytest.mark.parametrize(
    ("code", "exception", "said"),
    [
        ("print('before')\n{}['key']", "KeyError", "KeyError: 'key'"),
        ("print('before')\nimport nowhere", "ModuleNotFoundError", "No module named 'nowhere'"),
        ("print('before'\n", "SyntaxError", "was never closed"),
        ("print('before')\nclass Mine(Exception): pass\nraise Mine('!')", "Mine", "Mine: !"),
    ],
)
def test_an_exception_ends_the_call_and_is_named(
    code: str, exception: str, said: str, box: AnySandbox
) -> None:
    result = box.execute_sync(code)
    assert (result.success, result.ended_by, result.return_code) == (False, EndedBy.EXCEPTION, 1)
    assert result.exception == exception
    assert said in result.stderr
    assert result.error == f"the code ended with {exception}; see stderr"
    assert result.stdout == ("" if exception == "SyntaxError" else "before\n")
    if exception != "SyntaxError":
        assert 'File "<code>", line' in result.stderr
        assert result.stderr.count("File ") == 1, "frames of ours"


@pytest.mark.parametrize(
    ("code", "status", "stderr"),
    [
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("import os; print('x', flush=True); os._exit(7)", 7, ""),
    ],
)
def test_code_that_leaves_by_itself_has_its_own_status(
    code: str, status: int, stderr: str, box: AnySandbox
) -> None:
    result = box.execute_sync(code)
    assert (result.ended_by, result.return_code, result.stderr) == (EndedBy.EXIT, status, stderr)
    assert result.success is (status == 0)
    assert result.error == (f"the code exited with status {status}" if status else None)


def test_a_crash_is_told_from_an_exit_and_keeps_the_output(box: AnySandbox) -> None:
    result = box.execute_sync("print('so far')\nimport ctypes\nctypes.string_at(0)")
    assert (result.ended_by, result.return_code, result.stdout) == (EndedBy.CRASH, -11, "so far\n")
    assert result.error == "the interpreter was ended by signal 11 (SIGSEGV)"


def test_output_over_the_limit_is_counted_for_each_stream(box: AnySandbox) -> None:
    result = box.execute_sync("import sys\nprint('o' * 2999)\nprint('e' * 2499, file=sys.stderr)")
    assert (result.stdout, result.stdout_dropped_bytes) == ("o" * 2000, 1000)
    assert (result.stderr, result.stderr_dropped_bytes) == ("e" * 2000, 500)
    assert result.success


def test_bytes_that_are_no_text_are_replaced_and_flagged(box: AnySandbox) -> None:
    result = box.execute_sync("import os\nos.write(1, b'a\\xffb')\nos.write(2, 'ä'.encode())\nNone")
    assert (result.stdout, result.stdout_replaced) == ("a\ufffdb", True)
    assert (result.stderr, result.stderr_replaced) == ("ä", False)


def test_output_of_other_processes_comes_back(box: AnySandbox) -> None:
    code = (
        "import subprocess, sys\nsubprocess.run([sys.executable, '-ISc', 'print(6 * 7)'], check=True)\nNone"
    )
    result = box.execute_sync(code)
    assert (result.stdout, result.stderr, result.success) == ("42\n", "", True)


def test_a_process_that_keeps_the_output_open_does_not_hold_up_the_call(box: AnySandbox) -> None:
    """D-15."""
    code = "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nprint('done')"
    result = box.execute_sync(code)
    assert (result.stdout, result.success) == ("done\n", True)
    assert result.duration_ms < 3000


def test_cpu_time_and_memory_are_those_of_the_call(box: AnySandbox) -> None:
    idle = box.execute_sync("import time\ntime.sleep(0.3)")
    assert idle.duration_ms >= 300
    assert idle.cpu_ms < 200
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    assert 250 <= box.execute_sync(code).cpu_ms < 1500
    assert box.execute_sync("kept = b'x' * (30 << 20)").peak_memory_bytes > 30 << 20


def test_calls_share_nothing(boxes: Boxes) -> None:
    box = boxes()
    first = box.execute_sync(
        "import json, os, builtins\njson.mine = builtins.mine = 1\nos.environ['LEFT'] = '1'\n"
        "open('left', 'w').close()\nopen('/dev/shm/left', 'w').close()\nos.urandom(8).hex()"
    )
    assert first.success, first.stderr
    second = box.execute_sync(
        "import json, os\n[hasattr(json, 'mine'), 'mine' in dir(__builtins__), 'LEFT' in os.environ, "
        "os.path.exists('left'), os.path.exists('/dev/shm/left')]"
    )
    assert second.value == "[False, False, False, False, False]"
    numbers = {box.execute_sync("import random\nrandom.random()").value for _ in range(3)}
    assert len(numbers) == 3

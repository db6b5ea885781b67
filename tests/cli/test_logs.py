"""Log lines: for people and programs, one line each, never in the way of a call."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mcp_tools.cli.logs import MAX_WAITING_LINES, HumanFormatter, JsonFormatter, StderrHandler


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("mcp_tools.x", logging.WARNING, __file__, 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def test_a_line_for_people_stays_one_line_whatever_is_in_it() -> None:
    line = HumanFormatter().format(record("tool %s", "a\n12:00:00 info mcp_tools: forged\x1b[2J\u202e"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert "warning mcp_tools.x: tool a\\u000a12:00:00" in line


def test_a_traceback_keeps_its_lines() -> None:
    made = record("it broke")
    try:
        raise ValueError("with \x1b in it")
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    text = HumanFormatter().format(made)
    assert text.splitlines()[-1] == "ValueError: with \\u001b in it"
    assert "Traceback" in json.loads(JsonFormatter().format(made))["exception"]


def test_a_line_for_programs_is_one_json_object_in_ascii() -> None:
    line = JsonFormatter().format(record("größe\n%s", "\ud800", fields={"tool": "x", "duration_ms": 1.5}))
    assert line.isascii()
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["level"] == "warning"
    assert entry["logger"] == "mcp_tools.x"
    assert (entry["tool"], entry["duration_ms"]) == ("x", 1.5)
    assert entry["time"].endswith("Z")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    os.close(read_fd)
    os.close(write_fd)


def test_a_reader_that_does_not_read_holds_nothing_up_and_learns_what_it_missed(
    pipe: tuple[int, int],
) -> None:
    read_fd, write_fd = pipe
    os.set_blocking(write_fd, False)
    with pytest.raises(BlockingIOError):  # the pipe is full: a plain handler would now wait for ever
        while True:
            os.write(write_fd, b"x" * 65536)
    os.set_blocking(write_fd, True)
    handler = StderrHandler(write_fd)
    handler.setFormatter(HumanFormatter())
    started = time.monotonic()
    emitted = 3 * MAX_WAITING_LINES  # one part in the thread's hands, one waiting, one lost
    for number in range(emitted):
        handler.emit(record("line %d", number))
    assert time.monotonic() - started < 5
    seen = b""
    written = lost = 0
    while written + lost < emitted:
        ready, _, _ = select.select([read_fd], [], [], 10)
        assert ready, f"{written} lines and {lost} lost are not {emitted}"
        seen += os.read(read_fd, 65536)
        written = len(re.findall(rb"mcp_tools\.x: line \d+\n", seen))
        lost = sum(int(number) for number in re.findall(rb"\((\d+) log lines lost\)\n", seen))
    handler.close()
    assert written + lost == emitted
    assert lost >= MAX_WAITING_LINES


def test_closing_writes_what_waits(pipe: tuple[int, int]) -> None:
    read_fd, write_fd = pipe
    handler = StderrHandler(write_fd)
    for number in range(10):
        handler.emit(record("line %d", number))
    handler.close()
    assert os.read(read_fd, 65536).count(b"line ") == 10


def test_a_record_that_cannot_be_formatted_does_not_raise(pipe: tuple[int, int]) -> None:
    handler = StderrHandler(pipe[1])
    handler.emit(record("%d", "not a number"))
    handler.emit(record("next"))
    handler.close()
    assert b"next" in os.read(pipe[0], 65536)


def test_the_library_itself_is_silent_until_somebody_configures_it() -> None:
    """Without a handler, Python prints warnings to stderr as a last resort."""
    script = (
        "import anyio, mcp_tools\n"
        "tools = mcp_tools.ToolSystem()\n"
        "@tools.register\n"
        "def bad():\n    'Break.'\n    raise ValueError('x')\n"
        "anyio.run(tools.execute, 'bad')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")

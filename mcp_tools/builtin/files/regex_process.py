"""A regular expression that cannot hang us: matched in a child process, killed when it takes too long.

Python's `re` backtracks and cannot be interrupted: `(a+)+$` on 50 kB runs for longer than the
universe has, in C, holding the interpreter's lock. Refusing patterns that look dangerous misses some
and refuses good ones; a child with a deadline does neither.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mcp_tools.errors import ToolError

START_S: Final = 10.0
"""For the interpreter to start, on a busy machine; no pattern is involved yet."""

STALL_S: Final = 1.2
"""For the pattern to be compiled, or one block to be searched."""

MAX_PATTERN_CHARS: Final = 1_000

_WORKER: Final = Path(__file__).with_name("grep_worker.py")


class RegexProcess:
    """One pattern, matched block by block. Use as a context manager, from one thread."""

    def __init__(self, pattern: str, *, ignore_case: bool) -> None:
        self._request = {"pattern": pattern, "ignore_case": ignore_case}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the child and compile the pattern.

        Raises:
            ToolError: The pattern is not valid, or compiling it takes too long.
        """
        # -I: nothing of the current folder or the user's site is imported; no environment is handed on.
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and script)
            [sys.executable, "-I", "-S", "-B", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
        try:
            self._wait_for_start()
            self._send(json.dumps(self._request).encode())
            reply = self._receive(STALL_S)
        except BaseException:
            self._end()
            raise
        if isinstance(reply, dict):
            self._end()
            raise ToolError(f"the pattern is not a valid regular expression (Python's): {reply['error']}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def search(self, lines: bytes) -> list[tuple[int, int]]:
        """Return (index, column) of each line of the block that matches.

        Raises:
            ToolError: The pattern takes too long; the process is gone.
        """
        self._send(lines)
        return [(number, column) for number, column in self._receive(STALL_S)]

    def _wait_for_start(self) -> None:
        try:
            self._receive(START_S)
        except ToolError:
            raise ToolError(
                "the process that matches patterns could not be started; search literally (regex=false)"
            ) from None

    def _send(self, content: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack("!I", len(content)) + content)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise _too_expensive() from None

    def _receive(self, within_s: float) -> Any:
        deadline = time.monotonic() + within_s
        size_bytes = struct.unpack("!I", self._read(4, deadline))[0]
        return json.loads(self._read(size_bytes, deadline))

    def _read(self, size_bytes: int, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = select.poll()  # select() cannot watch descriptors over 1023
        poll.register(fd, select.POLLIN)
        content = b""
        while len(content) < size_bytes:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise _too_expensive()
            piece = os.read(fd, size_bytes - len(content))
            if not piece:
                raise _too_expensive()
            content += piece
        return content

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        process.wait()


def _too_expensive() -> ToolError:
    return ToolError(
        f"the pattern takes too long (over {STALL_S:g} s for one part of a file) and was stopped. Avoid "
        "nested repetitions such as (a+)+, or search literally (regex=false)"
    )

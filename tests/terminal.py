"""A command started as a person at a terminal would start it; the test types and reads."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

WAIT_S = 30


@dataclass
class Terminal:
    """Our end of the terminal, and the process at the other end."""

    process: subprocess.Popen[bytes]
    descriptor: int

    def type(self, text: str) -> None:
        """Send what a person types."""
        self.send(text.encode())

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        os.write(self.descriptor, data)

    def interrupt(self) -> None:
        """Press Ctrl-C, and again after a while if it was too early: Python loses one that comes
        between showing a prompt and waiting for the answer."""
        for _ in range(3):
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
                return

    def read_until(self, text: str) -> str:
        """Return what is shown, up to `text` and perhaps a little more."""
        seen = b""
        deadline = time.monotonic() + WAIT_S
        while text.encode() not in seen:
            ready, _, _ = select.select([self.descriptor], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"never saw {text!r}, only {seen.decode(errors='replace')}"
            try:
                seen += os.read(self.descriptor, 65536)
            except OSError:
                raise AssertionError(
                    f"it ended without {text!r}, after {seen.decode(errors='replace')}"
                ) from None
        return seen.decode(errors="replace")

    def read_rest(self) -> str:
        """Return what is shown until the process is gone, and wait for it."""
        seen = b""
        deadline = time.monotonic() + WAIT_S
        with suppress(OSError):  # EIO says that nobody holds the other end any more
            while True:
                ready, _, _ = select.select([self.descriptor], [], [], max(0, deadline - time.monotonic()))
                assert ready, f"it does not end, after {seen.decode(errors='replace')}"
                if not (piece := os.read(self.descriptor, 65536)):
                    break
                seen += piece
        self.process.wait(WAIT_S)
        return seen.decode(errors="replace")


@contextmanager
def at_a_terminal(argv: Sequence[str], *, stdout: int | None = None, **options: Any) -> Iterator[Terminal]:
    """Start `argv` with a terminal as stdin, stderr and, unless `stdout` is given, stdout."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        argv,
        stdin=theirs,
        stderr=theirs,
        stdout=theirs if stdout is None else stdout,
        start_new_session=True,
        **options,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        os.close(ours)

"""The one thread behind all workers: what they print goes to the log, and fresh ones are started.

It lives as long as there is a pool with workers, and does nothing that a call waits for.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

MAX_LINE_BYTES: Final = 2_000
MAX_LINES_PER_S: Final = 200
"""Of one worker; what is over is counted."""

_TIDY_S: Final = 5.0


class Keeper:
    """Reads output, runs jobs one after another, and calls `tidy` every few seconds."""

    def __init__(self, tidy: Callable[[], None]) -> None:
        self._tidy = tidy
        self._jobs: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="mcp-tools-workers", daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], None]) -> None:
        """Have `job` done soon, in the thread. What it raises is logged."""
        self._jobs.append(job)
        self._wake()

    def log_output(self, fd: int, name: str) -> None:
        """Log what comes from `fd`, line by line, until its end; it is closed then."""
        os.set_blocking(fd, False)
        output = _Output(fd, name)
        self.do(lambda: self._watch(output))

    def close(self) -> None:
        """End the thread, after the jobs that there are. Output that is there already is still logged."""
        self._is_ending = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def forget(self) -> None:
        """In a fork of the server, where the thread is not."""
        self._selector.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _watch(self, output: _Output) -> None:
        self._selector.register(output.fd, selectors.EVENT_READ, output)

    def _wake(self) -> None:
        try:
            os.write(self._wake_writer, b".")
        except (BlockingIOError, OSError):
            return  # woken already, or ended

    def _run(self) -> None:
        tidied_s = time.monotonic()
        while not self._is_ending:
            for key, _ in self._selector.select(_TIDY_S):
                if key.data is None:
                    os.read(self._wake_reader, 4096)
                else:
                    self._read(key.data)
            while self._jobs:
                self._attempt(self._jobs.popleft())
            if time.monotonic() - tidied_s > _TIDY_S:
                self._attempt(self._tidy)
                tidied_s = time.monotonic()
        while self._jobs:
            self._attempt(self._jobs.popleft())
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._read(key.data)
                if not key.data.is_closed:
                    os.close(key.data.fd)
        self._selector.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _attempt(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:
            logger.exception("something around the workers failed")

    def _read(self, output: _Output) -> None:
        if not output.read():
            self._selector.unregister(output.fd)
            output.close()


class _Output:
    """What one worker prints."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.is_closed = False
        self._name = name
        self._line = bytearray()
        self._second = 0
        self._lines = 0
        self._dropped = 0

    def read(self) -> bool:
        """Log what is there. Returns False at the end."""
        try:
            piece = os.read(self.fd, 65_536)
        except BlockingIOError:
            return True
        except OSError:
            piece = b""
        *lines, rest = (self._line + piece).split(b"\n")
        for line in lines:
            self._log(line)
        self._line = bytearray(rest)
        if len(rest) > MAX_LINE_BYTES or (not piece and rest):
            self._log(rest)
            self._line.clear()
        return bool(piece)

    def close(self) -> None:
        self.is_closed = True
        os.close(self.fd)

    def _log(self, line: bytes | bytearray) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > MAX_LINES_PER_S:
            self._dropped += 1
            return
        if self._dropped:
            logger.warning("worker of %s: %d lines were left out", self._name, self._dropped)
            self._dropped = 0
        text = line[:MAX_LINE_BYTES].decode("utf-8", "backslashreplace").rstrip("\r")
        if text:
            # Escaped: what a tool prints must not act on the terminal or look like a record of ours.
            logger.info("worker of %s: %s", self._name, "".join(map(_visible, text)))


def _visible(character: str) -> str:
    is_plain = character.isprintable()
    return character if is_plain else character.encode("unicode_escape").decode("ascii")

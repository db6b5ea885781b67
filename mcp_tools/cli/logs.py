"""Log lines on stderr, for people or as JSON, that can never hold up a call."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from mcp_tools.confirmation.question import visible
from mcp_tools.observe.correlate import add_trace_ids

MAX_WAITING_LINES: Final = 1_000
FLUSH_TIMEOUT_S: Final = 0.5
GATHER_S: Final = 0.05


@contextlib.contextmanager
def logging_to_stderr(level: str, line_format: str) -> Iterator[None]:
    """Send what `mcp_tools` logs at `level` and above to stderr, and every library's warnings.

    Args:
        level: debug, info, warning or error.
        line_format: human or json.
    """
    handler = StderrHandler()
    handler.addFilter(add_trace_ids)
    handler.setFormatter(JsonFormatter() if line_format == "json" else HumanFormatter())
    root, ours = logging.getLogger(), logging.getLogger("mcp_tools")
    before = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, getattr(logging, level.upper())))
    ours.setLevel(level.upper())
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        ours.setLevel(before[1])
        handler.close()


class StderrHandler(logging.Handler):
    """Writes lines from a thread, so that a client that never reads our stderr stops nothing.

    While stderr is blocked up to 1,000 lines wait; further ones are dropped, and their number is
    written once it moves again.
    """

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._news = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_lines, name="mcp_tools log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one line to the thread; never waits and never raises."""
        try:
            line = self.format(record)
        except Exception:  # a record whose arguments do not fit its text
            self._dropped += 1
            return
        if len(self._lines) >= MAX_WAITING_LINES:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._news.is_set():
            self._news.set()

    def close(self) -> None:
        """Write what waits, for at most half a second."""
        self._closing.set()
        self._news.set()
        self._thread.join(FLUSH_TIMEOUT_S)
        super().close()

    def _write_lines(self) -> None:
        while self._lines or not self._closing.is_set():
            self._news.wait()
            self._news.clear()
            try:
                self._write("".join(f"{self._lines.popleft()}\n" for _ in range(len(self._lines))))
                if self._dropped:
                    dropped, self._dropped = self._dropped, 0
                    self._write(f"({dropped} log lines lost)\n")
            except OSError:
                return  # stderr is gone; there is nobody to tell
            # Waking up for each line would cost every call a tenth of its time.
            self._closing.wait(GATHER_S)

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._descriptor, data) :]


class HumanFormatter(logging.Formatter):
    """`12:03:04 warning mcp_tools.calls: …`; control characters are written out."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; a traceback keeps its lines."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower()} {record.name}: {record.getMessage()}"
        text = visible(line)
        if record.exc_info:
            text += "\n" + visible(self.formatException(record.exc_info), keep_newlines=True)
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII. Fields given as `extra={"fields": {...}}` are added."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)

"""Runs processes that record calls until they are killed, and keeps what they were told is recorded."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

running: set[Recorder] = set()
"""A fixture ends them after each test: one that is left would hold pytest's own output open."""

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 20.0


class Recorder:
    """One process on a log. What it printed is in `began`, `ended` and `refused`."""

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        max_bytes: int = 10**9,
        before: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.began: set[str] = set()
        self.ended: set[str] = set()
        self.refused: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.observe.audit.calls", str(path), name, str(max_bytes)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
        )
        running.add(self)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def until(self, word: str, count: int = 1) -> None:
        """Wait until it printed `count` more lines that begin with `word`."""
        while count:
            line = self._lines.get(timeout=WAIT_S)
            assert line is not None, "the process ended by itself"
            count -= self._take(line) == word

    def drain(self) -> None:
        """Take what is there."""
        while not self._lines.empty():
            line = self._lines.get()
            assert line is not None, "the process ended by itself"
            self._take(line)

    def kill(self) -> None:
        """End it at once, and take what it printed until then."""
        running.discard(self)
        self.process.kill()
        self.process.wait(WAIT_S)
        self._thread.join(WAIT_S)
        while (line := self._lines.get(timeout=WAIT_S)) is not None:
            if line.endswith("\n"):
                self._take(line)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _take(self, line: str) -> str:
        word, call_id, *rest = line.split()
        match word:
            case "began":
                self.began.add(call_id)
            case "ended":
                self.ended.add(call_id)
            case "refused":
                self.refused.append(" ".join(rest))
        return word


def stored(folder: Path) -> list[dict[str, Any]]:
    """Every complete line in the files of a log."""
    found = []
    for file in folder.iterdir():
        if file.name.startswith("audit.jsonl") and not file.name.endswith((".lock", ".salt")):
            for line in file.read_bytes().split(b"\n")[:-1]:
                found.append(json.loads(line))
    return found


def lost(folder: Path, recorders: Sequence[Recorder]) -> set[tuple[str, str]]:
    """What was acknowledged and is not there."""
    there = {(record["kind"], record.get("call_id")) for record in stored(folder)}
    wanted = {("call.intent", call) for each in recorders for call in each.began}
    wanted |= {("call.outcome", call) for each in recorders for call in each.ended}
    return {(kind, call) for kind, call in wanted if (kind, call) not in there}

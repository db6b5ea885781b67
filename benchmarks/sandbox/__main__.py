"""`scripts/bench sandbox`: our sandbox beside what else runs Python code, in one run.

Every round measures every subject once, each in a process of its own that is kept for the whole run, so
that a machine that slows down slows all of them. REF is the system's `python3 -c` without hooks that this
machine may have in its site-packages.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sandbox import results as report
from benchmarks.sandbox.accounting import CpuGroup
from benchmarks.sandbox.catalogue import ENTRIES, REF, Entry
from benchmarks.sandbox.plot import draw
from benchmarks.sandbox.results import Measured
from benchmarks.table import machine

ANSWER_S = 180.0
GAP_S = 0.01
CALLERS = 8
DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
BEGIN, END = "<!-- sandbox: written by scripts/bench sandbox --write -->", "<!-- end of sandbox -->"
PICTURE = "benchmark-sandbox.svg"


class Unavailable(Exception):
    """The subject cannot run here."""


class Worker:
    """The process that holds one subject."""

    def __init__(self, entry: Entry, scratch: Path, group: CpuGroup | None) -> None:
        self._name = entry.name
        self.group = group
        place = [str(group.folder), group.path] if group else ["", ""]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sandbox.worker", entry.name, str(scratch), *place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        answer = self._answer()
        if "unavailable" in answer:
            self.close()
            raise Unavailable(" ".join(answer["unavailable"].split()))

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_S)[0]:
            raise RuntimeError(f"{self._name} does not answer")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # it ends what it started, then itself
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self.group is not None:
            self.group.remove()


@contextlib.contextmanager
def workers(
    entries: Sequence[Entry], found: dict[str, Measured], scratch: Path
) -> Iterator[dict[str, Worker]]:
    """Start a worker for each subject that can run here; note the reason for the others."""
    running: dict[str, Worker] = {}
    scratch.chmod(0o755)  # sandboxes that give up root read the interpreter in it
    with contextlib.ExitStack() as ending:
        for number, entry in enumerate(entries):
            print(f"starting {entry.name}", file=sys.stderr)
            try:
                group = CpuGroup.make(f"bench-{os.getpid()}-{number}")
                running[entry.name] = worker = Worker(entry, scratch, group)
                ending.callback(worker.close)
            except Unavailable as reason:
                found[entry.name].unavailable = str(reason)
        yield running


def measure(entries: Sequence[Entry], rounds: int, calls: int, seconds: float) -> dict[str, Measured]:
    found = {entry.name: Measured() for entry in entries}
    with (
        tempfile.TemporaryDirectory(prefix="bench-sandbox-") as scratch,
        workers(entries, found, Path(scratch)) as running,
    ):
        names = list(running)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            # Each time another one is first, so that no two always follow each other.
            turn = number * len(names) // rounds
            for name in names[turn:] + names[:turn]:
                one_round(running[name], found[name], calls, seconds)
    return found


def one_round(worker: Worker, into: Measured, calls: int, seconds: float) -> None:
    answer = worker.ask("sequential", calls=calls, seconds=2 * seconds, gap_s=GAP_S)
    into.ms += answer["ms"]
    if answer["cpu_ms"] is not None:
        into.cpu_ms.append(answer["cpu_ms"])
    into.calls_per_s.append(worker.ask("burst", seconds=seconds, callers=CALLERS)["calls_per_s"])
    for figure, value in worker.ask("more").items():
        into.more.setdefault(figure, []).append(value)


def text_of(found: dict[str, Measured], rounds: int) -> str:
    calls = len(found[REF].ms)
    parts = [
        f"{machine()}; {rounds} rounds, {calls} single calls of REF.",
        report.table(found),
        "Imports that cost, and what preloading saves:",
        report.pandas_table(found),
        "What we aim at, at the strongest level of this machine:",
        report.aims(found),
        "Each level, medians over the rounds:",
        report.levels_table(found),
    ]
    return "\n\n".join(part for part in parts if part)


def write(text: str) -> None:
    """Put the tables between their marks in the documentation."""
    path = DOCS / "benchmarks.md"
    block = f"{BEGIN}\n\n{text}\n\n![One call of each]({PICTURE})\n\n{END}"
    old = path.read_text()
    marked = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not marked.search(old):
        raise SystemExit(f"error: {path} has no marks {BEGIN} and {END}")
    path.write_text(marked.sub(lambda _: block, old))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench sandbox", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="how often each subject is measured (8)")
    parser.add_argument("--calls", type=int, default=60, help="single calls a round, at most (60)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of calls by 8 callers a round (1.5)")
    parser.add_argument("--only", default="", help="subjects whose name contains one of these, by comma")
    parser.add_argument("--write", action="store_true", help="put tables and picture into docs/")
    options = parser.parse_args(arguments)
    wanted = [part.strip() for part in options.only.split(",") if part.strip()]
    entries = [e for e in ENTRIES if not wanted or e.name == REF or any(part in e.name for part in wanted)]
    found = measure(entries, options.rounds, options.calls, options.seconds)
    text = text_of(found, options.rounds)
    print(text)
    if options.write:
        draw(found, DOCS / PICTURE)
        write(text)


if __name__ == "__main__":
    main()

"""What is measured: something that runs a snippet of Python when asked to."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

SNIPPET, PRINTED = "print(sum(range(1000)))", "499500\n"
PANDAS_SNIPPET = """\
import pandas as pd
frame = pd.DataFrame({"group": [1, 2] * 500, "value": range(1000)})
print(frame.groupby("group").value.sum().sum())
"""
CALL_LIMIT_S = 60.0
# Nothing of ours reaches what runs the code; what it needs is the same for everyone.
ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}


class NotAvailable(Exception):
    """This machine has not what the subject needs; the text says what is missing."""


class Subject(ABC):
    """Something that runs code. One call at a time through `call`, several at once through `burst`.

    Args:
        scratch: A folder that is there as long as the benchmark runs.
        cgroup: Path of the cgroup that counts the CPU time, `None` where there is none.
    """

    snippet: ClassVar[str] = SNIPPET

    def __init__(self, scratch: Path, cgroup: str | None) -> None:
        self.scratch = scratch
        self.cgroup = cgroup

    @abstractmethod
    async def open(self) -> None:
        """Get ready for calls; raise `NotAvailable` with the reason where that cannot be."""

    @abstractmethod
    async def call(self, caller: int) -> str:
        """Run the snippet for one of several callers and return what it printed."""

    @abstractmethod
    async def close(self) -> None: ...

    async def more(self) -> dict[str, float]:
        """Figures that only this subject has."""
        return {}

    async def burst(self, seconds: float, callers: int) -> float:
        """Let `callers` call one after another for a while and return the calls per second of all."""
        done = 0

        async def one(caller: int) -> None:
            nonlocal done
            while time.perf_counter() < end:
                check(await self.call(caller))
                done += 1

        started = time.perf_counter()
        end = started + seconds
        await asyncio.gather(*(one(caller) for caller in range(callers)))
        return done / (time.perf_counter() - started)


class Blocking(Subject):
    """A subject whose call blocks: one thread for each caller."""

    @abstractmethod
    def run(self, caller: int) -> str: ...

    async def call(self, caller: int) -> str:
        # On the event loop, which has nothing else to do: a thread would add its own time.
        return self.run(caller)

    async def burst(self, seconds: float, callers: int) -> float:
        done = [0] * callers
        errors: list[Exception] = []

        def one(caller: int) -> None:
            try:
                while time.perf_counter() < end:
                    check(self.run(caller))
                    done[caller] += 1
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=one, args=(caller,)) for caller in range(callers)]
        started = time.perf_counter()
        end = started + seconds
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return sum(done) / (time.perf_counter() - started)


class Command(Blocking):
    """A program started anew for each call."""

    def __init__(self, scratch: Path, cgroup: str | None) -> None:
        super().__init__(scratch, cgroup)
        self.argv: Sequence[str] = ()
        self.stdin: bytes = b""

    def run(self, caller: int) -> str:
        return run(self.argv, stdin=self.stdin)

    async def close(self) -> None:
        """Nothing is left of a call."""


def run(argv: Sequence[str], *, stdin: bytes = b"") -> str:
    done = subprocess.run(
        argv, input=stdin, capture_output=True, env=ENVIRONMENT, timeout=CALL_LIMIT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{argv[0]} answered {done.returncode}: {done.stderr.decode()[-500:]}")
    return done.stdout.decode()


def check(printed: str) -> None:
    if printed != PRINTED:
        raise RuntimeError(f"the snippet printed {printed!r} instead of {PRINTED!r}")

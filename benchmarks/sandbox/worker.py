"""A process that holds one subject and measures it when the benchmark asks: JSON lines in, JSON lines out.

A process for each, so that its libraries and its CPU time are its own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.sandbox.accounting import CpuGroup
from benchmarks.sandbox.catalogue import find
from benchmarks.sandbox.subject import NotAvailable, Subject, check

# What follows a call, such as the next warm child, is part of its price.
SETTLE_S = 0.15
LEAST_CALLS = 5


async def sequential(
    subject: Subject, group: CpuGroup | None, *, calls: int, seconds: float, gap_s: float
) -> dict[str, Any]:
    """Time single calls with a gap between them, and count the CPU time of all of them together."""
    await asyncio.sleep(SETTLE_S)
    before_s = group.used_s() if group else 0.0
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < LEAST_CALLS or (len(found) < calls and time.perf_counter() < end):
        started = time.perf_counter()
        printed = await subject.call(0)
        found.append((time.perf_counter() - started) * 1000)
        check(printed)
        await asyncio.sleep(gap_s)
    await asyncio.sleep(SETTLE_S)
    used_ms = (group.used_s() - before_s) * 1000 / len(found) if group else None
    return {"ms": found, "cpu_ms": used_ms}


async def serve(name: str, scratch: Path, group: CpuGroup | None, answers: Any) -> None:
    subject = find(name).make(scratch, group.path if group else None)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        await subject.open()
    except NotAvailable as reason:
        answer(unavailable=str(reason))
        return
    answer()
    gc.freeze()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        match request.pop("do"):
            case "sequential":
                answer(**await sequential(subject, group, **request))
            case "burst":
                await asyncio.sleep(SETTLE_S)
                answer(calls_per_s=await subject.burst(**request))
            case "more":
                answer(**await subject.more())
    await subject.close()


def main() -> None:
    name, scratch, folder, path = sys.argv[1:]
    group = CpuGroup(folder=Path(folder), path=path) if folder else None
    if group is not None:
        group.add(os.getpid())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with our answers
    asyncio.run(serve(name, Path(scratch), group, answers))


if __name__ == "__main__":
    main()

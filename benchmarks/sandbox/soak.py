"""`python -m benchmarks.sandbox.soak`: thousands of calls, then thousands of killed ones, and what they left.

A state is taken when the sandbox is warm and quiet, and again after the calls. Nothing may have been added
to it: no process, zombie, descriptor, mount, cgroup or temporary folder, and hardly any memory.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

import anyio

from benchmarks.sandbox.accounting import descendants
from sandbox import IsolationLevel, PythonSandbox, SandboxConfig

WARM_UP_CALLS = 50
AT_ONCE = 4
QUIET_S = 10.0
FULL_AGAIN_S = 1.0
LOOK_S = 0.05
MEAN_LIFE_S = 0.015  # of a call that is killed
# Everything that the sandbox makes on the host is named after the process that made it.
OWNED = re.compile(r"mcp-sandbox-(\d+)-")
MEMORY_NOISE_BYTES = 2 * 1024**2
ANY_MEMORY = 2**40
ORDINARY = "print(sum(range(1000)))"
# What is killed at a moment that suits nobody: computing, waiting, forking, writing, allocating.
NASTY = (
    "while True: pass",
    "import time\nopen('left', 'w').write('x' * 10_000)\ntime.sleep(60)",
    "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "for _ in range(5):\n    if not os.fork():\n        os.setsid()\n        time.sleep(60)\ntime.sleep(60)",
    "while True: print('x' * 5000)",
    "kept = []\nwhile True: kept.append(bytearray(100_000))",
    "import threading, time\nfor _ in range(8): threading.Thread(target=time.sleep, args=(60,)).start()",
    "import mmap, socket\npairs = [socket.socketpair() for _ in range(50)]\n"
    "m = mmap.mmap(-1, 2**20)\nwhile True: m[:] = m[:]",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What there is on the host because of the sandbox.

    Args:
        processes: Below this process, zombies included.
        zombies: Those that ended and were not waited for.
        descriptors: Of this process and all below it, but the warm children.
        mounts: That this process sees.
        cgroups, folders: Made by the sandbox. Counted, because a new zygote has others than the one before.
        server_bytes, zygote_bytes: Anonymous memory of this process, and of the one with most children.
    """

    processes: int
    zombies: int
    descriptors: int
    mounts: int
    cgroups: int
    folders: int
    server_bytes: int
    zygote_bytes: int

    @classmethod
    def take(cls) -> State:
        gc.collect()
        below = descendants(os.getpid())
        watching = {os.getpid(), *below.values()}
        parents = list(below.values())
        zygote = max(parents, key=parents.count, default=os.getpid())
        return cls(
            processes=len(below),
            zombies=sum(_state(pid) == "Z" for pid in below),
            descriptors=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in watching),
            mounts=len(Path("/proc/self/mountinfo").read_text().splitlines()),
            cgroups=_cgroups(below),
            folders=_folders(),
            server_bytes=_anonymous_bytes(os.getpid()),
            zygote_bytes=_anonymous_bytes(zygote),
        )

    def added(self, later: State, calls: int, bytes_per_call: int) -> list[str]:
        """What `later` has that this has not, in words; memory only over the limit."""
        found = [
            f"{after - before} more {name}"
            for name in ("processes", "zombies", "descriptors", "mounts", "cgroups", "folders")
            if (after := getattr(later, name)) > (before := getattr(self, name))
        ]
        for name in ("server_bytes", "zygote_bytes"):
            grown = getattr(later, name) - getattr(self, name)
            if grown > max(bytes_per_call * calls, MEMORY_NOISE_BYTES):
                found.append(f"{grown / calls:.0f} bytes per call more in {name}")
        return found


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _anonymous_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def _folders() -> int:
    owners = map(OWNED.match, os.listdir(tempfile.gettempdir()))
    return sum(int(owner[1]) == os.getpid() for owner in owners if owner)


def _cgroups(ours: Container[int]) -> int:
    """Those of our processes, and those of dead ones; other sandboxes may be running on this machine."""
    found = 0
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if kind.startswith("cgroup"):
            for owner in map(OWNED.match, (name for _, names, _ in os.walk(mount) for name in names)):
                found += bool(owner and (int(owner[1]) in ours or not Path("/proc", owner[1]).exists()))
    return found


async def quiet(is_it: Callable[[State], bool], sandbox: PythonSandbox | None = None) -> State:
    """Wait until the state is as it should be, or long enough to say that it will not be.

    A worn zygote is replaced, and the old one ends, when calls come; so some come while we wait.
    """
    deadline = time.monotonic() + QUIET_S
    while True:
        state = State.take()
        if is_it(state) or time.monotonic() > deadline:
            return state
        if sandbox is not None:
            await sandbox.execute(ORDINARY)
        await anyio.sleep(LOOK_S)


async def ordinary_calls(sandbox: PythonSandbox, count: int, *, sessions: bool) -> None:
    async def some(number: int) -> None:
        for turn in range(count // AT_ONCE + (number < count % AT_ONCE)):
            session = _session(number, turn) if sessions else None
            result = await sandbox.execute(ORDINARY, session=session)
            if result.stdout != "499500\n" or not result.success:
                raise RuntimeError(f"a call failed: {result}")

    async with anyio.create_task_group() as group:
        for number in range(AT_ONCE):
            group.start_soon(some, number)


def _session(number: int, turn: int) -> str | None:
    """Every fifth call of a caller is one of its session."""
    return f"session {number}" if turn % 5 == 4 else None


async def killed_calls(sandbox: PythonSandbox, count: int, *, sessions: bool, seed: int) -> int:
    """Half are cancelled, half run into a short time limit; returns how many really were ended by that."""
    chance = random.Random(seed)
    ended = 0

    async def one(code: str, session: str | None, after_s: float, *, cancel: bool) -> None:
        nonlocal ended
        if cancel:
            with anyio.move_on_after(after_s) as scope:
                await sandbox.execute(code, session=session)
            ended += scope.cancelled_caught
        else:
            result = await sandbox.execute(code, session=session, timeout_seconds=after_s)
            ended += result.ended_by == "time"

    async def some(number: int) -> None:
        for turn in range(count // AT_ONCE + (number < count % AT_ONCE)):
            after_s = chance.expovariate(1 / MEAN_LIFE_S) + 0.0005
            cancel = chance.random() < 0.5
            session = _session(number, turn) if sessions else None
            await one(chance.choice(NASTY), session, after_s, cancel=cancel)

    async with anyio.create_task_group() as group:
        for number in range(AT_ONCE):
            group.start_soon(some, number)
    return ended


async def soak(
    config: SandboxConfig,
    *,
    calls: int,
    killed: int,
    sessions: bool = True,
    bytes_per_call: int = 1024,
    seed: int = 1,
) -> list[str]:
    """Make calls, then killed calls, then close; return what was left behind, in words.

    Args:
        calls: Ordinary calls.
        killed: Calls that are cancelled or run into a time limit at a random moment.
        sessions: Every fifth call is one in a session.
        bytes_per_call: Growth of memory that is still no leak.
    """

    def as_at_first(state: State) -> bool:
        return not first.added(state, 1, ANY_MEMORY)

    before = State.take()
    left: list[str] = []
    async with PythonSandbox(config) as sandbox:
        await killed_calls(sandbox, WARM_UP_CALLS, sessions=sessions, seed=seed)
        await ordinary_calls(sandbox, WARM_UP_CALLS, sessions=sessions)
        await anyio.sleep(FULL_AGAIN_S)
        first = State.take()
        await ordinary_calls(sandbox, calls, sessions=sessions)
        after = await quiet(as_at_first, sandbox)
        left += [f"after {calls} calls: {what}" for what in first.added(after, calls, bytes_per_call)]
        if await killed_calls(sandbox, killed, sessions=sessions, seed=seed + 1) < killed // 2:
            left.append("most calls that should have been killed ended before")
        after = await quiet(as_at_first, sandbox)
        left += [
            f"after {killed} killed calls: {what}" for what in first.added(after, killed, bytes_per_call)
        ]
    end = await quiet(lambda state: not before.added(state, 1, ANY_MEMORY))
    left += [f"after the end: {what}" for what in before.added(end, 1, ANY_MEMORY)]
    return left


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox.soak", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--killed", type=int, default=1_000)
    parser.add_argument("--level", default="L4+", help="at most this isolation level (L4+)")
    options = parser.parse_args()
    level = IsolationLevel.parse(options.level)
    # A session keeps the zygote that it was forked from, so replaced zygotes have none to keep.
    for name, recycle, sessions in (("one zygote", 10**9, True), ("a zygote for 100 calls", 100, False)):
        started = time.monotonic()
        config = SandboxConfig(maximum_level=level, recycle_calls=recycle)
        left = asyncio.run(soak(config, calls=options.calls, killed=options.killed, sessions=sessions))
        print(f"{name}, {level}: {options.calls} calls and {options.killed} killed ones", end=" ")
        print(f"in {time.monotonic() - started:.0f} s:", "; ".join(left) or "nothing left")


if __name__ == "__main__":
    main()

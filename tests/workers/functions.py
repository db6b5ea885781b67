"""Functions that workers import. Those that act come to their effect only when nothing ends them before."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mcp_tools import CallContext, MediaContent, TextContent, ToolError, ToolOutput
from mcp_tools.types import Usage

calls = 0


@dataclasses.dataclass
class Point:
    x: int
    y: int


def add(a: int, b: int = 1) -> int:
    return a + b


def count() -> tuple[int, int]:
    """How often this worker was called, and which it is."""
    global calls
    calls += 1
    return calls, os.getpid()


def hold(path: str) -> int:
    """Wait until the file is there."""
    while not Path(path).exists():
        time.sleep(0.005)
    return os.getpid()


def show(point: Point) -> Point:
    return Point(point.y, point.x)


def odd(what: str) -> Any:
    match what:
        case "output":
            media = MediaContent(data=b"\x00\xff", media_type="image/png")
            return ToolOutput(content=[TextContent(text="t"), media], structured={"a": 1})
        case "tool error":
            raise ToolError("not now", is_passing=True, retry_after_s=1.5)
        case "value error":
            raise ValueError("bad \udc80 text")
        case "own":
            raise type("Größe", (RuntimeError,), {})("own")
        case "exit":
            sys.exit("gone")
        case "os exit":
            os._exit(3)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "large":
            return "x" * (40 * 1024 * 1024)
        case "megabytes":
            return "ä" * (3 * 1024 * 1024)
        case "unprintable":
            return object
        case "fork":
            if os.fork() == 0:
                return "from the fork"
            return "from the worker"
        case "garbage":
            os.write(3, b"\xff\xff\xff\xffgarbage")
            time.sleep(5)
        case "lie":
            os.write(3, (13).to_bytes(4, "big") + b'{"kind":"xx"}')
            return "true"
    return what


async def asynchronous(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


def prints(text: str) -> None:
    print(text)
    os.write(1, b"from below\n")
    print("to stderr", file=sys.stderr)


def sees(context: CallContext) -> dict[str, Any]:
    context.report_progress_from_thread(1, 2, "half")
    context.meter.add(Usage(cost_usd=0.25))
    return {
        "principal": context.principal,
        "call_id": context.call_id,
        "asked": context.asked,
        "allowed": context.permits("/ok"),
        "denied": context.permits(("/secret", "/alias")),
    }


async def sees_async(context: CallContext) -> None:
    for step in range(3):
        await context.report_progress(step)


def spends_and_hangs(context: CallContext) -> None:
    context.meter.add(Usage(cost_usd=1))
    time.sleep(60)


# --- effects that come late -------------------------------------------------------------------


def begin(marker: str) -> None:
    Path(f"{marker}.begun").touch()


def act(marker: str) -> None:
    Path(marker).touch()


def sleeping(marker: str, seconds: float) -> None:
    begin(marker)
    time.sleep(seconds)
    act(marker)


def spinning(marker: str, seconds: float) -> None:
    begin(marker)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass
    act(marker)


def in_c_with_the_lock(marker: str, seconds: float) -> None:
    """A regular expression runs in C and lets no other thread run."""
    begin(marker)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        re.fullmatch("(?:a|a)*b", "a" * 21)
    act(marker)


def in_c_without_the_lock(marker: str, seconds: float) -> None:
    begin(marker)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        hashlib.scrypt(b"p", salt=b"s", n=2**14, r=8, p=1)
    act(marker)


def in_c_for_long(marker: str, seconds: float) -> None:
    """One call into C that lasts far longer than `seconds`, and looks at nothing meanwhile."""
    begin(marker)
    hashlib.pbkdf2_hmac("sha256", b"p", b"s", int(seconds * 5_000_000))
    act(marker)


def waiting_for_a_lock(marker: str, seconds: float) -> None:
    first = sqlite3.connect(f"{marker}.db", isolation_level=None)
    first.execute("begin exclusive")
    second = sqlite3.connect(f"{marker}.db", isolation_level=None, timeout=seconds)
    begin(marker)
    try:
        second.execute("begin exclusive")
    except sqlite3.OperationalError:
        act(marker)
    first.close()
    second.close()


def deaf(marker: str, seconds: float) -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    sleeping(marker, seconds)


def in_a_thread(marker: str, seconds: float) -> None:
    thread = threading.Thread(target=sleeping, args=(marker, seconds))
    thread.start()
    thread.join()


async def deaf_to_cancellation(marker: str, seconds: float) -> None:
    begin(marker)
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left_s)
        except asyncio.CancelledError:
            continue
    act(marker)


def by_a_grandchild(marker: str, seconds: float) -> None:
    """Forked twice, in a session of its own: no parent and no group leads to it."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            sleeping(marker, seconds)
        os._exit(0)
    os.wait()
    time.sleep(seconds + 0.5)


def by_a_runaway(marker: str, seconds: float) -> None:
    """A chain of processes, each in a session of its own, that live for a moment only."""
    end_s = time.monotonic() + seconds
    first = os.fork()
    if first == 0:
        begin(marker)
        while time.monotonic() < end_s:
            if os.fork():
                os._exit(0)
            os.setsid()
        act(marker)
        os._exit(0)
    os.waitpid(first, 0)
    time.sleep(seconds + 0.5)


def by_a_shell(marker: str, seconds: float) -> None:
    begin(marker)
    script = f"trap '' TERM HUP INT; sleep {seconds}; : > '{marker}'"
    subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True).wait()


def by_another_program(marker: str, seconds: float) -> None:
    """The worker itself becomes a shell."""
    begin(marker)
    os.execv("/bin/sh", ["sh", "-c", f"sleep {seconds}; : > '{marker}'"])


QUIET = (
    sleeping,
    waiting_for_a_lock,
    deaf,
    in_a_thread,
    deaf_to_cancellation,
    by_a_grandchild,
    by_a_shell,
    by_another_program,
)
LOUD = (spinning, in_c_with_the_lock, in_c_without_the_lock, by_a_runaway)

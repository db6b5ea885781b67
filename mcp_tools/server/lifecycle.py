"""The life of a serving process: told to stop by signals, by its client, or by its parent's death.

However it is told, what runs is cancelled and recorded, children are ended, and the process is gone
within two seconds, also when a tool's thread cannot be interrupted or has blocked the event loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

import anyio

logger = logging.getLogger(__name__)

GRACE_S: Final = 1.8
"""From the first word of stopping to the moment we no longer wait for anything."""

STOP_SIGNALS: Final = ("SIGTERM", "SIGINT", "SIGHUP")
_PR_SET_PDEATHSIG: Final = 1


class Stop:
    """Whether and why to stop. `event` is set on the event loop that made it."""

    def __init__(self, on_stop: Callable[[int | None], None] | None = None) -> None:
        self.event = anyio.Event()
        self.signal: int | None = None
        self._loop = asyncio.get_running_loop()
        self._on_stop = on_stop

    def now(self, number: int | None) -> None:
        """Stop. Safe to call from a signal handler and from threads, any number of times."""
        if self.signal is None:
            self.signal = number
        if self._on_stop is not None:
            self._on_stop(number)
        with suppress(RuntimeError):  # the loop is closed: we have stopped
            self._loop.call_soon_threadsafe(self.event.set)


@contextmanager
def stop_on_signals(*, on_stop: Callable[[int | None], None] | None = None) -> Iterator[Stop]:
    """Turn SIGTERM, SIGINT and SIGHUP into a `Stop` while entered, in the main thread only.

    Args:
        on_stop: Called in the signal handler itself, so also while the event loop is blocked, with
            the signal's number.
    """
    stop = Stop(on_stop)
    before: dict[int, Any] = {}

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.now(number)

    if threading.current_thread() is threading.main_thread():
        for name in STOP_SIGNALS:
            number = getattr(signal, name, None)
            # Who started us with nohup wants SIGHUP ignored.
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow_parent(stopped: Callable[[], None], parent: int | None = None) -> None:
    """Call `stopped` when the process that started us is gone. Linux only; elsewhere EOF has to do.

    Args:
        parent: Its id, as it was when we started: it may have died since. None: what it is now.

    The kernel reports the death of the *thread* that started us, so the signal is one of our own and
    counts only once the parent has really changed.
    """
    if not sys.platform.startswith("linux") or threading.current_thread() is not threading.main_thread():
        return
    parent = os.getppid() if parent is None else parent
    number = signal.SIGRTMIN + 6

    def handle(_number: int, _frame: FrameType | None) -> None:
        if os.getppid() != parent:
            stopped()

    signal.signal(number, handle)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        stopped()  # it died before we asked


def follow_stdin(hung_up: Callable[[], None]) -> None:
    """Call `hung_up` from a thread when nobody can write to stdin any more.

    The event loop sees the end of stdin by itself; this is for when something has blocked the loop.
    """
    if not hasattr(select, "poll"):
        return
    try:
        mode = os.fstat(0).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return
        watched = os.dup(0)
    except OSError:
        return
    poll = select.poll()
    poll.register(watched, getattr(select, "POLLRDHUP", 0))

    def watch() -> None:
        poll.poll()
        hung_up()

    threading.Thread(target=watch, name="mcp-tools stdin watch", daemon=True).start()


class Undertaker:
    """Ends this process when it does not end by itself in time."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._is_armed = False
        self.exit_code = 0

    def arm(self, number: int | None = None) -> None:
        """Start the countdown. Safe to call anywhere, more than once; the first call counts.

        Args:
            number: The signal that asks for it. SIGINT leaves its mark on the exit code, as shells
                expect it; the other ways to stop are the proper end of a server.
        """
        # Without blocking: the holder may be the very thread that a signal has interrupted.
        if self._is_armed or not self._lock.acquire(blocking=False):
            return
        self._is_armed = True
        if number == signal.SIGINT:
            self.exit_code = 128 + number
        threading.Thread(target=self._wait, name="mcp-tools exit", daemon=True).start()

    def _wait(self) -> None:
        time.sleep(self._grace_s)
        with suppress(Exception):
            logger.warning("something did not stop in time; the process is ended")
        end_children()
        os._exit(self.exit_code)


def end_children() -> None:
    """Kill every process that descends from this one, as far as the kernel still knows them so."""
    for pid in _descendants(os.getpid()):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as children:
                for child in children.read().split():
                    # Before it is killed: then its own children would be somebody else's.
                    found += [int(child), *_descendants(int(child))]
    return found

"""Blocking file work off the event loop, so that a stuck disk stops neither the loop nor other tools."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from mcp_tools.errors import ToolError

MAX_THREADS: Final = 32
"""File work at once. Its own limit: anyio's default threads stay free for everybody else."""

MAX_STUCK: Final = 24
"""Abandoned threads still waiting for a disk; beyond them new work is refused, not queued. Fewer than
`MAX_THREADS`, since trio counts an abandoned thread until it ends."""

COMMIT_WAIT_S: Final = 5.0

T = TypeVar("T")


class Withdrawn(Exception):
    """The call was cancelled, or ran out of time, before it changed anything."""


class Work:
    """What a worker thread and its caller tell each other.

    A change has one point of no return: up to `begin_change` a cancelled call leaves everything as
    it was, from then on it is finished and waited for. So nothing happens behind a caller's back.
    """

    def __init__(self, *, deadline_s: float | None = None) -> None:
        self._lock = threading.Lock()
        self._withdrawn = False
        self._changing = False
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s
        self.has_started = False
        self.has_finished = False

    @property
    def is_withdrawn(self) -> bool:
        """Whether nobody waits for the result any more; long loops look at it."""
        return self._withdrawn

    def check(self) -> None:
        """Go on only while somebody waits for the result.

        Raises:
            Withdrawn: Nobody does.
        """
        if self._withdrawn:
            raise Withdrawn

    @property
    def is_out_of_time(self) -> bool:
        """Whether it is time to come to an end with what there is."""
        return self._withdrawn or (self._deadline is not None and time.monotonic() > self._deadline)

    def begin_change(self) -> None:
        """Pass the point of no return.

        Raises:
            Withdrawn: The call was cancelled before; nothing may be changed.
        """
        with self._lock:
            if self._withdrawn:
                raise Withdrawn
            self._changing = True

    def withdraw(self) -> bool:
        """Cancel, unless a change has begun. Returns whether it was cancelled."""
        with self._lock:
            self._withdrawn = not self._changing
            return self._withdrawn


class Threads:
    """Runs blocking file work in worker threads, a bounded number at once."""

    def __init__(self) -> None:
        self._limiter: RunVar[anyio.CapacityLimiter] = RunVar("mcp_tools_file_threads")
        self._stuck: set[Work] = set()
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, function: Callable[[Work], T], *, deadline_s: float | None = None) -> T:
        """Run `function(work)` in a thread.

        Args:
            deadline_s: When `work.is_out_of_time` becomes true. The function must look at it.
        Raises:
            ToolError: Too many earlier calls still wait for a disk.
        Cancelling: before `work.begin_change` the thread is left behind and changes nothing; after
        it, the change is waited for, 5 s at most, before the cancellation continues.
        """
        self._stuck = {work for work in self._stuck if not work.has_finished}
        if len(self._stuck) >= MAX_STUCK:
            raise ToolError(
                f"{len(self._stuck)} earlier file operations still wait for a disk that does not answer; "
                "nothing was done. Retry in a minute, or tell the owner of this server"
            )
        work = Work(deadline_s=deadline_s)
        finished = threading.Event()

        def in_thread() -> T:
            work.has_started = True
            try:
                return function(work)
            finally:
                work.has_finished = True
                finished.set()

        try:
            return await anyio.to_thread.run_sync(
                in_thread, abandon_on_cancel=True, limiter=self._limiter_here()
            )
        except anyio.get_cancelled_exc_class():
            if work.withdraw():
                if work.has_started:
                    self._stuck.add(work)
            else:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(finished.wait, COMMIT_WAIT_S)
            raise

    def executor_for_aiofiles(self) -> ThreadPoolExecutor:
        """Return the threads in which aiofiles reads. Its default, the loop's, also resolves host names."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="mcp-tools-files")
        return self._pool

    def close(self) -> None:
        """Let idle threads end. Does not wait for stuck ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _limiter_here(self) -> anyio.CapacityLimiter:
        # One per event loop: a limiter belongs to the loop it was made in, a workspace does not.
        limiter = self._limiter.get(None)
        if limiter is None:
            limiter = anyio.CapacityLimiter(MAX_THREADS)
            self._limiter.set(limiter)
        return limiter

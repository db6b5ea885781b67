"""Stores whose work waits for a disk or a network: one thread does it, and several calls' work at once.

The event loop does not wait for it. What arrives while the thread is busy is done together, in one
transaction or one round trip. And as the thread does the talking, one store serves several event
loops, asyncio's and trio's, and can be closed from anywhere.

But handing work to a thread and being woken by it takes longer than a file that nobody else uses. So
such work of a call that is alone is done at once, as long as the file has been quick.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import anyio

from mcp_tools.limits.store import Grant, Kind, Refused, Settle, Take, Total
from mcp_tools.limits.wake import Wake
from mcp_tools.pace import Pace
from mcp_tools.types import LimitsUnavailable

logger = logging.getLogger(__name__)

MAX_TOGETHER: Final = 64
MAX_OWED: Final = 10_000
CLOSE_S: Final = 10.0
REST_EVERY_S: Final = 5.0
_AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTotals:
    """Wants the totals of the last days that have any."""

    days: int


Work = Take | Settle | ReadTotals


class LimitsBusy(LimitsUnavailable):
    """Another process is at it for longer than the backend waits; nothing was done."""


class Backend(Protocol):
    """Does a store's work, in one thread."""

    def run(self, work: Sequence[Work]) -> list[Any]:
        """Do all of it; returns the answers in that order: None for a `Settle`, and a `LimitsUnavailable`
        for what alone could not be done.

        Raises:
            LimitsBusy, LimitsUnavailable: Nothing was done, as far as can be known. The next run tries
                afresh.
        """
        ...

    def rest(self) -> None:
        """Called every five seconds while there is work, for what no call should wait for."""
        ...

    def close(self) -> None: ...


class QuickBackend(Backend, Protocol):
    """Does the work in whatever thread asks, one at a time, and does not wait for other processes."""

    def leave_moved(self) -> None:
        """Called now and then, to notice that the file is another one now."""
        ...


@dataclass(slots=True, eq=False)
class _Job:
    work: Work
    wake: Wake | None = None
    answer: Any = None
    error: Exception | None = None
    is_done: bool = False
    is_abandoned: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


def _is_late(answer: object) -> bool:
    """Whether it can be done later."""
    return isinstance(answer, LimitsUnavailable)


class _Rest:
    """For the thread: the backend is to rest soon."""


class ThreadedStore:
    """A store in front of a backend.

    Args:
        backend: Used by our thread only.
        name: For messages: a path, or an address without its password.
        at_once: Another way to the same accounts. None: there is none that is quick enough.
    """

    def __init__(self, backend: Backend, *, name: str, at_once: QuickBackend | None = None) -> None:
        self.name = name
        self._backend = backend
        self._at_once = at_once
        self._turn = threading.Lock()  # held around what uses `at_once`
        self._pace = Pace()
        self._undone = 0  # jobs that were put and are not done
        self._rest_due_s = 0.0  # monotonic; for what is done at once
        self._jobs: queue.SimpleQueue[_Job | _Rest | None] = queue.SimpleQueue()
        self._owed: deque[_Job] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._is_closed = False

    async def take(self, take: Take, *, is_alone: bool = False) -> Grant | Refused:
        """See `Store.take`."""
        if is_alone and (done := self._do_here(take)) is not None:
            found: Grant | Refused = done[0]
            return found
        answer: Grant | Refused = await self._ask(take)
        return answer

    async def settle(self, settle: Settle, *, is_awaited: bool, is_alone: bool = False) -> None:
        """See `Store.settle`. Cancelled, it is noted all the same."""
        if is_alone and self._do_here(settle) is not None:
            return
        if is_awaited:
            await self._ask(settle)
        else:
            self._put(_Job(settle))

    async def totals(self, days: int) -> Sequence[Total]:
        """See `Store.totals`."""
        answer: list[Total] = await self._ask(ReadTotals(days=days))
        return answer

    def close(self) -> None:
        """See `Store.close`. Waits for it, at most 10 s. Does nothing in a forked copy."""
        if os.getpid() != self._pid:
            return  # the connections are the parent's, and a lock may be held for ever
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            thread = self._thread
            self._jobs.put(None)
        if thread is None:
            self._close_backends()
            return
        thread.join(CLOSE_S)
        if thread.is_alive():
            logger.error("the limits in %s were left before everything was noted there", self.name)

    def _do_here(self, work: Work) -> list[Any] | None:
        """Do it in the caller's thread, if that is quick; returns the answer in a list, or None if it is not.

        Raises:
            LimitsUnavailable: It could not be done.
        """
        self._check_own()
        backend = self._at_once
        if backend is None or not self._pace.is_quick or self._undone or self._owed:
            return None
        if not self._turn.acquire(blocking=False):
            return None
        try:
            if self._is_closed:
                return None
            started_s = time.monotonic()
            answers = backend.run([work])
        except LimitsBusy:
            return None
        except LimitsUnavailable:
            self._pace.note(math.inf)
            raise
        else:
            ended_s = time.monotonic()
            self._pace.note(ended_s - started_s)
            if ended_s >= self._rest_due_s:
                self._rest_due_s = ended_s + REST_EVERY_S
                self._jobs.put(_Rest())
            return answers
        finally:
            self._turn.release()

    async def _ask(self, work: Work) -> Any:
        job = _Job(work, wake=(wake := Wake()))
        self._put(job)
        try:
            await wake.wait()
        except anyio.get_cancelled_exc_class():
            with job.lock:
                job.is_abandoned = not isinstance(work, Settle)
                if job.is_done:
                    self._give_back(job)
            raise
        if job.error is not None:
            raise LimitsUnavailable(str(job.error)) from job.error
        return job.answer

    def _check_own(self) -> None:
        # A fork has neither our thread nor a right to the connections; the lock may be held there for ever.
        if os.getpid() != self._pid:
            raise LimitsUnavailable(
                f"this process is a copy of the one that opened the limits in {self.name}; open them again"
            )

    def _put(self, job: _Job) -> None:
        self._check_own()
        with self._lock:
            if self._is_closed:
                raise LimitsUnavailable(f"the limits in {self.name} are closed")
            if self._thread is None:
                # A daemon: whoever forgets to close us must still be able to end.
                self._thread = threading.Thread(target=self._work, name="mcp_tools limits", daemon=True)
                self._thread.start()
            self._undone += 1
            self._jobs.put(job)

    # --- in the thread ------------------------------------------------------------------------

    def _work(self) -> None:
        due: float | None = None  # when the backend is to rest
        is_closing = False
        while not is_closing:
            wait_s = None if due is None else max(0.0, due - time.monotonic())
            if self._owed:
                wait_s = _AGAIN_S if wait_s is None else min(_AGAIN_S, wait_s)
            jobs: list[_Job] = []
            with contextlib.suppress(queue.Empty):
                is_closing = self._gather(jobs, self._jobs.get(timeout=wait_s))
            if jobs or self._owed:
                self._do(jobs)
            due = due or time.monotonic() + REST_EVERY_S
            if due is not None and time.monotonic() >= due:
                self._backend.rest()
                with self._turn:
                    if self._at_once is not None:
                        self._at_once.leave_moved()
                due = None
        if self._owed:
            self._do([])
        if self._owed:
            logger.error("the ends of %d calls could not be noted in %s", len(self._owed), self.name)
        self._close_backends()

    def _gather(self, jobs: list[_Job], first: _Job | _Rest | None) -> bool:
        """Add what waits to `jobs`; returns whether nothing comes after it."""
        job = first
        while job is not None:
            if isinstance(job, _Job):
                jobs.append(job)
            if len(jobs) >= MAX_TOGETHER:
                return False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return False
        return True

    def _do(self, jobs: list[_Job]) -> None:
        put = len(jobs)
        owed = [self._owed.popleft() for _ in range(min(len(self._owed), MAX_TOGETHER))]
        jobs = [*owed, *(job for job in jobs if not job.is_abandoned)]
        answers = self._run(jobs)
        with self._lock:  # before anybody is woken: the next call may find nothing undone
            self._undone -= put
        self._put_off([job for job, answer in zip(jobs, answers, strict=True) if _is_late(answer)])
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, Exception):
                self._finish(job, None, answer)
            else:
                self._finish(job, answer, None)

    def _run(self, jobs: list[_Job]) -> Sequence[Any]:
        """Have the backend do it; what failed has its exception as its answer."""
        if not jobs:
            return ()
        started_s = time.monotonic()
        try:
            answers = self._backend.run([job.work for job in jobs])
        except Exception as error:
            if not _is_late(error):
                logger.exception("a mistake of ours: %d calls cannot be counted in %s", len(jobs), self.name)
            self._pace.note(math.inf)
            return [error] * len(jobs)
        self._pace.note(time.monotonic() - started_s)
        return answers

    def _finish(self, job: _Job, answer: Any, error: Exception | None) -> None:
        with job.lock:
            job.answer, job.error, job.is_done = answer, error, True
            if job.is_abandoned:
                self._give_back(job)
        if job.wake is not None:
            job.wake.set()

    def _close_backends(self) -> None:
        self._backend.close()
        with self._turn:
            if self._at_once is not None:
                self._at_once.close()

    def _put_off(self, jobs: list[_Job]) -> None:
        """Keep the ends of calls for when the store is back."""
        ends = [job for job in jobs if isinstance(job.work, Settle)]
        lost = max(0, len(self._owed) + len(ends) - MAX_OWED)
        if lost:
            logger.error("the ends of %d calls are not counted in %s, which fails", lost, self.name)
        self._owed.extendleft(reversed(ends[: len(ends) - lost]))

    def _give_back(self, job: _Job) -> None:
        """Nobody waits for the answer any more."""
        if isinstance(job.work, Take) and isinstance(job.answer, Grant) and any(job.answer.reserved):
            budgets = tuple(ask for ask in job.work.asks if ask.kind is Kind.BUDGET)
            with self._lock:
                self._undone += 1
            self._jobs.put(_Job(Settle(call=job.work.call, asks=budgets, used=None, total=None)))

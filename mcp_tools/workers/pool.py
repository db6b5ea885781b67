"""Workers of all tools: who waits, who is busy, and how many there may be."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from mcp_tools.workers import target
from mcp_tools.workers.keeper import Keeper
from mcp_tools.workers.limits import WorkerLimits
from mcp_tools.workers.results import WorkerFailed, WorkersClosed
from mcp_tools.workers.worker import END_S, Worker

logger = logging.getLogger(__name__)

START_S: Final = 60.0
"""How long a worker may take to import its function, over several calls if need be."""


class Workers:
    """The workers of all tools that share limits, and the thread behind them."""

    def __init__(self, limits: WorkerLimits | None = None) -> None:
        self.limits = limits or WorkerLimits()
        self._lock = threading.Lock()
        self._keeper: Keeper | None = None
        self._pools: set[Pool] = set()
        _everybody.add(self)

    def keeper_for(self, pool: Pool) -> Keeper:
        """The thread, which is started when a pool first needs it, and lasts until the last one `left`."""
        with self._lock:
            self._pools.add(pool)
            if self._keeper is None:
                self._keeper = Keeper(self._tidy)
            return self._keeper

    def left(self, pool: Pool) -> None:
        """A pool was closed: with the last one the thread ends."""
        with self._lock:
            self._pools.discard(pool)
            keeper = None if self._pools else self._keeper
            if keeper is not None:
                self._keeper = None
        if keeper is not None:
            keeper.close()

    def make_room(self) -> None:
        """End the longest idle workers where there are too many. Called after one came to be idle."""
        with self._lock:
            pools, keeper = list(self._pools), self._keeper
        # Outside of our lock, which pools take while they hold theirs.
        idle = [(worker.since_s, pool, worker) for pool in pools for worker in tuple(pool.idle)]
        idle.sort(key=lambda each: each[0])
        for _, pool, worker in idle[: max(0, len(idle) - self.limits.waiting)]:
            if keeper is not None and pool.remove_idle(worker):
                worker.ask_to_end()
                keeper.do(partial(_end, worker))

    def _tidy(self) -> None:
        long_ago_s = time.monotonic() - self.limits.surplus_idle_s
        with self._lock:
            pools = list(self._pools)
        for pool in pools:
            for worker in pool.surplus(long_ago_s):
                _end(worker)

    def _forget(self) -> None:
        """In a fork of the server: its workers stay its own, and this process begins anew."""
        self._lock = threading.Lock()
        if self._keeper is not None:
            self._keeper.forget()
            self._keeper = None
        for pool in self._pools:
            pool.forget()
        self._pools.clear()


class Pool:
    """The workers of one tool. From any thread and event loop."""

    def __init__(self, wanted: target.Target, name: str, workers: Workers) -> None:
        self._target = wanted
        self._name = name
        self._workers = workers
        self._lock = threading.Lock()
        self._busy: set[Worker] = set()
        self._is_closed = False
        self._is_refilling = False
        self.idle: list[Worker] = []
        """Waiting, or still starting; the last used one is the last."""

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        """A worker for one call, which is put back afterwards; where the call raised, it was ended, and a
        fresh one is started in the background.

        Raises:
            WorkersClosed: The pool was closed.
            WorkerFailed: No worker could be started, and why.
        """
        async with self._turns():
            worker = await self._ready_worker()
            try:
                yield worker
            except BaseException:
                await self._end(worker)
                self.warm()
                raise
            self._put_back(worker)

    def warm(self) -> None:
        """Have one waiting, in the background. Returns at once."""
        with self._lock:
            if self._is_closed or self.idle or self._is_refilling:
                return
            self._is_refilling = True
            self._workers.keeper_for(self).do(self._refill)

    def close(self) -> None:
        """End all workers, within 5 s. Calls in flight raise. Can be called again."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
            idle, self.idle = self.idle, []
            busy = list(self._busy)
        for worker in (*idle, *busy):
            worker.ask_to_end()
        deadline = time.monotonic() + END_S
        for worker in idle:
            worker.end_now(deadline)
        if not was_closed:
            self._workers.left(self)

    def remove_idle(self, worker: Worker) -> bool:
        """Take one that is idle away; False if it no longer is."""
        with self._lock:
            if worker not in self.idle:
                return False
            self.idle.remove(worker)
            return True

    def surplus(self, long_ago_s: float) -> list[Worker]:
        """Take away what is idle since then, but the last used one."""
        with self._lock:
            old = [worker for worker in self.idle[:-1] if worker.since_s < long_ago_s]
            self.idle = [worker for worker in self.idle if worker not in old]
            return old

    def forget(self) -> None:
        """In a fork of the server: begin without workers."""
        self._lock = threading.Lock()
        for worker in (*self.idle, *self._busy):
            worker.forget()
        self.idle, self._busy, self._is_refilling = [], set(), False

    async def _ready_worker(self) -> Worker:
        while True:
            worker = self._taken()
            if worker is None:
                # It is put among the idle ones, so that a cancellation at any moment loses none.
                await anyio.to_thread.run_sync(self._add)
                continue
            if worker.is_ready and not worker.is_well:
                await self._end(worker)  # it ended while it waited
                continue
            try:
                with anyio.move_on_after(worker.since_s + START_S - time.monotonic()):
                    await worker.ready()
            except WorkerFailed:
                await self._end(worker)
                raise
            except BaseException:
                # The function was not called yet: starting goes on, or no call with a short deadline would
                # ever find a worker that is ready.
                self._put_back(worker, restart_clock=False)
                raise
            if worker.is_ready:
                return worker
            await self._end(worker)
            raise WorkerFailed(f"its module was not imported within {START_S:g} s")

    async def _end(self, worker: Worker) -> None:
        """Kill a worker that was taken, and go on when nothing of it is left."""
        try:
            with anyio.CancelScope(shield=True):
                await worker.end()
        finally:
            if not worker.is_closed:  # a task can be cancelled through every shield
                worker.end_now(time.monotonic() + END_S)
            with self._lock:
                self._busy.discard(worker)

    def _taken(self) -> Worker | None:
        with self._lock:
            if self._is_closed:
                raise WorkersClosed("the server is ending")
            if not self.idle:
                return None
            ready = [worker for worker in self.idle if worker.is_ready]
            worker = ready[-1] if ready else self.idle[0]
            self.idle.remove(worker)
            self._busy.add(worker)
            return worker

    def _add(self) -> None:
        """Start a worker and put it among the idle ones. Blocks for milliseconds.

        Raises:
            WorkerFailed: It cannot be started.
            WorkersClosed: The pool was closed.
        """
        if target.importing is not None:
            raise WorkerFailed(
                "a worker imports this very script and must not start others: put what the script does under "
                'if __name__ == "__main__":'
            )
        if self._is_closed:
            raise WorkersClosed("the server is ending")
        try:
            worker = Worker(self._target, self._name)
        except OSError as error:
            raise WorkerFailed(f"no worker could be started: {error}") from error
        with self._lock:
            is_closed = self._is_closed
            if not is_closed:
                self._workers.keeper_for(self).log_output(worker.output_fd, self._name)
                self.idle.append(worker)
        if is_closed:
            os.close(worker.output_fd)
            _end(worker)
            raise WorkersClosed("the server is ending")
        self._workers.make_room()

    def _refill(self) -> None:
        try:
            self._add()
        except WorkersClosed:
            return
        except WorkerFailed as error:
            logger.warning("no worker of %s waits for its next call: %s", self._name, error)
        finally:
            self._is_refilling = False

    def _put_back(self, worker: Worker, *, restart_clock: bool = True) -> None:
        if restart_clock:
            worker.since_s = time.monotonic()
        with self._lock:
            self._busy.discard(worker)
            is_closed = self._is_closed
            if not is_closed:
                self.idle.append(worker)
        if is_closed:
            _end(worker)
        else:
            self._workers.make_room()

    def _turns(self) -> anyio.CapacityLimiter:
        # One per event loop: a limiter belongs to the loop it was made in, a pool does not.
        try:
            limiters = _turns.get()
        except LookupError:
            limiters = weakref.WeakKeyDictionary()
            _turns.set(limiters)
        if self not in limiters:
            limiters[self] = anyio.CapacityLimiter(self._workers.limits.busy_per_tool)
        return limiters[self]


_turns: RunVar[weakref.WeakKeyDictionary[Any, anyio.CapacityLimiter]] = RunVar("mcp_tools_worker_turns")
_everybody: weakref.WeakSet[Workers] = weakref.WeakSet()


def _end(worker: Worker) -> None:
    worker.end_now(time.monotonic() + END_S)


def _after_fork() -> None:
    for each in _everybody:
        each._forget()


os.register_at_fork(after_in_child=_after_fork)

"""Writes records: those of one call alone at once, those of several together from a thread.

Handing a record to a thread and being woken by it takes longer than a good disk does. So a call that is
alone writes its records on the event loop itself, as long as the disk has been quick: nothing else is
under way that this could hold up, no deadline among it. Where several calls are under way, the thread
writes in one go what came meanwhile, and the loop never waits for the disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio
from anyio.lowlevel import current_token

from mcp_tools.errors import ConfigError
from mcp_tools.observe.audit.anchor import Anchor
from mcp_tools.observe.audit.chain import Chain
from mcp_tools.output.plain import safe_str
from mcp_tools.pace import Pace
from mcp_tools.types import AuditUnavailable

logger = logging.getLogger(__name__)

MAX_BATCH: Final = 512
MAX_WAITING: Final = 20_000
STUCK_S: Final = 2.0
"""Once a disk has not answered for so long, further records are refused at once."""
ANCHOR_AGAIN_S: Final = 1.0

Post = Callable[..., object]


class _Entry:
    """A record on its way to the disk, and who waits for it."""

    __slots__ = ("error", "event", "is_given_up", "post", "record")

    def __init__(self, record: Mapping[str, Any], post: Post | None, event: Any) -> None:
        self.record = record
        self.post = post
        self.event = event
        self.error: str | None = None
        self.is_given_up = False


class Writer:
    """Writes to a chain, from a thread of its own or at once.

    Args:
        chain: Used by us alone from now on.
        anchor: Kept at the chain's end; None: there is none.
        anchor_every_s: The anchor is behind for no longer; 0: it is written before a record counts.
        wait_s: A record that is not on the disk by then counts as not recorded.
    """

    def __init__(self, chain: Chain, anchor: Anchor | None, *, anchor_every_s: float, wait_s: float) -> None:
        self._chain = chain
        self._anchor = anchor
        self._anchor_every_s = anchor_every_s
        self._anchored_seq = 0
        self._anchored_at = -anchor_every_s
        self._anchor_works = True
        self._works = True
        self._wait_s = wait_s
        self._pace = Pace()
        self._turn = threading.Lock()  # held around what uses the chain
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._busy_since_s: float | None = None  # monotonic
        self._pid = os.getpid()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="mcp-tools-audit", daemon=True)
        self._thread.start()

    async def write(
        self, record: Mapping[str, Any], *, is_alone: bool = False, is_patient: bool = True
    ) -> None:
        """Have a record written and wait until it is durable; on asyncio and on trio.

        Args:
            is_alone: No other call is under way that could suffer if the disk stands still now.
            is_patient: Wait also for a disk that has kept others waiting for 2 s already.
        Raises:
            AuditUnavailable: It is not known to be.
        Cancelled, the record may be written or not.
        """
        if is_alone and self._write_here(record):
            return
        if not is_patient:
            self._check_stuck()
        native = current_token().native_token
        # asyncio's loop and trio's token each have one function that other threads may call.
        post: Post = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon  # type: ignore[attr-defined]
        entry = _Entry(record, post, anyio.Event())
        self._submit(entry)
        with anyio.move_on_after(self._wait_s):
            await entry.event.wait()
        self._judge(entry, is_done=entry.event.is_set())

    def write_from_thread(self, record: Mapping[str, Any]) -> None:
        """`write` for a caller without an event loop. Blocks."""
        entry = _Entry(record, None, threading.Event())
        self._submit(entry)
        self._judge(entry, is_done=entry.event.wait(self._wait_s))

    def close(self, last: Mapping[str, Any]) -> None:
        """Write what still waits, `last` behind it, and end the thread. Can be called again.

        A disk that hangs is not waited for longer than a record would be.
        """
        if self._is_closed or os.getpid() != self._pid:
            return
        self._is_closed = True
        self._queue.put(_Entry(last, None, threading.Event()))
        self._queue.put(None)
        self._thread.join(self._wait_s)
        if self._thread.is_alive():
            logger.error("the audit log's disk hangs; its last records may be missing")

    def _write_here(self, record: Mapping[str, Any]) -> bool:
        """Write a record in the caller's thread, if that is quick; returns whether it is written.

        Raises:
            AuditUnavailable: It could not be.
        """
        # An anchor may be on another, slower disk; the thread knows when it is due.
        if not self._pace.is_quick or self._anchor is not None or not self._queue.empty():
            return False
        if not self._turn.acquire(blocking=False):
            return False
        try:
            self._check_open()
            error = self._append([record], wait=False)
        except BlockingIOError:
            return False
        finally:
            self._turn.release()
        if error is not None:
            raise AuditUnavailable(error)
        return True

    def _check_stuck(self) -> None:
        since_s = self._busy_since_s
        if since_s is not None and time.monotonic() - since_s > STUCK_S:
            raise AuditUnavailable(
                f"the audit log's disk, or another process that holds its lock, has not answered for "
                f"{time.monotonic() - since_s:.0f} s"
            )

    def _check_open(self) -> None:
        if self._is_closed:
            raise AuditUnavailable("the audit log is closed")
        if os.getpid() != self._pid:
            raise AuditUnavailable(
                "this process is a copy of the one that opened the audit log; open it again"
            )

    def _submit(self, entry: _Entry) -> None:
        self._check_open()
        if self._queue.qsize() >= MAX_WAITING:
            raise AuditUnavailable("too many records wait for the audit log's disk; try again later")
        self._queue.put(entry)

    def _judge(self, entry: _Entry, *, is_done: bool) -> None:
        if not is_done:
            entry.is_given_up = True
            raise AuditUnavailable(f"the audit log's disk did not answer within {self._wait_s:g} s")
        if entry.error is not None:
            raise AuditUnavailable(entry.error)

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch: list[_Entry] = []
            try:
                entry = self._queue.get(timeout=self._anchor_due_in())
                while entry is not None:
                    batch.append(entry)
                    if len(batch) >= MAX_BATCH:
                        break
                    entry = self._queue.get_nowait()
                is_open = entry is not None
            except queue.Empty:
                pass
            batch = [each for each in batch if not each.is_given_up]
            if batch:
                self._commit(batch)
            if not is_open or self._anchor_due_in() == 0:
                self._write_anchor()
        with self._turn:
            self._chain.close()
        if self._anchor is not None:
            self._anchor.close()

    def _commit(self, batch: list[_Entry]) -> None:
        self._busy_since_s = time.monotonic()
        with self._turn:
            error = self._append([entry.record for entry in batch], wait=True)
        self._busy_since_s = None
        woken: dict[Post, list[_Entry]] = defaultdict(list)
        for entry in batch:
            entry.error = error
            if entry.post is None:
                entry.event.set()
            else:
                woken[entry.post].append(entry)
        for post, entries in woken.items():
            with contextlib.suppress(RuntimeError):  # that loop has ended, and with it whoever waited
                post(_wake, entries)

    def _append(self, records: Sequence[Mapping[str, Any]], *, wait: bool) -> str | None:
        """Write records, our turn; returns why that failed, or None.

        Raises:
            BlockingIOError: Another process is writing, and this was not to wait.
        """
        error: str | None = None
        started_s = time.monotonic()
        try:
            self._chain.append(records, wait=wait)
            if self._anchor_every_s <= 0 and (problem := self._write_anchor()) is not None:
                error = f"the audit log's anchor cannot be written ({problem.strerror})"
        except OSError as problem:
            if isinstance(problem, BlockingIOError) and not wait:
                raise
            error = f"the audit log cannot be written ({problem.strerror or problem})"
        except ConfigError as problem:
            error = "the audit log's file was tampered with or replaced"
            logger.error("%s", problem)  # noqa: TRY400
        except Exception:
            error = "the audit log cannot be written (an internal error)"
            logger.exception("the audit log cannot be written")
        self._pace.note(time.monotonic() - started_s if error is None else math.inf)
        self._say_once(error)
        return error

    def _say_once(self, error: str | None) -> None:
        if error is not None and self._works:
            logger.error("%s; calls are refused until it works again", error)
        elif error is None and not self._works:
            logger.warning("the audit log works again")
        self._works = error is None

    def _anchor_due_in(self) -> float | None:
        """Seconds until the anchor is to be written; None where nothing is due without a record."""
        if self._anchor is None or self._anchor_every_s <= 0 or self._chain.tip.seq <= self._anchored_seq:
            return None
        every_s = self._anchor_every_s if self._anchor_works else max(self._anchor_every_s, ANCHOR_AGAIN_S)
        return max(0.0, self._anchored_at + every_s - time.monotonic())

    def _write_anchor(self) -> OSError | None:
        if self._anchor is None or self._chain.tip.seq <= self._anchored_seq:
            return None
        tip = self._chain.tip
        self._anchored_at = time.monotonic()
        try:
            self._anchor.write(tip)
        except Exception as error:  # also one of ours: the thread has to go on
            problem = error if isinstance(error, OSError) else OSError(errno.EIO, safe_str(error))
            if self._anchor_works:
                logger.error("the audit log's anchor cannot be written: %s", problem.strerror)  # noqa: TRY400
            self._anchor_works = False
            return problem
        if not self._anchor_works:
            logger.warning("the audit log's anchor can be written again")
        self._anchor_works = True
        self._anchored_seq = tip.seq
        return None


def _wake(entries: list[_Entry]) -> None:
    for entry in entries:
        entry.event.set()

"""Accounts in a file: several processes of one machine share them, and they outlive all of them.

Each transaction is in the file before a call goes on, so nothing is lost when a process is killed. The
disk is asked to keep it only every few seconds: a machine that loses power may forget the last of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Sequence
from typing import Any, Final

from mcp_tools.errors import ConfigError
from mcp_tools.limits import accounts
from mcp_tools.limits.clock import ReadClock, Timeline, read_clock
from mcp_tools.limits.file import cannot_be_used, check_own, check_place, refusal
from mcp_tools.limits.sqlite_books import Books, check_version, forget, make_tables
from mcp_tools.limits.store import MAX_ACCOUNTS, Settle, Take
from mcp_tools.limits.threaded import Backend, LimitsBusy, ThreadedStore, Work
from mcp_tools.types import LimitsUnavailable

logger = logging.getLogger(__name__)

BUSY_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.01
_HEAD_BYTES: Final = 100
_MAGIC: Final = b"SQLite format 3\0"


def open_sqlite(
    path: str, *, clock: ReadClock = read_clock, max_accounts: int = MAX_ACCOUNTS
) -> ThreadedStore:
    """Open a file of accounts, or make one that only its owner can read.

    Args:
        path: Absolute. Its folder is made, for its owner only, if there is none.
        clock: This machine's; tests bring their own.
        max_accounts: Of sessions, and as many of others.
    Raises:
        ConfigError: It cannot be opened, or is something else.
    """
    backend = _Sqlite(path, clock=clock, max_accounts=max_accounts)
    try:
        backend.open()
    except LimitsUnavailable as error:
        raise ConfigError(str(error)) from error
    # From here on the connection is the thread's.
    backend.close()
    at_once = _Sqlite(path, clock=clock, max_accounts=max_accounts, busy_s=0.0)
    return ThreadedStore(backend, name=path, at_once=at_once)


def sqlite_backend(path: str) -> Backend:
    """Return what uses such a file, which is opened for the first work."""
    return _Sqlite(path, clock=read_clock, max_accounts=MAX_ACCOUNTS)


def check_sqlite(path: str) -> bool:
    """Say whether there is such a file. Changes nothing.

    Not for a process that has it open: reading it here ends the locks of SQLite there.
    Raises:
        ConfigError: It is something else, or could not be used: `open_sqlite` would refuse it.
    """
    if not check_place(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
        if head:
            _check_head(head)
    except (sqlite3.Error, OSError) as error:
        raise refusal(path, error) from error
    return True


class _Sqlite:
    def __init__(self, path: str, *, clock: ReadClock, max_accounts: int, busy_s: float = BUSY_S) -> None:
        self._path = path
        self._busy_s = busy_s
        self._clock = clock
        self._max_accounts = max_accounts
        self._connection: sqlite3.Connection | None = None
        self._timeline: Timeline | None = None
        self._identity: tuple[int, int] | None = None
        self._new_accounts = 0

    def run(self, work: Sequence[Work]) -> list[Any]:
        try:
            connection = self.open()
            connection.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, OSError) as error:
            if _is_busy(error):
                raise LimitsBusy(f"another process has the limits in {self._path}") from error
            self.close()
            raise self._unavailable(error) from error
        try:
            now = self._now(connection)
            books = Books(connection)
            answers = [_do(books, each, now) for each in work]
            books.flush()
            self._new_accounts += books.new_accounts
            if self._new_accounts > self._max_accounts // 10:
                self._new_accounts = 0
                forget(connection, now, self._max_accounts)
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise self._unavailable(error) from error
        except BaseException:
            self.close()
            raise
        return answers

    def leave_moved(self) -> None:
        """Let go of a file that somebody took away: the next call makes or finds another."""
        if self._connection is None:
            return
        try:
            is_moved = self._identity != _identity(self._path)
        except OSError:
            is_moved = True
        if is_moved:
            self.close()

    def rest(self) -> None:
        """Have the disk keep what was written, and forget what is over."""
        try:
            connection = self.open()
            connection.execute("BEGIN IMMEDIATE")
            forget(connection, self._now(connection, is_kept=True), self._max_accounts)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self.leave_moved()
        except (sqlite3.Error, OSError, LimitsUnavailable) as error:
            logger.warning("limits: %s", error)
            self.close()

    def open(self) -> sqlite3.Connection:
        """Return the connection.

        Raises:
            LimitsUnavailable: There is none to be had.
        """
        if self._connection is not None:
            return self._connection
        try:
            _make_private(self._path)
            connection = sqlite3.connect(
                self._path, timeout=self._busy_s, isolation_level=None, check_same_thread=False
            )
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error
        try:
            self._use_wal(connection)
            # Checkpoints wait for the disk; `rest` makes them.
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("PRAGMA synchronous = NORMAL")
            make_tables(connection)
            self._identity = _identity(self._path)
        except (sqlite3.Error, OSError) as error:
            connection.close()
            raise self._unavailable(error) from error
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Have changes written ahead to a log. SQLite's own patience does not cover this step."""
        deadline_s = time.monotonic() + self._busy_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchall()
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() >= deadline_s:
                    raise
            else:
                return
            time.sleep(_LOOK_AGAIN_S)

    def close(self) -> None:
        self._timeline = None
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _now(self, connection: sqlite3.Connection, *, is_kept: bool = False) -> float:
        """The accounts' time.

        While a machine runs, its processes have one clock; where that stood is kept now and then, for the
        machine's next start.
        """
        reading = self._clock()
        known = self._timeline
        if known is None or known.boot != reading.boot or not reading.is_steady:
            row = connection.execute("SELECT boot, offset_s, last_s, wall_s FROM timeline").fetchone()
            known = Timeline.begin(reading) if row is None else _timeline(*row)
        elif not is_kept:
            return known.now_s(reading)
        self._timeline = timeline = known.at(reading)
        kept = timeline.boot, timeline.offset_s, timeline.last_s, timeline.wall_s
        connection.execute("INSERT OR REPLACE INTO timeline VALUES (1, ?, ?, ?, ?)", kept)
        return timeline.last_s

    def _unavailable(self, error: Exception) -> LimitsUnavailable:
        return LimitsUnavailable(cannot_be_used(self._path, error))


def _do(books: Books, work: Work, now: float) -> Any:
    match work:
        case Take():
            return accounts.take(books, work, now)
        case Settle():
            accounts.settle(books, work, now)
            return None
        case _:
            return books.totals(work.days)


def _check_head(head: bytes) -> None:
    """Source: https://www.sqlite.org/fileformat.html#the_database_header"""
    if len(head) < _HEAD_BYTES or not head.startswith(_MAGIC):
        raise sqlite3.DatabaseError("file is not a database")
    check_version(int.from_bytes(head[60:64], "big"))


def _timeline(boot: str, offset_s: float, last_s: float, wall_s: float) -> Timeline:
    return Timeline(boot=boot, offset_s=offset_s, last_s=last_s, wall_s=wall_s)


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _make_private(path: str) -> None:
    """Make the file, or check that it is a file of ours that nobody else can touch.

    Raises:
        OSError: It is not.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    # An existing file is not opened here: closing it would end the locks of SQLite in this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    found = os.lstat(path)
    check_own(found)
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(path, 0o600)

"""The tables of a file of accounts."""

from __future__ import annotations

import json
import math
import sqlite3
from typing import Final

from mcp_tools.limits.accounts import Account
from mcp_tools.limits.store import KEEP_DAYS, MAX_TOTALS_A_DAY, OTHERS, Total
from mcp_tools.types import Usage

_VERSION: Final = 1
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS timeline (
    id INTEGER PRIMARY KEY CHECK (id = 1), boot TEXT, offset_s REAL, last_s REAL, wall_s REAL
);
CREATE TABLE IF NOT EXISTS accounts (
    account TEXT PRIMARY KEY, until REAL NOT NULL, is_of_session INTEGER NOT NULL, state TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS accounts_until ON accounts (is_of_session, until);
CREATE TABLE IF NOT EXISTS estimates (
    estimate TEXT PRIMARY KEY, until REAL NOT NULL, value REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    day TEXT, principal TEXT, tool TEXT, calls INTEGER, cost_usd REAL, sandbox_cpu_s REAL,
    input_tokens INTEGER, output_tokens INTEGER, PRIMARY KEY (day, principal, tool)
) WITHOUT ROWID;
"""
_ADD_TO_TOTAL: Final = """
UPDATE totals SET calls = calls + ?, cost_usd = cost_usd + ?, sandbox_cpu_s = sandbox_cpu_s + ?,
    input_tokens = input_tokens + ?, output_tokens = output_tokens + ?
WHERE (day, principal, tool) = (?, ?, ?)
"""


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables where there are none.

    Raises:
        sqlite3.Error: That failed, or somebody else's tables are there.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    check_version(version)
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}PRAGMA user_version = {_VERSION};COMMIT;")


def check_version(version: int) -> None:
    """Check a file's version; 0 is one without tables.

    Raises:
        sqlite3.Error: The tables are somebody else's.
    """
    if version not in (0, _VERSION):
        raise sqlite3.DatabaseError("another version wrote it; use another file")


class Books:
    """Accounts of one transaction. What several calls change is written once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._changed: dict[str, tuple[str, float, bool, Account]] = {}
        self._estimates: dict[str, float | None] = {}
        self.new_accounts = 0

    def read(self, account: str) -> Account:
        if (changed := self._changed.get(account)) is not None:
            return changed[3]
        row = self._connection.execute("SELECT state FROM accounts WHERE account = ?", (account,)).fetchone()
        if row is None:
            self.new_accounts += 1
            return Account()
        return _decoded(row[0])

    def write(self, account: str, state: Account, *, until: float, is_of_session: bool) -> None:
        # Rounded up, so that the index has to change once a minute and not with each call.
        self._changed[account] = account, math.ceil(until / 60) * 60.0, is_of_session, state

    def read_estimate(self, estimate: str) -> float | None:
        if estimate not in self._estimates:
            sql = "SELECT value FROM estimates WHERE estimate = ?"
            row = self._connection.execute(sql, (estimate,)).fetchone()
            self._estimates[estimate] = None if row is None else row[0]
        return self._estimates[estimate]

    def write_estimate(self, estimate: str, value: float, *, until: float) -> None:
        self._estimates[estimate] = value
        sql = "INSERT OR REPLACE INTO estimates VALUES (?, ?, ?)"
        self._connection.execute(sql, (estimate, until, value))

    def add_total(self, total: Total) -> None:
        usage = total.usage
        parts = usage.calls, usage.cost_usd, usage.sandbox_cpu_s, usage.input_tokens, usage.output_tokens
        pair = (total.day, total.principal, total.tool)
        if self._connection.execute(_ADD_TO_TOTAL, (*parts, *pair)).rowcount:
            return
        count = "SELECT count(*) FROM totals WHERE day = ?"
        if self._connection.execute(count, pair[:1]).fetchone()[0] >= MAX_TOTALS_A_DAY:
            pair = (total.day, OTHERS, OTHERS)
            if self._connection.execute(_ADD_TO_TOTAL, (*parts, *pair)).rowcount:
                return
        self._connection.execute("INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*pair, *parts))

    def totals(self, days: int) -> list[Total]:
        rows = self._connection.execute(
            "SELECT * FROM totals WHERE day IN (SELECT DISTINCT day FROM totals ORDER BY day DESC LIMIT ?) "
            "ORDER BY day, principal, tool",
            (days,),
        )
        return [
            Total(
                day=day,
                principal=principal,
                tool=tool,
                usage=Usage.bounded(*parts),
            )
            for day, principal, tool, *parts in rows
        ]

    def flush(self) -> None:
        if not self._changed:
            return
        sql = "INSERT OR REPLACE INTO accounts (account, until, is_of_session, state) VALUES (?, ?, ?, ?)"
        self._connection.executemany(
            sql, ((*rest, _encoded(state)) for *rest, state in self._changed.values())
        )


def _encoded(state: Account) -> str:
    return _encode([state.full_at, state.slots, state.held])


def _decoded(text: str) -> Account:
    full_at, slots, held = json.loads(text)
    return Account(full_at=full_at, slots=slots, held=held)


def forget(connection: sqlite3.Connection, now: float, most: int) -> None:
    """Delete what is over, and what is too much."""
    connection.execute("DELETE FROM accounts WHERE is_of_session IN (0, 1) AND until <= ?", (now,))
    connection.execute("DELETE FROM estimates WHERE until <= ?", (now,))
    for is_of_session in (0, 1):
        sql = "SELECT count(*) FROM accounts WHERE is_of_session = ?"
        over = connection.execute(sql, (is_of_session,)).fetchone()[0] - most
        if over > 0:
            connection.execute(
                "DELETE FROM accounts WHERE account IN (SELECT account FROM accounts "
                "WHERE is_of_session = ? ORDER BY until LIMIT ?)",
                (is_of_session, over),
            )
    connection.execute(
        "DELETE FROM totals WHERE day NOT IN (SELECT DISTINCT day FROM totals ORDER BY day DESC LIMIT ?)",
        (KEEP_DAYS,),
    )

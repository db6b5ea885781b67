"""Is a log whole? Reads all of it once, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from mcp_tools.observe.audit.anchor import read_anchor
from mcp_tools.observe.audit.folder import Head
from mcp_tools.observe.audit.line import GENESIS, MAX_LINE_BYTES, Tip, read
from mcp_tools.observe.audit.reading import LogReader

MAX_OPEN: Final = 100_000
MAX_LISTED: Final = 1_000


class DamageKind(StrEnum):
    """What was done to a log."""

    EDITED = "edited"
    REMOVED = "removed"
    REORDERED = "reordered"
    TORN = "torn"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """The first place where a log is not as it was written.

    Args:
        file: Its name, without the folder.
        line: From 1; 0 where it is about what is missing at the end.
        seq: The record's number, where it is known.
        kind: What was done.
        detail: The same in a sentence.
    """

    file: str
    line: int
    seq: int | None
    kind: DamageKind
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A call that was about to run, and of which no end is recorded: it still runs, or its server died."""

    call_id: str
    tool: str
    time: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found.

    Args:
        files: Names, oldest first.
        records: Good ones.
        first_seq: Of the oldest record; more than 1 where older files were dropped as `keep_files` says.
        last: The last good record; number 0 where there is none.
        damage: The first; None: the log is whole.
        torn_bytes: An unfinished line at the very end, of which nobody was told that it is recorded. The
            next server takes it away.
        unfinished: The first 1,000 of them; `unfinished_count` counts on.
        repairs: The first 1,000 `log.repaired` records.
        anchored_seq: What the anchor says; None: it was not asked.
        is_end_known: The lock file is there, which names the last record: else it does not show when records
            are cut from the end.
    """

    files: tuple[str, ...]
    records: int
    first_seq: int | None
    last: Tip
    damage: Damage | None
    torn_bytes: int
    unfinished: tuple[Unfinished, ...]
    unfinished_count: int
    repairs: tuple[dict[str, Any], ...]
    anchored_seq: int | None
    is_end_known: bool

    @property
    def is_whole(self) -> bool:
        """Whether no damage was found."""
        return self.damage is None


def verify(path: str | os.PathLike[str], *, anchor: str | os.PathLike[str] | None = None) -> Verification:
    """Read a whole log, all of its files, and say whether it is as it was written.

    Somebody who can write to the log can also replace all of it by another that is whole. That shows
    only against an anchor elsewhere.

    Args:
        path: The file that is written; those before it are found beside it.
        anchor: The file that was kept at the last record. None: it is not compared.
    Raises:
        OSError: It cannot be read; `FileNotFoundError` where there is no log.
        ValueError: The anchor is none.
    """
    # Before the log: it must not name a record that was written meanwhile.
    anchored = None if anchor is None else read_anchor(anchor)
    with LogReader(path) as reader:
        snapshot = reader.snapshot()
        if not snapshot.files and snapshot.head is None:
            raise FileNotFoundError(2, os.strerror(2), os.fspath(path))
        walk = _Walk(snapshot.head, anchored)
        for name, size in snapshot.files:
            is_last = name == snapshot.files[-1][0]
            walk.file(name, reader.lines(name, size), is_last=is_last)
    return walk.result(tuple(name for name, _ in snapshot.files))


def holds(path: str | os.PathLike[str], tip: Tip) -> bool:
    """Whether a log has that very record. Looks it up without reading all of the log."""
    with LogReader(path) as reader:
        return tip == GENESIS or reader.hash_of(tip.seq) == tip.hash


class _Walk:
    """One pass: what is expected next, and what was found."""

    def __init__(self, head: Head | None, anchored: Tip | None) -> None:
        self._head = head
        self._anchored = anchored
        self._known: dict[int, list[tuple[str, str]]] = {}
        for what, tip in (("the lock file", head.tip if head else None), ("the anchor", anchored)):
            if tip is not None and tip != GENESIS:
                self._known.setdefault(tip.seq, []).append((what, tip.hash))
        self._tip: Tip | None = None
        self._first: tuple[str, int] | None = None
        self._first_is_first = False
        self._oldest_said = 1
        self._is_after_edit = False
        self._damage: Damage | None = None
        self._missing_seq: int | None = None
        self._records = 0
        self._torn_bytes = 0
        self._place = ("", 0)
        self._open: dict[str, Unfinished] = {}
        self._forgotten = 0
        self._repairs: list[dict[str, Any]] = []

    def file(self, name: str, lines: Iterator[bytes], *, is_last: bool) -> None:
        for number, line in enumerate(lines, 1):
            self._place = (name, number)
            record = read(line)
            if record is not None:
                self._record(record)
            elif line.endswith(b"\n"):
                self._edited()
            elif is_last and len(line) < MAX_LINE_BYTES:
                self._torn_bytes = len(line)
            else:
                self._note(DamageKind.TORN, None, "the file ends within a record")
                self._is_after_edit = True

    def _edited(self) -> None:
        seq = None if self._tip is None else self._tip.seq + 1
        self._note(DamageKind.EDITED, seq, "this line is not as it was written")
        self._is_after_edit = True

    def _record(self, record: dict[str, Any]) -> None:
        seq, previous = record["seq"], record.get("prev")
        self._records += 1
        self._link(seq, previous)
        self._tip = Tip(seq, record["hash"])
        self._is_after_edit = False
        for what, expected in self._known.pop(seq, ()):
            if expected != record["hash"]:
                kind = DamageKind.REPLACED if what == "the anchor" else DamageKind.EDITED
                self._note(kind, seq, f"{what} names another record under the number {seq}")
        self._follow_calls(record)

    def _link(self, seq: int, previous: object) -> None:
        tip = self._tip
        if tip is None:
            self._first = (self._place[0], seq)
            self._first_is_first = self._place[1] == 1 and self._damage is None
            if seq == 1 and previous != GENESIS.hash:
                self._note(DamageKind.EDITED, seq, "the first record follows another one")
        elif seq == tip.seq + 1:
            if previous != tip.hash and not self._is_after_edit:
                self._note(DamageKind.EDITED, tip.seq, f"record {seq} follows another record {tip.seq}")
        elif seq <= tip.seq:
            self._note(DamageKind.REORDERED, seq, f"record {seq} stands behind record {tip.seq}")
            if seq == self._missing_seq and self._damage is not None:
                # What seemed to be missing stands further down.
                detail = f"record {seq} stands further down"
                self._damage = replace(self._damage, kind=DamageKind.REORDERED, detail=detail)
        elif not (self._is_after_edit and seq == tip.seq + 2):
            if self._damage is None:
                self._missing_seq = tip.seq + 1
            many = f"records {tip.seq + 1} to {seq - 1} are" if seq - tip.seq > 2 else f"record {seq - 1} is"
            self._note(DamageKind.REMOVED, tip.seq + 1, f"{many} missing before this line")

    def _follow_calls(self, record: dict[str, Any]) -> None:
        match record.get("kind"):
            case "call.intent":
                if len(self._open) >= MAX_OPEN:
                    self._forgotten += 1
                    return
                call = str(record.get("call_id"))
                self._open[call] = Unfinished(
                    call_id=call,
                    tool=str(record.get("tool")),
                    time=str(record.get("time")),
                    seq=record["seq"],
                )
            case "call.outcome":
                self._open.pop(str(record.get("call_id")), None)
            case "log.repaired" if len(self._repairs) < MAX_LISTED:
                self._repairs.append(record)
        oldest = record.get("oldest_seq")
        if type(oldest) is int:
            self._oldest_said = max(self._oldest_said, oldest)

    def _note(self, kind: DamageKind, seq: int | None, detail: str) -> None:
        if self._damage is None:
            name, line = self._place
            self._damage = Damage(file=name, line=line, seq=seq, kind=kind, detail=detail)

    def result(self, files: tuple[str, ...]) -> Verification:
        if self._first is not None and self._first_is_first and self._first[1] > self._oldest_said:
            name, seq = self._first
            detail = f"the log begins with record {seq}; what came before was not dropped by us"
            self._damage = Damage(file=name, line=1, seq=seq, kind=DamageKind.REMOVED, detail=detail)
        last = self._tip or GENESIS
        name = files[-1] if files else ""
        self._place = (name, 0)
        for seq, sayings in sorted(self._known.items()):
            for what, _ in sayings:
                kind = DamageKind.TORN if self._torn_bytes else DamageKind.REMOVED
                self._note(kind, seq, f"{what} names record {seq}; the log ends with record {last.seq}")
        if self._torn_bytes and self._head is None:
            self._note(DamageKind.TORN, last.seq + 1, "the log ends within a record")
        return Verification(
            files=files,
            records=self._records,
            first_seq=None if self._first is None else self._first[1],
            last=last,
            damage=self._damage,
            torn_bytes=self._torn_bytes,
            unfinished=tuple(self._open.values())[:MAX_LISTED],
            unfinished_count=len(self._open) + self._forgotten,
            repairs=tuple(self._repairs),
            anchored_seq=None if self._anchored is None else self._anchored.seq,
            is_end_known=self._head is not None,
        )

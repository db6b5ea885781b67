"""Whole outputs, kept for a while on disk for whoever was sent only a part of one.

Offsets are in characters (Unicode code points), as models and Python count them. The files are UTF-8, and
marks say where every 65,536th character or so lies in its file, so that any page is one short read.
"""

from __future__ import annotations

import codecs
import secrets
import threading
import time
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from mcp_tools.output.folder import PrivateFolder

TTL_S: Final = 3600.0
MAX_BYTES: Final = 1024**3
MAX_BYTES_PER_PRINCIPAL: Final = 256 * 1024**2
MAX_OUTPUTS_PER_PRINCIPAL: Final = 1_000
URI_PREFIX: Final = "mcp-tools://output/"

_BLOCK_CHARS: Final = 65_536


class NoSuchOutput(Exception):
    """There is none of that id for that principal: never was, expired, or had to make room."""


class NotKept(Exception):
    """An output could not be kept; the text says why. Nothing of it is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An output that is kept.

    Args:
        id: 32 hex digits, random.
        total_chars: How many characters can be read.
        dropped_chars: How many more it had, for which there was no room.
    """

    id: str
    total_chars: int
    dropped_chars: int = 0

    @property
    def uri(self) -> str:
        """The name of the MCP resource."""
        return URI_PREFIX + self.id


@dataclass(slots=True, eq=False)
class _Entry:
    """An output with its marks: `mark_bytes[i]` is where character `mark_chars[i]` lies in the file."""

    id: str
    principal: str
    expires_at: float
    total_chars: int = 0
    dropped_chars: int = 0
    size_bytes: int = 0
    mark_chars: array[int] = field(default_factory=lambda: array("Q"))
    mark_bytes: array[int] = field(default_factory=lambda: array("Q"))

    def kept(self) -> Kept:
        return Kept(id=self.id, total_chars=self.total_chars, dropped_chars=self.dropped_chars)


class OutputStore:
    """Keeps whole outputs in a folder of this process that nobody else can enter.

    Args:
        parent: Where that folder is made, at the first output. None: the system's folder for temporary files.
        ttl_s: Seconds that an output is kept after it was made.
        max_bytes: Of all outputs. To make room, the oldest of the principal that holds most go first.
        max_bytes_per_principal: Of one principal's; its oldest make room. Of a larger one only the head is
            kept.
        max_outputs_per_principal: Likewise, how many.
        clock: Monotonic seconds.

    Safe to use from threads; every method may wait for the disk. `close` removes everything, and so does the
    end of the process; what a killed one left, `sweep` removes.
    """

    def __init__(
        self,
        *,
        parent: str | None = None,
        ttl_s: float = TTL_S,
        max_bytes: int = MAX_BYTES,
        max_bytes_per_principal: int = MAX_BYTES_PER_PRINCIPAL,
        max_outputs_per_principal: int = MAX_OUTPUTS_PER_PRINCIPAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._max_bytes_each = min(max_bytes, max_bytes_per_principal)
        self._max_outputs_each = max_outputs_per_principal
        self._clock = clock
        self._folder = PrivateFolder(parent)
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # oldest first
        self._used: dict[str, int] = {}  # principal → bytes, those being written too

    def keep(self, principal: str, parts: Iterable[str]) -> Kept:
        """Write an output, part after part, and return what it is called.

        Args:
            principal: Who alone can read it.
            parts: Its text; lone surrogates are written out (`\\udc80`).
        Raises:
            NotKept: The disk is full or broken, or the store is closed.
        """
        now = self._clock()
        entry = _Entry(id=secrets.token_hex(16), principal=principal, expires_at=now + self.ttl_s)
        try:
            self._remove_expired()
            self._write(entry, parts)
        except BaseException as error:
            with self._lock:
                self._give_back(entry)
            self._folder.remove(entry.id)
            if isinstance(error, OSError):
                raise NotKept(error.strerror or str(error)) from error
            raise
        with self._lock:
            self._entries[entry.id] = entry
            own = [each for each in self._entries.values() if each.principal == principal]
            too_many = [self._take_out(each) for each in own[: -self._max_outputs_each]]
        self._remove(too_many)
        return entry.kept()

    def find(self, output_id: str, principal: str) -> Kept:
        """Return what is kept under an id.

        Raises:
            NoSuchOutput: Nothing, for this principal.
        """
        return self._entry(output_id, principal).kept()

    def pieces(self, output_id: str, principal: str, offset: int = 0) -> Iterator[str]:
        """Yield an output from `offset` on, in pieces of at most 65,536 characters.

        Raises:
            NoSuchOutput: There is no such output, for this principal.
        """
        return self._read(self._entry(output_id, principal), offset)

    def page(self, output_id: str, principal: str, offset: int, limit: int) -> str:
        """Return up to `limit` characters from `offset` on; fewer only at the end.

        Raises:
            NoSuchOutput: There is no such output, for this principal.
        """
        pieces: list[str] = []
        for piece in self.pieces(output_id, principal, offset):
            pieces.append(piece[:limit])
            limit -= len(pieces[-1])
            if limit <= 0:
                break
        return "".join(pieces)

    def read(self, output_id: str, principal: str) -> str:
        """Return a whole output, as for MCP's `resources/read`. It can be as large as the store allows.

        Raises:
            NoSuchOutput: There is no such output, for this principal.
        """
        return "".join(self.pieces(output_id, principal))

    def sweep(self) -> int:
        """Remove the folders of processes that are gone. Returns how many; called at the server's start."""
        return self._folder.sweep()

    def close(self) -> None:
        """Remove everything. Nothing can be kept any more."""
        with self._lock:
            self._entries.clear()
            self._used.clear()
        self._folder.close()

    # --- helpers ------------------------------------------------------------------------------

    def _write(self, entry: _Entry, parts: Iterable[str]) -> None:
        with self._folder.create(entry.id) as file:
            for block in _blocks(parts):
                content = block.encode("utf-8", "backslashreplace")
                start = entry.size_bytes
                if entry.dropped_chars or not self._take_room(entry, len(content)):
                    entry.dropped_chars += len(block)
                    continue
                entry.mark_chars.append(entry.total_chars)
                entry.mark_bytes.append(start)
                file.write(content)
                entry.total_chars += len(block) if len(content) == len(block) else len(content.decode())

    def _take_room(self, entry: _Entry, more_bytes: int) -> bool:
        """Count bytes of an output that is being written, removing older ones for them where that must be."""
        removed: list[_Entry] = []
        with self._lock:
            used, name = self._used, entry.principal
            while used.get(name, 0) + more_bytes > self._max_bytes_each:
                if not self._take_out_oldest(name, removed):
                    break
            while sum(used.values()) + more_bytes > self._max_bytes and self._entries:
                holders = {each.principal for each in self._entries.values()}
                self._take_out_oldest(max(holders, key=lambda holder: used[holder]), removed)
            has_room = (
                used.get(name, 0) + more_bytes <= self._max_bytes_each
                and sum(used.values()) + more_bytes <= self._max_bytes
            )
            if has_room:
                used[name] = used.get(name, 0) + more_bytes
                entry.size_bytes += more_bytes
        self._remove(removed)
        return has_room

    def _take_out_oldest(self, principal: str, into: list[_Entry]) -> bool:
        """With the lock held."""
        oldest = next((each for each in self._entries.values() if each.principal == principal), None)
        if oldest is None:
            return False
        into.append(self._take_out(oldest))
        return True

    def _take_out(self, entry: _Entry) -> _Entry:
        """With the lock held."""
        del self._entries[entry.id]
        self._give_back(entry)
        return entry

    def _give_back(self, entry: _Entry) -> None:
        """With the lock held."""
        left = self._used.get(entry.principal, 0) - entry.size_bytes
        self._used[entry.principal] = left
        if left <= 0:
            del self._used[entry.principal]

    def _remove_expired(self) -> None:
        with self._lock:
            now = self._clock()
            old = [each for each in self._entries.values() if each.expires_at <= now]
            for each in old:
                self._take_out(each)
        self._remove(old)

    def _remove(self, entries: Iterable[_Entry]) -> None:
        for each in entries:
            self._folder.remove(each.id)

    def _entry(self, output_id: str, principal: str) -> _Entry:
        self._remove_expired()
        with self._lock:
            entry = self._entries.get(output_id)
        if entry is None or entry.principal != principal:
            raise NoSuchOutput
        return entry

    def _read(self, entry: _Entry, offset: int) -> Iterator[str]:
        if not 0 <= offset < entry.total_chars:
            return
        mark = bisect_right(entry.mark_chars, offset) - 1
        skip = offset - entry.mark_chars[mark]
        try:
            file = self._folder.open(entry.id)
        except FileNotFoundError:
            raise NoSuchOutput from None
        decoder = codecs.getincrementaldecoder("utf-8")()
        with file:
            file.seek(entry.mark_bytes[mark])
            while block := file.read(_BLOCK_CHARS):
                text = decoder.decode(block)
                if skip < len(text):
                    yield text[skip:]
                skip = max(0, skip - len(text))


def _blocks(parts: Iterable[str]) -> Iterator[str]:
    """Yield the same text in blocks of 65,536 characters, whatever the parts are; the last may be shorter."""
    waiting: list[str] = []
    count = 0
    for part in parts:
        start = 0
        while start < len(part):
            piece = part[start : start + _BLOCK_CHARS - count]
            start += len(piece)
            count += len(piece)
            waiting.append(piece)
            if count == _BLOCK_CHARS:
                yield "".join(waiting)
                waiting, count = [], 0
    if waiting:
        yield "".join(waiting)

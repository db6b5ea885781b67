"""Bodies, decompressed in steps that are each bounded: a bomb costs what a page costs."""

from __future__ import annotations

import zlib
from typing import Final

from mcp_tools.web.types import Unreachable

ACCEPT_ENCODING: Final = "gzip, deflate"
_MAX_MEMBERS: Final = 1000
_STEP_BYTES: Final = 256 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_ZLIB_METHOD: Final = 8
_CHECK_BYTES: Final = 8
# What servers name here although it compresses nothing; browsers pass over it, too.
_NO_CODINGS: Final = frozenset({
    "", "identity", "none", "utf-8", "utf8", "ascii", "us-ascii", "iso-8859-1", "binary", "7bit", "8bit",
    "text", "plain",
})  # fmt: skip


class Body:
    """Takes what arrives and keeps what it says, up to a limit.

    Args:
        encoding: The `Content-Encoding`, all of them joined by commas.
        max_bytes: Kept at most, after decompression; as much is taken before it.
    Raises:
        Unreachable: The encoding is not one that was asked for.
    """

    def __init__(self, encoding: str, *, max_bytes: int) -> None:
        names = [name for part in encoding.lower().split(",") if (name := part.strip()) not in _NO_CODINGS]
        if len(names) > 1:
            raise Unreachable("the answer is compressed several times over, which is not read")
        self._encoding = names[0] if names else ""
        if self._encoding not in ("", "gzip", "x-gzip", "deflate"):
            raise Unreachable("the answer is compressed in a way that was not asked for and is not read")
        self._max_bytes = max_bytes
        self._kept = bytearray()
        self._taken = 0
        self._members = 0
        self._decompressor: zlib._Decompress | None = None
        self.is_cut = False

    def take(self, data: bytes) -> bool:
        """Take what arrived. Returns whether there is use for more.

        Raises:
            Unreachable: It cannot be decompressed.
        """
        self._taken += len(data)
        if not self._encoding:
            self._keep(data)
        else:
            try:
                self._decompress(data)
            except zlib.error:
                raise Unreachable("the answer is damaged: it cannot be decompressed") from None
        # Compressed bytes that say nothing could be sent without end.
        if self._taken > self._max_bytes:
            self.is_cut = True
        return not self.is_cut

    def finish(self) -> bytes:
        """Return what was kept.

        Raises:
            Unreachable: The compressed body ended in the middle.
        """
        last = self._decompressor
        if last is not None and not self.is_cut and not last.eof and not _lacks_only_its_check(last):
            raise Unreachable("the answer broke off in the middle; trying again can help")
        return bytes(self._kept)

    def _keep(self, data: bytes) -> None:
        room = self._max_bytes - len(self._kept)
        self._kept += data[:room]
        if len(data) > room:
            self.is_cut = True

    def _decompress(self, data: bytes) -> None:
        while data and not self.is_cut:
            if self._decompressor is None or self._decompressor.eof:
                if self._members and (self._encoding == "deflate" or not data.startswith(b"\x1f")):
                    return  # padding behind the end
                self._members += 1
                if self._members > _MAX_MEMBERS:
                    raise Unreachable("the answer is compressed in too many parts")
                self._decompressor = zlib.decompressobj(self._window(data[0]))
            while not self.is_cut:
                piece = self._decompressor.decompress(data, _STEP_BYTES)
                self._keep(piece)
                data = self._decompressor.unconsumed_tail
                # What fits into one step leaves nothing behind, neither input nor pending output.
                if self._decompressor.eof or len(piece) < _STEP_BYTES:
                    break
            data = self._decompressor.unused_data

    def _window(self, first: int) -> int:
        if self._encoding != "deflate":
            return _GZIP
        # Some servers send deflate without its zlib header.
        return zlib.MAX_WBITS if first & 0x0F == _ZLIB_METHOD else _RAW


def _lacks_only_its_check(decompressor: zlib._Decompress) -> bool:
    # Some servers leave the checksum out. Where it is next, no byte of it becomes data, and anything is a
    # wrong one; inside of the data, no two continuations that differ so much both end it.
    for filler in (bytes(_CHECK_BYTES), b"\xff" * _CHECK_BYTES):
        copy = decompressor.copy()
        try:
            if any(copy.decompress(filler[at : at + 1], _STEP_BYTES) for at in range(_CHECK_BYTES)):
                return False
        except zlib.error as error:
            if str(error).endswith(("data check", "length check")):
                continue
        return False
    return True

"""Which pictures of results a model is shown: their type, size and end, read from their bytes.

One that a provider refuses it refuses in every later request too, and with it the whole history.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mcp_tools.output.plain import encodable
from mcp_tools.types import Content, MediaContent, ToolOutput

MAX_SIDE_PX: Final = 2_000
"""What the APIs take where a request holds more than 20 pictures, as a history can."""
MAX_PICTURE_BYTES: Final = 5 * 1024**2 * 3 // 4
"""5 MiB in base64."""
MAX_PICTURES: Final = 20
"""Of one result."""
MAX_RESULT_BYTES: Final = 2 * MAX_PICTURE_BYTES
"""Of all pictures of one result together."""
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_SIZED: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MAX_SEGMENTS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture that a model is shown.

    Args:
        media_type: By its bytes, whatever it was said to be.
        data: In base64.
    """

    media_type: str
    data: str

    @property
    def url(self) -> str:
        """The picture as an address that holds it."""
        return f"data:{self.media_type};base64,{self.data}"


def line_for(media_type: str, size_bytes: int, why: str) -> str:
    """Return what stands in the place of a picture that is not shown."""
    return f"[{media_type}, {size_bytes} bytes; not shown: {why}]"


def shown(content: Iterable[Content]) -> Iterator[Picture | str]:
    """Yield the pieces of a result: media as pictures, or as the lines that say why they are none."""
    count = size_bytes = 0
    for piece in content:
        if not isinstance(piece, MediaContent):
            yield encodable(ToolOutput(content=(piece,)).observed())
            continue
        media_type, why = _judged(piece.data)
        if not why and count == MAX_PICTURES:
            why = f"a result shows {MAX_PICTURES} pictures at most"
        elif not why and size_bytes + len(piece.data) > MAX_RESULT_BYTES:
            why = f"the pictures of a result may have {MAX_RESULT_BYTES:,} bytes together"
        if why:
            yield line_for(piece.media_type, len(piece.data), why)
        else:
            count, size_bytes = count + 1, size_bytes + len(piece.data)
            yield Picture(media_type=media_type, data=base64.b64encode(piece.data).decode())


def _judged(data: bytes) -> tuple[str, str]:
    """Return the type of a picture, and what speaks against showing it."""
    try:
        media_type, width, height, is_whole = _measured(data)
    except (struct.error, IndexError):
        return "", "it is damaged"
    if not media_type:
        return "", "it is no PNG, JPEG, GIF or WebP"
    if not is_whole or not width or not height:
        return media_type, "it is damaged"
    if max(width, height) > MAX_SIDE_PX:
        return media_type, f"it has {width} x {height} pixels; a side may have {MAX_SIDE_PX}"
    if len(data) > MAX_PICTURE_BYTES:
        return media_type, f"a picture may have {MAX_PICTURE_BYTES:,} bytes"
    return media_type, ""


def _measured(data: bytes) -> tuple[str, int, int, bool]:
    """Return type, width, height and whether its end is there; an empty type for anything else."""
    if data.startswith(_PNG):
        kind, width, height = struct.unpack_from(">4sII", data, 12)
        return "image/png", width, height, kind == b"IHDR" and b"IDAT" in data and data.endswith(_PNG_END)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif", *struct.unpack_from("<HH", data, 6), len(data) > 13 and data.endswith(b"\0;")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        (size,) = struct.unpack_from("<I", data, 4)
        return "image/webp", *_webp_size(data), size + 8 <= len(data)
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg", *_jpeg_size(data)
    return "", 0, 0, False


def _jpeg_size(data: bytes) -> tuple[int, int, bool]:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        marker = data[at + 1]
        if data[at] != 0xFF:
            break
        if marker in _JPEG_SIZED:
            height, width = struct.unpack_from(">HH", data, at + 5)
            # A small picture inside of a camera's notes has an end too, but comes before.
            return width, height, data.find(b"\xff\xd9", at) > 0
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return 0, 0, False


def _webp_size(data: bytes) -> tuple[int, int]:
    match data[12:16]:
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L" if data[20] == 0x2F:
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            (sides,) = struct.unpack_from("<Q", data[24:30] + b"\0\0", 0)
            return (sides & 0xFFFFFF) + 1, (sides >> 24) + 1
    return 0, 0

"""Which pictures of results a model is shown: their type, size and end, read from their bytes.

One that a provider refuses it refuses in every later request too, and with it the whole history.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mcp_tools.output.pictures import MAX_PICTURE_BYTES, measured
from mcp_tools.output.plain import encodable
from mcp_tools.types import Content, MediaContent, ToolOutput

MAX_SIDE_PX: Final = 2_000
"""What the APIs take where a request holds more than 20 pictures, as a history can."""
MAX_PICTURES: Final = 20
"""Of one result."""
MAX_RESULT_BYTES: Final = 2 * MAX_PICTURE_BYTES
"""Of all pictures of one result together."""


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
    count = judged = size_bytes = 0
    for piece in content:
        if not isinstance(piece, MediaContent):
            yield encodable(ToolOutput(content=(piece,)).observed())
            continue
        # First what costs nothing: judging walks through every part of a picture.
        media_type, why = "", ""
        if count == MAX_PICTURES:
            why = f"a result shows {MAX_PICTURES} pictures at most"
        elif judged == 2 * MAX_PICTURES:
            why = f"of a result {2 * MAX_PICTURES} pictures are looked at"
        elif size_bytes + len(piece.data) > MAX_RESULT_BYTES:
            why = f"the pictures of a result may have {MAX_RESULT_BYTES:,} bytes together"
        else:
            judged += 1
            media_type, why = _judged(piece.data)
        if why:
            yield encodable(line_for(piece.media_type, len(piece.data), why))
        else:
            count, size_bytes = count + 1, size_bytes + len(piece.data)
            yield Picture(media_type=media_type, data=base64.b64encode(piece.data).decode())


def _judged(data: bytes) -> tuple[str, str]:
    """Return the type of a picture, and what speaks against showing it."""
    if len(data) > MAX_PICTURE_BYTES:
        return "", f"a picture may have {MAX_PICTURE_BYTES:,} bytes"
    found = measured(data)
    if found is None:
        return "", "it is no whole PNG, JPEG, GIF or WebP"
    if max(found.width_px, found.height_px) > MAX_SIDE_PX:
        return "", f"it has {found.width_px} x {found.height_px} pixels; a side may have {MAX_SIDE_PX}"
    return found.media_type, ""

"""Which files are pictures that models can be shown: decided by their content, by walking its parts.

One picture that the API of a model cannot read, or that is too large for it, makes it refuse the whole
conversation from then on. So what is broken, unusual or unknown is none; its name is still told. Nothing
here decodes pixels, except the beginning of a PNG's, to see that there are some.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAX_PICTURE_BYTES: Final = 3_750_000
"""5 MB as base64: what the APIs of models take."""
MAX_PICTURE_PIXELS: Final = 8_000
"""Of each side."""

_MAX_PARTS: Final = 50_000
"""Three times what an encoder needs for `MAX_PICTURE_BYTES`; more are made to keep us busy."""
_MAX_INFLATED_BYTES: Final = 4 * 1024**2

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS: Final = {
    0: frozenset({1, 2, 4, 8, 16}),
    2: frozenset({8, 16}),
    3: frozenset({1, 2, 4, 8}),
    4: frozenset({8, 16}),
    6: frozenset({8, 16}),
}
_JPEG_SIZED: Final = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: what readers can read
_JPEG_TABLES, _JPEG_SCAN, _JPEG_END = 0xDB, 0xDA, 0xD9
_JPEG_FILL: Final = re.compile(rb"\xff+")
_JPEG_AFTER_SCAN: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B


_Size = tuple[int, int]


class _Broken(Exception):
    """It is not what its first bytes say, or not whole, or too large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A picture that is whole.

    Args:
        media_type: `image/png`, `image/jpeg`, `image/gif` or `image/webp`.
        width_px, height_px: Of the whole, or of a frame in it that is larger.
    """

    media_type: str
    width_px: int
    height_px: int


def picture_type(data: bytes) -> str | None:
    """Name the type of a picture that models can be shown; `None` if it is none, broken or too large.

    Args:
        data: The whole file.
    Returns:
        `image/png`, `image/jpeg`, `image/gif` or `image/webp`: at most `MAX_PICTURE_BYTES`, each side at
        most `MAX_PICTURE_PIXELS`, complete, and nothing behind its end.
    """
    found = measured(data)
    if found is None or max(found.width_px, found.height_px) > MAX_PICTURE_PIXELS:
        return None
    return found.media_type


def measured(data: bytes) -> Measured | None:
    """Return type and size of a picture; `None` if it is none, broken, or has over `MAX_PICTURE_BYTES`.

    Args:
        data: The whole file; behind a picture's end there may be nothing.
    """
    if len(data) > MAX_PICTURE_BYTES:
        return None
    try:
        if data.startswith(_PNG):
            return _whole("image/png", [_check_png(data)])
        if data.startswith(b"\xff\xd8"):
            return _whole("image/jpeg", [_check_jpeg(data)])
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _whole("image/gif", _check_gif(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _whole("image/webp", _check_webp(data))
    except _Broken:
        pass
    return None


def _whole(media_type: str, sizes: list[_Size]) -> Measured:
    _need(all(width > 0 and height > 0 for width, height in sizes))
    return Measured(
        media_type=media_type,
        width_px=max(width for width, _ in sizes),
        height_px=max(height for _, height in sizes),
    )


def _need(holds: bool) -> None:
    if not holds:
        raise _Broken


def _part(data: bytes, start: int, size: int) -> bytes:
    part = data[start : start + size]
    _need(len(part) == size)
    return part


def _number(data: bytes, start: int, size: int, order: str) -> int:
    return int.from_bytes(_part(data, start, size), "big" if order == ">" else "little")


# --- PNG --------------------------------------------------------------------------------------


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG)
    for _ in range(_MAX_PARTS):
        size = _number(data, at, 4, ">")
        body = _part(data, at + 4, 4 + size)
        _need(zlib.crc32(body) == _number(data, at + 8 + size, 4, ">"))
        at += 12 + size
        yield body[:4], body[4:]
        if body[:4] == b"IEND":
            _need(size == 0 and at == len(data))
            return
    raise _Broken


def _check_png(data: bytes) -> _Size:
    chunks = list(_png_chunks(data))
    kind, header = chunks[0]
    _need(kind == b"IHDR" and len(header) == 13)
    width, height = _number(header, 0, 4, ">"), _number(header, 4, 4, ">")
    depth, color, compression, filtering, interlace = header[8:]
    _need(depth in _PNG_DEPTHS.get(color, ()) and (compression, filtering) == (0, 0) and interlace in (0, 1))
    kinds = [kind for kind, _ in chunks]
    _need(kinds.count(b"IHDR") == 1 and b"IDAT" in kinds)
    first = kinds.index(b"IDAT")
    _need(color != 3 or b"PLTE" in kinds[:first])
    pixels = [body for kind, body in chunks if kind == b"IDAT"]
    _need(kinds[first : first + len(pixels)] == [b"IDAT"] * len(pixels))  # readers stop at a gap
    row_bytes = 1 + (width * depth * _PNG_SAMPLES[color] + 7) // 8
    # Interlaced rows are cut otherwise; that there are some must do.
    least_bytes = 1 if interlace else min(height * row_bytes, _MAX_INFLATED_BYTES)
    try:
        found = zlib.decompressobj().decompress(b"".join(pixels), least_bytes)
    except zlib.error:
        raise _Broken from None
    _need(len(found) == least_bytes)
    return width, height


# --- JPEG -------------------------------------------------------------------------------------


def _check_jpeg(data: bytes) -> _Size:
    at, size_px, has_tables, has_scan = 2, (0, 0), False, False
    for _ in range(_MAX_PARTS):
        fill = _JPEG_FILL.match(data, at)
        if fill is None:
            break
        at = fill.end() - 1
        marker = _number(data, at + 1, 1, ">")
        if marker == _JPEG_END:
            _need(has_scan and at + 2 == len(data))
            return size_px
        size = _number(data, at + 2, 2, ">")
        _need(size >= 2)
        segment = _part(data, at + 4, size - 2)
        at += 2 + size
        if marker in _JPEG_SIZED:
            _need(size_px == (0, 0))
            size_px = _number(segment, 3, 2, ">"), _number(segment, 1, 2, ">")
            _need(size_px[0] > 0 and size_px[1] > 0)
            _need(segment[0] == 8)
            _need(segment[5:6] in (b"\x01", b"\x03", b"\x04") and len(segment) == 6 + 3 * segment[5])
        has_tables = has_tables or marker == _JPEG_TABLES
        if marker == _JPEG_SCAN:
            _need(size_px != (0, 0) and has_tables)
            has_scan = True
            after = _JPEG_AFTER_SCAN.search(data, at)
            if after is None or after.start() == at:
                break
            at = after.start()
    raise _Broken


# --- GIF --------------------------------------------------------------------------------------


def _check_gif(data: bytes) -> list[_Size]:
    sizes = [(_number(data, 6, 2, "<"), _number(data, 8, 2, "<"))]
    at = 13 + _gif_table_bytes(_number(data, 10, 1, "<"))
    parts = 0
    while (kind := _number(data, at, 1, "<")) != _GIF_END:
        if kind == _GIF_IMAGE:
            sizes.append((_number(data, at + 5, 2, "<"), _number(data, at + 7, 2, "<")))
            at += 10 + _gif_table_bytes(_number(data, at + 9, 1, "<"))
            _need(_number(data, at, 1, "<") in range(1, 12))  # bits of a code
            _need(_number(data, at + 1, 1, "<") > 0)
            at += 1
        else:
            _need(kind == _GIF_EXTENSION)
            at += 2
        while size := _number(data, at, 1, "<"):
            at += 1 + size
            parts += 1
            _need(parts <= _MAX_PARTS)
        at += 1
        parts += 1
        _need(parts <= _MAX_PARTS)
    _need(len(sizes) > 1 and at + 1 == len(data))
    return sizes


def _gif_table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


# --- WebP -------------------------------------------------------------------------------------


def _webp_chunks(data: bytes, at: int, parts: Iterator[int]) -> Iterator[tuple[bytes, bytes]]:
    for _ in parts:
        if at == len(data):
            return
        size = _number(data, at + 4, 4, "<")
        yield _part(data, at, 4), _part(data, at + 8, size)
        at += 8 + size + size % 2
    raise _Broken


def _check_webp(data: bytes) -> list[_Size]:
    _need(_number(data, 4, 4, "<") + 8 == len(data))
    parts = iter(range(_MAX_PARTS))  # of all frames together
    canvas, images = _webp_images(_webp_chunks(data, 12, parts), parts, is_first=True)
    _need(len(images) > 0)
    return canvas + images


def _webp_images(
    chunks: Iterator[tuple[bytes, bytes]], parts: Iterator[int], *, is_first: bool
) -> tuple[list[_Size], list[_Size]]:
    """Check each picture among the chunks; frames hold chunks again.

    Returns:
        The size of the canvas, if there is one, and those of the pictures.
    """
    canvas: list[_Size] = []
    images: list[_Size] = []
    for number, (kind, body) in enumerate(chunks):
        if kind == b"VP8 ":
            _need(_number(body, 0, 1, "<") & 1 == 0 and body[3:6] == b"\x9d\x01\x2a")
            images.append((_number(body, 6, 2, "<") & 0x3FFF, _number(body, 8, 2, "<") & 0x3FFF))
            _need(0 < _number(body, 0, 3, "<") >> 5 <= len(body) - 10)  # the first partition
        elif kind == b"VP8L":
            bits = _number(body, 1, 4, "<")
            _need(body[0] == 0x2F and bits >> 29 == 0 and len(body) > 5)
            images.append(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
        elif kind == b"VP8X" and is_first:
            _need(number == 0)
            canvas.append((_number(body, 4, 3, "<") + 1, _number(body, 7, 3, "<") + 1))
        elif kind == b"ANMF" and is_first:
            _, frame = _webp_images(_webp_chunks(body, 16, parts), parts, is_first=False)
            _need(len(frame) == 1)
            images += frame
        _need(not is_first or number > 0 or kind in (b"VP8 ", b"VP8L", b"VP8X"))
    return canvas, images

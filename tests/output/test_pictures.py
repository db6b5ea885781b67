"""Only pictures that the API of a model can read are shown: one that it cannot ends the conversation."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import pytest
from PIL import Image

from mcp_tools.output.pictures import MAX_PICTURE_BYTES, picture_type
from tests.output.pictures import PNG_START, png, png_chunk, png_header, webp


def saved(kind: str, *, mode: str = "RGB", size: tuple[int, int] = (31, 17), **options: Any) -> bytes:
    """A picture as the usual library for it writes it."""
    picture = Image.radial_gradient("L").resize(size).convert(mode)
    if "save_all" in options:
        options["append_images"] = [picture.rotate(90), picture.rotate(180)]
    written = io.BytesIO()
    picture.save(written, kind, **options)
    return written.getvalue()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (png(), "image/png"),
        (png(8_000, 1), "image/png"),
        (png(3_000, 3_000), "image/png"),
        *((saved("PNG", mode=mode), "image/png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        (saved("PNG", save_all=True), "image/png"),
        *((saved("JPEG", mode=mode), "image/jpeg") for mode in ("L", "RGB", "CMYK")),
        (saved("JPEG", progressive=True, size=(300, 300)), "image/jpeg"),
        (saved("JPEG", restart_marker_blocks=1, comment=b"\xff\xd9", size=(99, 99)), "image/jpeg"),
        (saved("GIF", size=(300, 300)), "image/gif"),
        (saved("GIF", save_all=True, loop=0), "image/gif"),
        (saved("WEBP"), "image/webp"),
        (saved("WEBP", lossless=True), "image/webp"),
        (saved("WEBP", mode="RGBA"), "image/webp"),
        (saved("WEBP", save_all=True), "image/webp"),
        (saved("WEBP", exif=b"Exif\0\0II*\0"), "image/webp"),
    ],
)
def test_whole_pictures_of_the_usual_kinds_are_pictures(data: bytes, found: str) -> None:
    assert picture_type(data) == found


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_picture_that_is_cut_off_anywhere_or_goes_on_is_none(kind: str) -> None:
    whole = saved(kind)
    assert picture_type(whole) == f"image/{kind.lower()}"
    torn = [whole[:size] for size in range(len(whole))] + [whole + more for more in (b"\0", b"<html>", whole)]
    assert [picture_type(data) for data in torn] == [None] * len(torn)


IHDR = png_header(1, 1)
IDAT = png_chunk(b"IDAT", zlib.compress(bytes(2)))
IEND = png_chunk(b"IEND", b"")
JPEG_SIZE = saved("JPEG", size=(31, 17)).index(b"\xff\xc0") + 5
LARGE_JPEG = bytearray(saved("JPEG"))
LARGE_JPEG[JPEG_SIZE : JPEG_SIZE + 4] = struct.pack(">HH", 65_500, 65_500)
LARGE_FRAME = bytearray(saved("GIF"))
FRAME_SIZE = LARGE_FRAME.index(b"\x2c\0\0\0\0") + 5
LARGE_FRAME[FRAME_SIZE : FRAME_SIZE + 2] = b"\xff\xff"
VP8 = saved("WEBP")[20:]


def lossless(width: int, height: int) -> tuple[bytes, bytes]:
    return b"VP8L", b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14) + bytes(3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg/>",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0",
        b"\xff\xd8\xff<html>",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8" + b"\xff" * 1000 + b"\xd9",
        bytes(LARGE_JPEG),
        bytes(LARGE_JPEG[: JPEG_SIZE + 10]),
        b"\xff\xd8\xff" + bytes(MAX_PICTURE_BYTES),
        saved("JPEG").replace(b"\xff\xc0", b"\xff\xc3"),
        saved("JPEG").replace(b"\xff\xdb", b"\xff\xfe"),
        PNG_START,
        png(8_001, 1),
        png(0, 1),
        IHDR + IEND,
        IHDR + png_chunk(b"IDAT", b"") + IEND,
        IHDR + png_chunk(b"IDAT", b"no pixels") + IEND,
        IHDR + png_chunk(b"IDAT", zlib.compress(b"\0")) + IEND,
        IHDR + IDAT[:-1] + b"\0" + IEND,
        IHDR + IDAT + IEND + IEND,
        IHDR + IEND + IDAT,
        IHDR + IDAT + png_chunk(b"tEXt", b"a\0b") + IDAT + IEND,
        PNG_START + IDAT + IHDR[8:] + IEND,
        png_header(1, 1, color=3) + IDAT + IEND,
        png_header(1, 1, color=1) + IDAT + IEND,
        png_header(1, 1, depth=5) + IDAT + IEND,
        IHDR + png_chunk(b"tEXt", b"") * 60_000 + IDAT + IEND,
        b"GIF89a\x01\x00\x01\x00;",
        b"GIF89a\x01\x00\x01\x00\0\0\0;",
        b"GIF89a\x01\x00\x01\x00\0\0\0,\0\0\0\0\1\0\1\0\0\2\0;",
        bytes(LARGE_FRAME),
        b"GIF89a\xff\xff\x01\x00" + saved("GIF")[10:],
        b"GIF89a\x01\x00\x01\x00\0\0\0!\xfe" + b"\1a" * 60_000 + b"\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\x04\0\0\0WEBP",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"RIFF\0\0\0\0WAVEfmt ",
        webp((b"VP8 ", b"")),
        webp((b"VP8L", b"")),
        webp((b"VP8X", b"")),
        webp((b"VP8X", bytes(10))),
        webp((b"EXIF", b"a"), lossless(1, 1)),
        webp((b"VP8X", bytes(4) + b"\xff" * 6), lossless(1, 1)),
        webp((b"VP8X", bytes(10)), (b"ANMF", bytes(16))),
        webp(lossless(8_001, 1)),
        webp(lossless(1, 8_001)),
        webp((b"VP8 ", VP8[:6] + struct.pack("<HH", 1, 16_000) + VP8[10:])),
        webp((b"VP8 ", b"\x01" + VP8[1:])),
        webp((b"VP8 ", VP8[:10])),
    ],
)
def test_broken_and_oversized_pictures_are_none(data: bytes) -> None:
    assert picture_type(data) is None


def test_pictures_made_to_keep_us_busy_do_not() -> None:
    bomb = zlib.compress(bytes(64 * 1024**2), 9)
    made = [
        png_header(8_000, 8_000) + png_chunk(b"IDAT", bomb) + IEND,
        b"GIF89a\x01\x00\x01\x00\0\0\0!\xfe" + b"\1a" * 1_800_000,
        b"GIF89a\x01\x00\x01\x00\0\0\0" + b"!\xfe\0" * 1_200_000,
        IHDR + png_chunk(b"tEXt", b"") * 300_000,
        b"\xff\xd8" + b"\xff\xfe\0\2" * 900_000,
        b"\xff\xd8" + b"\xff" * 3_700_000,
        saved("WEBP", save_all=True)[:12] + b"XXXX\0\0\0\0" * 400_000,
    ]
    for data in made:
        started_s = time.process_time()
        picture_type(data)
        assert time.process_time() - started_s < 1

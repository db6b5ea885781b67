"""Bytes ↔ text without guessing: what does not decode is an error that says so and what to try."""

from __future__ import annotations

import codecs
import re
from typing import Final

from mcp_tools.builtin.workspace.problems import FileProblem
from mcp_tools.errors import ToolError
from mcp_tools.output.marks import marked, without_middle

MAX_PATH_CHARS: Final = 1_000

# Python's codecs also hold compressors, escapes and formats that take quadratic time (idna).
_ENCODINGS: Final = re.compile(
    r"ascii|utf-8(-sig)?|utf-(16|32)(-[lb]e)?|iso8859-\d+|cp\d+|koi8-[rtu]|mac-\w+|gb2312|gbk|gb18030"
    r"|big5(hkscs)?|shift_jis(_2004|x0213)?|euc_(jp|kr|jis_2004|jisx0213)|iso2022_(jp|kr)\w*|johab|hz|tis-620"
)

_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"\xff\xf3", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"\x7fELF", "application/x-executable"),
)


def media_type_of(head: bytes) -> str | None:
    """Name the type by the first bytes, never by the file's name; None where they say nothing."""
    if head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"WAVE"):
        return "image/webp" if head[8:12] == b"WEBP" else "audio/wav"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "image/bmp"
    if head[4:8] == b"ftyp":
        return {b"avif": "image/avif", b"M4A ": "audio/mp4"}.get(head[8:12])
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)


def check_encoding(encoding: str) -> str:
    """Return the codec's own name.

    Raises:
        ToolError: Unknown, or no text encoding.
    """
    try:
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError, UnicodeError):
        name = ""
    if not _ENCODINGS.fullmatch(name):
        raise ToolError(
            f"{encoding[:50]!r} is not a text encoding; use for example utf-8, utf-8-sig, utf-16, latin-1, "
            "cp1252 or shift_jis"
        )
    return name


def decode(content: bytes, path: str, *, encoding: str = "utf-8", starts_at: int = 0) -> str:
    """Decode exactly: a byte order mark, line ends and control characters stay as they are.

    Args:
        starts_at: Where in the file `content` begins, for the error.
    Raises:
        FileProblem: It is not text in this encoding. Nothing is replaced or left out.
    """
    try:
        return content.decode(encoding)
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        raise FileProblem(path, _not_text(content, encoding, start, starts_at)) from None


def _not_text(content: bytes, encoding: str, start: int, starts_at: int) -> str:
    byte = f"byte 0x{content[start]:02x}" if start < len(content) else "its end"
    text = f"is not {encoding} text ({byte} at offset {starts_at + start})"
    head = content if starts_at == 0 else b""
    media_type = media_type_of(head)
    if media_type and media_type.startswith(("image/", "audio/")):
        return f"{text}; it is {media_type}: use read_media_file"
    if media_type:
        return f"{text}; it is {media_type}, which has no text to read here"
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return f"{text}; it starts like UTF-32: read_file with encoding='utf-32'"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"{text}; it starts like UTF-16: read_file with encoding='utf-16'"
    return (
        f"{text}. If it is text in another encoding, name it: read_file with encoding='latin-1', 'cp1252', …"
    )


def encode(content: str) -> bytes:
    """Encode as UTF-8, line ends as they are.

    Raises:
        ToolError: It holds half a character (a lone surrogate).
    """
    try:
        return content.encode()
    except UnicodeEncodeError as error:
        raise ToolError(
            f"content holds half a character (a lone surrogate) at index {error.start}; nothing was written. "
            "Send it as whole characters"
        ) from None


def trimmed_to_characters(content: bytes) -> bytes:
    """Drop a UTF-8 character cut at either end, so that a cut inside a line decodes."""
    start = 0
    while start < min(3, len(content)) and content[start] & 0xC0 == 0x80:
        start += 1
    for back in range(1, min(4, len(content)) + 1):
        byte = content[-back]
        if byte & 0xC0 != 0x80:
            needs = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return content[start : len(content) - back] if needs > back else content[start:]
    return content[start:]


def quoted_path(path: str) -> str:
    """Quote a path for a person: what is not seen is written out, and its end is always there."""
    return "'" + without_middle(marked(path), MAX_PATH_CHARS) + "'"

"""What came back, as text: what it is, and a process with limits that reads it."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import anyio
import anyio.to_thread
from anyio.abc import ByteReceiveStream, ByteSendStream

from mcp_tools.errors import ToolError
from mcp_tools.slots import Slots
from mcp_tools.web.types import WebResponse

DEADLINE_S: Final = 8.0
_WORKER: Final = Path(__file__).with_name("extract_worker.py")
_readers: Final = Slots(2)
_turns: Final[weakref.WeakValueDictionary[str, Slots]] = weakref.WeakValueDictionary()
_NO_TEXT: Final = {
    "html": "there is no text on this page for a reader; scripts may make it, which are not run. Look at its "
    "source with raw=true",
    "pdf": "there is no text in this PDF; it may hold pictures of pages, which are not read",
}
_ELSE: Final = {"html": "; try raw=true", "pdf": ""}
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,60}")
_MAGIC: Final = (
    (b"\x89PNG", "a PNG picture"), (b"\xff\xd8\xff", "a JPEG picture"), (b"GIF8", "a GIF picture"),
    (b"PK\x03\x04", "a ZIP archive or office document"), (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"), (b"\xfd7zXZ\x00", "xz data"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x28\xb5\x2f\xfd", "zstd data"), (b"\x7fELF", "a program"), (b"ID3", "a sound file"),
)  # fmt: skip
# Words begin like these, so there must be a NUL soon behind them.
_LIKE_WORDS: Final = frozenset({b"BZh", b"ID3"})
_NOT_TEXT: Final = ("image/", "audio/", "video/", "font/")
_HEAD_BYTES: Final = 4096
_MAX_NULS: Final = 8
_CONTROLS: Final = bytes({*range(32), 127} - set(b"\b\t\n\r\f\x1b"))
_FEW_CONTROLS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Readable:
    """A page as text. `is_cut`: there was more than is kept."""

    title: str
    text: str
    is_cut: bool


def media_type(answer: WebResponse) -> str:
    """Return what the server says it is; empty where that has no such form: it is a stranger's text."""
    named = answer.headers.get("content-type", "").partition(";")[0].partition(",")[0].strip().lower()
    return named if _MEDIA_TYPE.fullmatch(named) else ""


def kind_of(answer: WebResponse) -> str:
    """Return `html`, `pdf` or `text`, by the content and not by what the server calls it.

    Raises:
        ToolError: It is binary; the text names kind and size.
    """
    head = answer.body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"%PDF-" in answer.body[:1024] and answer.body.lstrip().startswith(b"%PDF-"):
        if answer.is_cut:
            raise ToolError(f"this PDF is larger than {len(answer.body):,} bytes, which is not read")
        return "pdf"
    named = media_type(answer)
    looks_like_html = head.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))
    what = "" if looks_like_html else _binary(answer, named)
    if what:
        size = f"{'at least ' if answer.is_cut else ''}{len(answer.body):,} bytes"
        raise ToolError(f"this is {what} of {size}; fetch_url reads only text and PDF")
    is_html = named in ("text/html", "application/xhtml+xml") or looks_like_html
    return "html" if is_html and named != "text/plain" else "text"


def _binary(answer: WebResponse, named: str) -> str:
    """Return what it is where it is no text, else nothing."""
    head = answer.body[:_HEAD_BYTES]
    for magic, name in _MAGIC:
        if head.startswith(magic) and (magic not in _LIKE_WORDS or 0 in head or _has_controls(head)):
            return name
    if head.startswith(b"MZ") and 0 in head[:64]:
        return "a program"
    if head.startswith(b"RIFF") and head[8:12] in (b"WEBP", b"WAVE", b"AVI "):
        return "a picture, sound or film"
    if head[4:8] == b"ftyp" and 0 in head[:4]:
        return "a film or picture"
    if named.startswith(_NOT_TEXT) and not named.endswith("+xml"):
        return named
    if _wide_charset(answer):
        return ""
    return (named or "binary data") if head.count(0) > _MAX_NULS or _has_controls(head) else ""


def _has_controls(head: bytes) -> bool:
    # Texts in old charsets have next to none; what is compressed has one in nine bytes.
    count = len(head) - len(head.translate(None, _CONTROLS.replace(b"\0", b"")))
    try:
        head[:-3].decode()
    except UnicodeDecodeError as error:
        is_utf8 = error.start >= len(head) - 6  # a character cut in its middle
    else:
        is_utf8 = True
    return count > max(_FEW_CONTROLS, len(head) // (10 if is_utf8 else 50))


def _charset(answer: WebResponse) -> str:
    named = answer.headers.get("content-type", "").lower().partition("charset=")[2]
    return _wide_charset(answer) or named.split(";")[0].split(",")[0].strip(" \"'")[:40]


def _wide_charset(answer: WebResponse) -> str:
    """Return the charset where its characters are of two or four bytes, else nothing."""
    named = answer.headers.get("content-type", "").lower().partition("charset=")[2].strip(" \"'")
    if found := re.match(r"utf-?(16|32)-?(le|be)?\b", named):
        # Without a mark and a name, the order is that of browsers.
        return f"utf-{found[1]}-{found[2] or 'le'}"
    head = answer.body[:_HEAD_BYTES]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    at_even, at_odd = head[::2].count(0), head[1::2].count(0)
    if not named and not min(at_even, at_odd) and max(at_even, at_odd) > len(head) // 3:
        return "utf-16-le" if at_odd else "utf-16-be"
    return ""


async def read(answer: WebResponse, *, raw: bool, principal: str) -> Readable:
    """Turn an answer into text.

    Args:
        principal: Whose call it is. Those of one wait behind each other, and not before everybody else's.
    Raises:
        ToolError: It is binary, or no reader could make sense of it within its time and memory.
    """
    kind = kind_of(answer)
    charset = _charset(answer)
    if kind == "text" or (raw and kind == "html"):
        # Nothing is parsed, so it needs no process of its own, and waits for nobody else's.
        from mcp_tools.builtin.web.extract_worker import MAX_CHARS, decoded

        decode = functools.partial(decoded, answer.body, charset, is_html=kind == "html")
        text = await anyio.to_thread.run_sync(decode)
        return Readable(title="", text=text[:MAX_CHARS], is_cut=len(text) > MAX_CHARS)
    request = {"kind": kind, "raw": raw, "url": answer.url, "charset": charset}
    content = json.dumps(request).encode() + b"\n" + answer.body
    owner = object()
    # Of each principal one call stands in the line for a reader.
    turn = _turns.setdefault(principal, Slots(1))
    await turn.acquire(owner)
    try:
        await _readers.acquire(owner)
    finally:
        turn.release(owner)
    try:
        return await _run(content, kind)
    finally:
        _readers.release(owner)


async def _feed(stdin: ByteSendStream, content: bytes) -> None:
    async with stdin:
        with contextlib.suppress(anyio.BrokenResourceError):  # it ended before it had read everything
            await stdin.send(content)


async def _run(content: bytes, kind: str) -> Readable:
    with anyio.move_on_after(DEADLINE_S):
        # Withdrawn while it starts, it would be left to itself.
        with anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                [sys.executable, "-I", "-B", str(_WORKER)],
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        stdin, stdout = cast(ByteSendStream, process.stdin), cast(ByteReceiveStream, process.stdout)  # pipes
        async with process, anyio.create_task_group() as tasks:
            tasks.start_soon(_feed, stdin, content)
            said = b"".join([part async for part in stdout])
        if process.returncode == 0:
            found = json.loads(said)
            if not found["text"].strip():
                raise ToolError(_NO_TEXT[kind])
            return Readable(title=found["title"], text=found["text"], is_cut=found["is_cut"])
        raise ToolError(f"it could not be read: it is broken, locked or too expensive{_ELSE[kind]}")
    raise ToolError(f"it took over {DEADLINE_S:g} s to read and was given up{_ELSE[kind]}")

"""What came back, as text: what it is, and a process with limits that reads it."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from mcp_tools.errors import ToolError
from mcp_tools.slots import Slots
from mcp_tools.web.types import WebResponse

DEADLINE_S: Final = 8.0
_WORKER: Final = Path(__file__).with_name("extract_worker.py")
_readers: Final = Slots(2)
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
    (b"\x7fELF", "a program"), (b"MZ", "a program"),
)  # fmt: skip


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
    what = next((name for magic, name in _MAGIC if answer.body.startswith(magic)), "")
    is_wide = answer.body.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not what and not is_wide and answer.body[:4096].count(0) > 8:
        what = named or "binary data"
    if what:
        raise ToolError(f"this is {what} of {len(answer.body):,} bytes; fetch_url reads only text and PDF")
    is_html = named in ("text/html", "application/xhtml+xml") or head.startswith(
        (b"<!doctype html", b"<html")
    )
    return "html" if is_html else "text"


async def read(answer: WebResponse, *, raw: bool) -> Readable:
    """Turn an answer into text.

    Raises:
        ToolError: It is binary, or no reader could make sense of it within its time and memory.
    """
    kind = kind_of(answer)
    charset = (
        answer.headers.get("content-type", "").lower().partition("charset=")[2].split(";")[0].strip(" \"'")
    )
    if kind == "text" or (raw and kind == "html"):
        # Nothing is parsed, so it needs no process of its own, and waits for nobody else's.
        from mcp_tools.builtin.web.extract_worker import MAX_CHARS, decoded

        decode = functools.partial(decoded, answer.body, charset[:40], is_html=kind == "html")
        text = await anyio.to_thread.run_sync(decode)
        return Readable(title="", text=text[:MAX_CHARS], is_cut=len(text) > MAX_CHARS)
    request = {"kind": kind, "raw": raw, "url": answer.url, "charset": charset[:40]}
    content = json.dumps(request).encode() + b"\n" + answer.body
    owner = object()
    await _readers.acquire(owner)
    try:
        return await _run(content, kind)
    finally:
        _readers.release(owner)


async def _run(content: bytes, kind: str) -> Readable:
    with anyio.move_on_after(DEADLINE_S):
        done = await anyio.run_process(
            [sys.executable, "-I", "-B", str(_WORKER)],
            input=content,
            stderr=subprocess.DEVNULL,
            check=False,
            env={},
            cwd="/",
            start_new_session=True,
        )
        if done.returncode == 0:
            found = json.loads(done.stdout)
            if not found["text"].strip():
                raise ToolError(_NO_TEXT[kind])
            return Readable(title=found["title"], text=found["text"], is_cut=found["is_cut"])
        raise ToolError(f"it could not be read: it is broken, locked or too expensive{_ELSE[kind]}")
    raise ToolError(f"it took over {DEADLINE_S:g} s to read and was given up{_ELSE[kind]}")

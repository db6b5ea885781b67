"""What came of the code → what a model reads and sees, and the same as data."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from mcp_tools.builtin.workspace.problems import escaped, shown
from mcp_tools.output.marks import OPENING
from mcp_tools.output.pictures import picture_type
from mcp_tools.output.plain import encodable
from mcp_tools.types import Content, MediaContent, TextContent, ToolOutput

if TYPE_CHECKING:
    from sandbox import Artifact, SandboxResult

MAX_TEXT_CHARS: Final = 20_000
"""Of one text file that comes back, and three times this of all of them."""


_UNSAFE: Final = re.compile(
    "([\0-\x08\x0b-\x1f\x7f-\x9f"  # what a terminal acts on
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb"  # what moves its neighbours
    "\U000e0000-\U000e0fff"  # tags and selectors: text that a model reads and nobody sees
    f"{OPENING}])\\1*"
)
_SHORT_RUN: Final = 3


class ReturnedFile(BaseModel):
    """A file that the code left in its output folder, or an open figure."""

    model_config = ConfigDict(defer_build=True)

    name: str = Field(description="Relative to that folder. What is not seen is written out.")
    media_type: str
    size_bytes: int
    shown_as: Literal["picture", "text", "beginning of the text", "name"]
    text: str | None = Field(default=None, description="What is shown of a text file.")


class PythonResult(BaseModel):
    """What came of the code.

    Its times and its memory are measured from outside, and so is an end by time, cpu, crash, output or
    cancelled. That it came to its end, with which status or exception, is what the code says.
    """

    model_config = ConfigDict(defer_build=True)

    success: bool
    stdout: str
    stderr: str
    return_code: int = Field(description="-1 where the sandbox ended it.")
    ended_by: str = Field(
        description="exit, exception, crash, time, cpu, memory, output, processes, disk or cancelled"
    )
    error: str | None = Field(description="Why it was no success.")
    exception: str | None = Field(description="The type of what nothing caught.")
    value: str | None = Field(description="repr of the last expression.")
    duration_ms: float
    cpu_ms: float
    peak_memory_bytes: int
    stdout_dropped_bytes: int = Field(description="What was over the limit.")
    stderr_dropped_bytes: int = Field(description="What was over the limit.")
    stdout_replaced: bool = Field(description="It was not all UTF-8.")
    stderr_replaced: bool = Field(description="It was not all UTF-8.")
    session: str | None
    session_started: bool = Field(description="There was no session of this name before.")
    session_lost: bool = Field(description="The session ended with this call.")
    artifacts: list[ReturnedFile]
    artifacts_left_out: list[str]
    isolation: str
    not_enforced: list[str] = Field(description="Limits that this machine cannot enforce.")


def output(result: SandboxResult, *, session: str | None) -> ToolOutput:
    """Render what came of a call: texts, then pictures, and the whole as data.

    Args:
        result: As the sandbox returned it.
        session: The name that the caller knows the session by.
    """
    files, texts, pictures = _files(result.artifacts)
    structured = {
        "success": result.success,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "return_code": result.return_code,
        "ended_by": str(result.ended_by),
        "error": None if result.error is None else _line(result.error),
        "exception": None if result.exception is None else _line(result.exception),
        "value": result.value,
        "duration_ms": round(result.duration_ms, 3),
        "cpu_ms": round(result.cpu_ms, 3),
        "peak_memory_bytes": result.peak_memory_bytes,
        "stdout_dropped_bytes": result.stdout_dropped_bytes,
        "stderr_dropped_bytes": result.stderr_dropped_bytes,
        "stdout_replaced": result.stdout_replaced,
        "stderr_replaced": result.stderr_replaced,
        "session": session,
        "session_started": result.session_started,
        "session_lost": result.session_lost,
        "artifacts": [file.model_dump() for file in files],
        "artifacts_left_out": [_line(each) for each in result.artifacts_left_out],
        "isolation": str(result.isolation),
        "not_enforced": list(result.not_enforced),
    }
    said = [
        (f"[{label}]", text)
        for label, text in (("stdout", result.stdout), ("stderr", result.stderr), ("value", result.value))
        if text
    ]
    shown_texts = [(label, without_controls(text)) for label, text in said + texts]
    notes = _notes(result, files, session)
    if any(after != text for (_, after), (_, text) in zip(shown_texts, said + texts, strict=True)):
        notes.append(f"characters that act on a terminal or are not seen are shown as {OPENING}U+001B⟧")
    if result.success and not (said or texts or pictures or notes):
        notes.append("no output")
    ended = "ok" if result.success else f"failed: {_line(result.error or f'ended by {result.ended_by}')}"
    # The first piece is ours, and no other: what the code says is in pieces that begin with a label.
    pieces = ["\n".join(f"[{note}]" for note in [ended, *notes])]
    pieces += [f"{label}\n{text}" for label, text in shown_texts]
    content: list[Content] = [TextContent(text=piece) for piece in pieces]
    return ToolOutput(content=content + pictures, structured=structured)


def without_controls(text: str) -> str:
    """Write out what acts on a terminal, moves its neighbours or hides text, as `⟦U+001B⟧`.

    Line breaks and tabs stay, and so do the joiners that scripts and emoji need. A long run of one
    character is counted: `⟦U+0000 x 5,000⟧`. `⟦` is written out too, so only our marks begin with it.
    """
    return _UNSAFE.sub(_mark, encodable(text))


def _mark(run: re.Match[str]) -> str:
    code, count = f"U+{ord(run[1]):04X}", len(run[0])
    return f"{OPENING}{code}⟧" * count if count <= _SHORT_RUN else f"{OPENING}{code} x {count:,}⟧"


def _line(text: str) -> str:
    """One line, whatever is in it."""
    return escaped(encodable(text))


def _files(
    artifacts: tuple[Artifact, ...],
) -> tuple[list[ReturnedFile], list[tuple[str, str]], list[Content]]:
    """Returns all files as data, the texts to show with their labels, and the pictures to show."""
    files: list[ReturnedFile] = []
    texts: list[tuple[str, str]] = []
    pictures: list[Content] = []
    left_chars = 3 * MAX_TEXT_CHARS
    for artifact in artifacts:
        text: str | None = None
        media_type, shown_as = artifact.media_type, "name"
        picture = picture_type(artifact.data)
        if picture is not None:
            media_type, shown_as = picture, "picture"
            pictures.append(MediaContent(data=artifact.data, media_type=picture))
        else:
            whole = _as_text(artifact.data)
            room = min(MAX_TEXT_CHARS, left_chars)
            if whole is not None and room > 0:
                text = whole[:room]
                shown_as = "text" if len(text) == len(whole) else "beginning of the text"
                left_chars -= len(text)
                cut = f", the first {len(text):,} characters" if len(text) < len(whole) else ""
                texts.append((f"[file {shown(artifact.name)}, {len(artifact.data):,} bytes{cut}]", text))
        files.append(
            ReturnedFile(
                name=_line(artifact.name),
                media_type=media_type,
                size_bytes=len(artifact.data),
                shown_as=shown_as,  # type: ignore[arg-type]
                text=text,
            )
        )
    return files, texts, pictures


def _as_text(data: bytes) -> str | None:
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _notes(result: SandboxResult, files: list[ReturnedFile], session: str | None) -> list[str]:
    notes = []
    for name, dropped, replaced in (
        ("stdout", result.stdout_dropped_bytes, result.stdout_replaced),
        ("stderr", result.stderr_dropped_bytes, result.stderr_replaced),
    ):
        if dropped:
            notes.append(f"{name}: {dropped:,} more bytes were over the limit and are lost; print less")
        if replaced:
            notes.append(f"{name}: bytes that are no UTF-8 are shown as \N{REPLACEMENT CHARACTER}")
    for file in files:
        if file.shown_as == "picture":
            notes.append(f"picture: {shown(file.name)}, {file.media_type}, {file.size_bytes:,} bytes")
        elif file.shown_as == "name":
            notes.append(f"not shown: {shown(file.name)}, {file.media_type}, {file.size_bytes:,} bytes")
    notes += [f"left out: {_line(each)}" for each in result.artifacts_left_out]
    if session is not None and result.session_lost:
        notes.append(f"session {shown(session)} ended with this call: its variables and files are gone")
    elif session is not None and result.session_started:
        notes.append(
            f"session {shown(session)} is new: it holds what this call made, and nothing from before"
        )
    return notes

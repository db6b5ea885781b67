"""A confirmation as the text that a person reads before saying yes.

Everything in it that came from a model or a file is quoted so that it cannot pass for our own
words: arguments are JSON on one line each, every line of a preview has a bar in front, and what a
terminal or a form would act on or hide is written out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from mcp_tools.output.plain import encodable, to_json
from mcp_tools.output.visible import is_unseen
from mcp_tools.types import Confirmation

MAX_QUESTION_CHARS: Final = 8_000
MAX_VALUE_CHARS: Final = 300
"""Of one argument; longer ones show both ends, their length and a digest of the whole."""
MAX_ARGUMENTS: Final = 30
MAX_REASON_CHARS: Final = 500

_PLAIN: Final = re.compile(r"[ -~\n]*")


def visible(text: str, *, keep_newlines: bool = False) -> str:
    r"""Write out every character that would be acted on or not be seen, as `\u202e`."""
    text = encodable(text)
    if _PLAIN.fullmatch(text) and (keep_newlines or "\n" not in text):
        return text
    return "".join(_shown(char, keep_newlines) for char in text)


def question_text(question: Confirmation, *, asked_by: str, max_chars: int = MAX_QUESTION_CHARS) -> str:
    """Render a question.

    Args:
        question: What would run.
        asked_by: Who calls, as far as known: a client's own name and a principal.
        max_chars: Of the whole text. The preview gives way first, then the arguments.
    Returns:
        Text without control characters but newlines, at most `max_chars` long.
    """
    name = question.tool_name
    title = f" ({_cut(visible(question.title), 100)})" if question.title not in ("", name) else ""
    head = [
        f"Allow {_cut(visible(name), 100)}{title} to run?",
        "",
        f"Why you are asked: {_cut(visible(question.reason), MAX_REASON_CHARS)}",
        f"Asked by: {_cut(visible(asked_by), 200)}",
        "",
    ]
    tail = ["", f"A yes holds for exactly this call, once, for {question.expires_in_s:g} s."]
    room = max_chars - sum(len(line) + 1 for line in head + tail)
    arguments = _arguments(question.parameters, room * 2 // 3 if question.preview else room)
    room -= sum(len(line) + 1 for line in arguments)
    return "\n".join([*head, *arguments, *_preview(question.preview, room), *tail])[:max_chars]


def shortened(text: str, max_chars: int) -> str:
    """Show both ends of a long text, with its length and a digest, so that two can be told apart."""
    if len(text) <= max_chars:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    note = f" … ({len(text):,} characters, sha256 {digest}…) … "
    room = max(max_chars - len(note), 2)
    return text[: room * 2 // 3] + note + text[len(text) - room // 3 :]


def _arguments(parameters: Mapping[str, Any], room: int) -> list[str]:
    if not parameters:
        return ["It takes no arguments."]
    lines = ["Arguments:"]
    room -= len(lines[0]) + 1
    for index, (name, value) in enumerate(parameters.items()):
        left = len(parameters) - index
        # JSON has escaped the newlines, so that one argument is one line whatever it holds.
        line = f"  {visible(_cut(str(name), 100))}: {_value(value)}"
        if index >= MAX_ARGUMENTS or len(line) > room - 80:
            digest = hashlib.sha256(to_json(parameters).encode()).hexdigest()[:16]
            lines.append(f"  … and {left} more, not shown (sha256 of all: {digest}…)")
            break
        lines.append(line)
        room -= len(line) + 1
    return lines


def _value(value: Any) -> str:
    # The text is cut before it is escaped: an escape must not be torn, nor a digest be of escapes.
    if isinstance(value, str) and len(value) > MAX_VALUE_CHARS:
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        start, end = (visible(to_json(part)) for part in (value[:200], value[-60:]))
        return f"{start} … {end} ({len(value):,} characters, sha256 {digest}…)"
    return visible(shortened(to_json(value), MAX_VALUE_CHARS))


def _preview(text: str, room: int) -> list[str]:
    if not text:
        return []
    lines = ["", "What it would do:"]
    room -= sum(len(line) + 1 for line in lines)
    # Writing characters out only makes text longer, so what lies beyond `room` can never be shown.
    shown = [f"| {line}" for line in visible(text[: max(room, 0) + 1], keep_newlines=True).split("\n")]
    if len(text) <= room and sum(len(line) + 1 for line in shown) <= room:
        return lines + shown
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    note = f"(shortened: {text.count(chr(10)) + 1:,} lines in all, sha256 {digest}…)"
    room -= len(note) + 1
    for line in shown:
        piece = line if len(line) <= MAX_VALUE_CHARS else line[:MAX_VALUE_CHARS] + " …"
        if len(piece) + 1 > room:
            break
        lines.append(piece)
        room -= len(piece) + 1
    return [*lines, note]


def _shown(char: str, keep_newlines: bool) -> str:
    if char == "\n" and keep_newlines:
        return char
    if is_unseen(char):
        code = ord(char)
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return char


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"

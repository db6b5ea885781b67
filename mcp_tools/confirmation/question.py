"""A confirmation as the text that a person reads before saying yes.

Everything in it that came from a model or a file is quoted so that it cannot pass for our own
words: arguments are JSON on one line each, every line of a preview has a bar in front, and what a
terminal or a form would act on or hide is written out.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, NamedTuple

from mcp_tools.output.marks import MAX_BLANKS, OPENING, counted, marked, without_middle
from mcp_tools.output.plain import encodable, to_json
from mcp_tools.output.visible import is_unseen
from mcp_tools.types import Confirmation

MAX_QUESTION_CHARS: Final = 8_000
MAX_VALUE_CHARS: Final = 300
"""Of one argument where room is short; longer ones show both ends, their length and a digest."""
MAX_ARGUMENTS: Final = 30
MAX_REASON_CHARS: Final = 1_000

_MAX_NOTICE_CHARS: Final = 400
_VALUE_LIMITS: Final = (MAX_QUESTION_CHARS, 1_000, MAX_VALUE_CHARS)
_PLAIN: Final = re.compile(r"[ -~\n]*")
# JSON writes a newline as two characters; the indentation after one stays.
_LONG_RUN: Final = re.compile(rf"(?<=\\n) {{41,}}|(?<!\\n)(?<! ) {{{MAX_BLANKS + 1},}}")


def visible(text: str, *, keep_newlines: bool = False, keep_blanks: bool = True) -> str:
    r"""Write out every character that would be acted on or not be seen, as `\u202e`.

    Args:
        keep_blanks: Leave spaces other than the plain one (U+00A0, U+3000, …), which do not differ
            from it to the eye. Else more than 16 plain ones in a run are counted too: `⟦3,000 spaces⟧`.
    """
    text = encodable(text)
    if not keep_blanks:
        text = "".join(_shown(char, keep_newlines, keep_blanks) for char in text)
        return _LONG_RUN.sub(lambda run: counted(len(run.group())), text)
    if _PLAIN.fullmatch(text) and (keep_newlines or "\n" not in text):
        return text
    return "".join(_shown(char, keep_newlines, keep_blanks) for char in text)


class _Part(NamedTuple):
    """Lines of the question, and what of their subject they do not show, in words."""

    lines: list[str]
    missing: list[str]

    @property
    def size(self) -> int:
        return sum(len(line) + 1 for line in self.lines)


def question_text(question: Confirmation, *, asked_by: str, max_chars: int = MAX_QUESTION_CHARS) -> str:
    """Render a question.

    Args:
        question: What would run.
        asked_by: Who calls, as far as known: a principal, then in quotes what a client calls itself.
        max_chars: Of the whole text. Long arguments give way first, then the preview. Whatever is cut
            is named in the second line, before anything that came from a model.
    Returns:
        Text without control characters but newlines and tabs, at most `max_chars` long.
    """
    name = question.tool_name
    title = f" ({_cut(visible(question.title), 100)})" if question.title not in ("", name) else ""
    asked = f"Allow {_cut(visible(name), 100)}{title} to run?"
    reason = visible(question.reason)
    head = _Part(
        [
            "",
            f"Why you are asked: {without_middle(reason, MAX_REASON_CHARS)}",
            f"Asked by: {without_middle(visible(asked_by), 200)}",
            "",
        ],
        ["the reason is shortened"] if len(reason) > MAX_REASON_CHARS else [],
    )
    tail = _Part(["", f"A yes holds for exactly this call, once, for {question.expires_in_s:g} s."], [])
    room = max_chars - len(asked) - 1 - _MAX_NOTICE_CHARS - head.size - tail.size
    wanted = sum(len(line) + 3 for line in question.preview.split("\n")) + 30 if question.preview else 0
    arguments = _arguments(question, max(room - wanted, room // 3))
    preview = _preview(question, room - arguments.size)
    parts = (head, arguments, preview, tail)
    missing = [words for part in parts for words in part.missing]
    notice = (
        [_cut(f"Not everything is shown: {'; '.join(missing)}.", _MAX_NOTICE_CHARS - 1)] if missing else []
    )
    return "\n".join([asked, *notice, *(line for part in parts for line in part.lines)])[:max_chars]


def shortened(text: str, max_chars: int) -> str:
    """Show both ends of a long text, with its length and a digest, so that two can be told apart."""
    if len(text) <= max_chars:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    note = f" … ({len(text):,} characters, sha256 {digest}…) … "
    room = max(max_chars - len(note), 2)
    return text[: room * 2 // 3] + note + text[len(text) - room // 3 :]


def _arguments(question: Confirmation, room: int) -> _Part:
    if not question.parameters:
        return _Part(["It takes no arguments."], [])
    parts = (_arguments_within(question, limit, room) for limit in _VALUE_LIMITS)
    return next(
        (part for part in parts if part.size <= room and not part.missing), None
    ) or _arguments_within(question, MAX_VALUE_CHARS, room)


def _arguments_within(question: Confirmation, limit: int, room: int) -> _Part:
    lines, cut, missing = ["Arguments:"], [], []
    room -= len(lines[0]) + 1
    for index, (name, value) in enumerate(question.parameters.items()):
        written = visible(_cut(str(name), 100), keep_blanks=False)
        text, is_whole = _value(value, limit, is_below=name in question.shows)
        # JSON has escaped the newlines, so that one argument is one line whatever it holds.
        line = f"  {written}: {text}"
        if index >= MAX_ARGUMENTS or len(line) > room - 80:
            left = len(question.parameters) - index
            digest = hashlib.sha256(to_json(question.parameters).encode()).hexdigest()[:16]
            lines.append(f"  … and {left} more, not shown (sha256 of all: {digest}…)")
            missing.append(f"{left} of {len(question.parameters)} arguments are left out")
            break
        if not is_whole:
            cut.append(written)
        lines.append(line)
        room -= len(line) + 1
    if cut:
        names = f"argument {cut[0]} is" if len(cut) == 1 else f"{len(cut)} arguments are"
        missing.insert(0, f"{names} shortened")
    return _Part(lines, missing)


def _value(value: Any, limit: int, *, is_below: bool) -> tuple[str, bool]:
    """Return a value as text, and whether a person can see all of it, here or in the preview."""
    text = to_json(value)
    if len(text) <= MAX_VALUE_CHARS or (len(text) <= limit and not is_below):
        return visible(text, keep_blanks=False), True
    if is_below:
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f"({len(text):,} characters, sha256 {digest}…; what it changes is shown below)", True
    # The text is cut before it is escaped: an escape must not be torn, nor a digest be of escapes.
    if isinstance(value, str):
        value = encodable(value)
        digest = hashlib.sha256(value.encode()).hexdigest()[:16]
        start, end = (
            visible(to_json(part), keep_blanks=False)
            for part in (value[: limit * 2 // 3], value[-limit // 5 :])
        )
        return f"{start} … {end} ({len(value):,} characters, sha256 {digest}…)", False
    return visible(shortened(text, limit), keep_blanks=False), False


def _preview(question: Confirmation, room: int) -> _Part:
    if not question.preview:
        return _Part([], [])
    title = ["", "What it would do:"]
    missing = [f"the change lacks {visible(question.left_out)}"] if question.left_out else []
    room -= sum(len(line) + 1 for line in title)
    lines = question.preview.split("\n")
    if len(question.preview) <= room:
        whole = _Part([_barred(line) for line in lines], missing)
        if whole.size <= room:
            return _Part(title + whole.lines, missing)
    digest = hashlib.sha256(question.preview.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    note = f"({{:,}} of {len(lines):,} lines are not shown here; sha256 of all: {digest}…)"
    room -= len(note) + 20
    top: list[str] = []
    bottom: list[str] = []
    while len(top) + len(bottom) < len(lines):
        # Twice as many of the first lines as of the last.
        is_top = len(top) <= 2 * len(bottom)
        line = lines[len(top)] if is_top else lines[-1 - len(bottom)]
        row = _barred(without_middle(line, MAX_VALUE_CHARS))
        room -= len(row) + 1
        if room < 0:
            break
        (top if is_top else bottom).append(row)
    gap = len(lines) - len(top) - len(bottom)
    missing.append("what it would do is shortened")
    return _Part([*title, *top, *([note.format(gap)] if gap else []), *reversed(bottom)], missing)


def _barred(line: str) -> str:
    # A tool has marked what its files hold before, with notes of its own.
    return "| " + encodable(marked(line, own_notes=True))


def _shown(char: str, keep_newlines: bool, keep_blanks: bool) -> str:
    if char == "\n" and keep_newlines:
        return char
    if is_unseen(char) or (not keep_blanks and char != " " and (char.isspace() or char == OPENING)):
        code = ord(char)
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return char


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"

"""Pages of kept outputs, and their lines that match."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any, Final

import anyio.to_thread
from pydantic import Field

from mcp_tools.builtin.output.lines import Find, literal_finder, matching_lines, regex_finder
from mcp_tools.errors import ToolError
from mcp_tools.output.pieces import KeptPage
from mcp_tools.output.preview import line_before
from mcp_tools.output.room import Room
from mcp_tools.output.shrink import as_json
from mcp_tools.output.store import Kept, NoSuchOutput, OutputStore
from mcp_tools.output.tokens import estimate_tokens
from mcp_tools.types import CallContext, TextContent

MAX_PATTERN_CHARS: Final = 1_000
SEARCH_S: Final = 8.0

_LINE_SHARE: Final = 0.25
"""Of a page, at most this much is given up so that it ends with a whole line."""
_NOTE_CHARS: Final = 250
_DATA_CHARS: Final = 250
_TRIES: Final = 60

PAGE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "text": {
            "type": "string",
            "description": "The page; with a pattern, `offset: line` of each line found.",
        },
        "offset": {"type": "integer", "description": "Where it begins, in characters."},
        "next_offset": {"type": ["integer", "null"], "description": "Where to go on; null at the end."},
        "total_chars": {"type": "integer"},
        "lines_found": {"type": ["integer", "null"], "description": "With a pattern: lines on this page."},
    },
    "required": ["text", "offset", "next_offset", "total_chars", "lines_found"],
}


class OutputReader:
    """The tool over one store.

    Args:
        room: What one result for a caller may have.
    """

    def __init__(self, store: OutputStore, room: Callable[[CallContext], Room]) -> None:
        self._store = store
        self._room = room

    async def read_output(
        self,
        output_id: Annotated[str, Field(max_length=100)],
        offset: Annotated[int, Field(ge=0)] = 0,
        limit: Annotated[int | None, Field(ge=1)] = None,
        pattern: Annotated[str | None, Field(min_length=1, max_length=MAX_PATTERN_CHARS)] = None,
        regex: bool = False,
        ignoreCase: bool = False,  # noqa: N803
        *,
        context: CallContext,
    ) -> KeptPage:
        """Read a result of an earlier call that was too large to be sent whole.

        A page is as large as one result may be; go on with its next_offset until that is null. Outputs are
        kept for a while only, and for nobody else. Cannot read files (use the file tools).

        Args:
            output_id: From the shortened result.
            offset: The first character to return; they count from 0.
            limit: How many characters at most; with a pattern, how many lines.
            pattern: Return only lines that contain this text, each with its offset. A line of over a million
                characters is searched in parts.
            regex: Take the pattern as a Python regular expression.
            ignoreCase: Let upper and lower case be the same.
        """

        def read() -> KeptPage:
            try:
                kept = self._store.find(output_id, context.principal)
                if offset > kept.total_chars:
                    raise ToolError(
                        f"offset {offset:,} is beyond the end: there are {kept.total_chars:,} characters"
                    )
                if pattern is None:
                    return self._page(kept, offset, limit, context)
                with ExitStack() as stack:
                    if regex:
                        find = regex_finder(stack, pattern, ignore_case=ignoreCase)
                    else:
                        find = literal_finder(pattern, ignore_case=ignoreCase)
                    return self._lines(kept, offset, limit, find, context)
            except NoSuchOutput:
                minutes = max(1, round(self._store.ttl_s / 60))
                raise ToolError(
                    f"there is no output {output_id!r} for you. Outputs are kept for {minutes:,} minutes at "
                    "most, and large ones make room for others; call the tool again that made it"
                ) from None

        return await anyio.to_thread.run_sync(read, abandon_on_cancel=True)

    def _page(self, kept: Kept, offset: int, limit: int | None, context: CallContext) -> KeptPage:
        room = self._room(context)
        most = room.max_chars - _NOTE_CHARS
        text = self._store.page(
            kept.id, context.principal, offset, most if limit is None else min(limit, most)
        )
        count = _that_fit(text, room)
        is_end = offset + len(text) >= kept.total_chars and count == len(text)
        if not is_end and (limit is None or count < limit):
            # One character at least, or nobody would ever get on.
            count = line_before(text, count, give_up=int(count * _LINE_SHARE)) or count or 1
        text = text[:count]
        end = offset + len(text)
        following = f"next: offset={end}" if end < kept.total_chars else "this is the end"
        note = f"[characters {offset:,} to {end:,} of {kept.total_chars:,}; {following}]"
        return _answer(text, note, kept, offset, end, None)

    def _lines(
        self, kept: Kept, offset: int, limit: int | None, find: Find, context: CallContext
    ) -> KeptPage:
        room = self._room(context)
        shown: list[str] = []
        chars = 0
        end, is_in_time = kept.total_chars, True
        pieces = self._store.pieces(kept.id, context.principal, offset)
        for line in matching_lines(pieces, find, offset, SEARCH_S, context.cancelled.is_set):
            if line.text is None:
                end, is_in_time = line.offset, False
                break
            text = f"{line.offset}: {line.text}"
            chars += len(text) + 1
            if len(shown) == limit or chars > room.max_chars - _NOTE_CHARS:
                end = line.offset
                break
            shown.append(text)
        count = _lines_that_fit(shown, room)
        if count < len(shown):
            end = int(shown[count].partition(":")[0])
            shown = shown[:count]
        following = f"next: offset={end}" if end < kept.total_chars else "searched to the end"
        if not is_in_time:
            following += f"; not searched further in {SEARCH_S:g} s"
        note = f"[{len(shown):,} lines found from {offset:,} to {end:,} of {kept.total_chars:,}; {following}]"
        return _answer("\n".join(shown), note, kept, offset, end, len(shown))


def _answer(text: str, note: str, kept: Kept, offset: int, end: int, found: int | None) -> KeptPage:
    return KeptPage(
        content=[TextContent(text=text), TextContent(text=note)],
        structured={
            "text": text,
            "offset": offset,
            "next_offset": end if end < kept.total_chars else None,
            "total_chars": kept.total_chars,
            "lines_found": found,
        },
    )


def _that_fit(text: str, room: Room) -> int:
    """Return how many characters of `text` are within the room, as text and as JSON."""
    count = len(text)
    for _ in range(_TRIES):
        excess = _excess(text[:count], room)
        if excess <= 1 or count <= 1:
            break
        count = max(1, min(count - 1, int(count / excess * 0.97)))
    return count


def _lines_that_fit(lines: list[str], room: Room) -> int:
    count = len(lines)
    for _ in range(_TRIES):
        excess = _excess("\n".join(lines[:count]), room)
        if excess <= 1 or count <= 1:
            break
        count = max(1, min(count - 1, int(count / excess * 0.97)))
    return count


def _excess(text: str, room: Room) -> float:
    encoded = as_json(text)
    chars = max(len(text) + _NOTE_CHARS, len(encoded) + _DATA_CHARS)
    tokens = max(estimate_tokens(text), estimate_tokens(encoded)) + _DATA_CHARS // 3
    return max(chars / room.max_chars, tokens / room.max_tokens)

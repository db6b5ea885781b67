"""One result on its way to being small enough. Nothing here waits but for the disk."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mcp_tools.output.pieces import IMAGE_TOKENS, Fitted, KeptPage, chars_of, fit_pieces, seen, tokens_of
from mcp_tools.output.plain import encodable, to_plain
from mcp_tools.output.room import Room
from mcp_tools.output.secrets import mask_text, mask_value
from mcp_tools.output.shrink import as_json, shrink
from mcp_tools.output.store import Kept, OutputStore
from mcp_tools.output.tokens import estimate_tokens
from mcp_tools.output.whole import keep_whole
from mcp_tools.types import (
    CallContext,
    Content,
    ErrorCode,
    ExecutionResult,
    ExecutionStatus,
    MediaContent,
    ResourceLink,
    TextContent,
    Tool,
    ToolOutput,
)

NOTICE_KEY: Final = "_notice"
"""Under it a changed object says so, where its schema allows another entry."""
NOTE_CHARS: Final = 650
NOTE_TOKENS: Final = 220
"""Kept free for what we say ourselves."""

MAX_ERROR_CHARS: Final = 9_500
"""Clients cut error texts near 11,000 characters without saying so."""

_MAX_LEFT_OUT_CHARS: Final = 220
_MAX_MEDIA_TYPE_CHARS: Final = 100
_CHECKED_CHARS: Final = 65_536
_MAX_PROBLEMS: Final = 50
_OPEN_SCHEMA: Final = frozenset(
    {"type", "properties", "required", "title", "description", "$defs", "$schema"}
)
"""An object's schema of nothing else takes any other entry, without asking."""
_MCP_TRANSPORTS: Final = frozenset({"stdio", "sse", "http"})


class _NoValidForm(Exception):
    """What would have to be changed is what the output schema insists on; the text says so."""


@dataclass(slots=True, kw_only=True)
class _Data:
    """The structured half: plain data and its JSON text."""

    value: Any
    text: str
    left_out: str = ""


class Fitting:
    """Fits one result into a room; see `OutputBudget`, of which it has the settings."""

    def __init__(
        self,
        result: ExecutionResult,
        tool: Tool,
        context: CallContext,
        *,
        room: Room,
        store: OutputStore | None,
        masks: bool,
        links: bool,
    ) -> None:
        self._result = result
        self._tool = tool
        self._principal = context.principal
        self._is_mcp = context.transport in _MCP_TRANSPORTS
        self._room = room
        self._store = store
        self._masks = masks
        self._links = links
        self._masked = 0
        self._kept: Kept | None = None
        self._how = ""

    def run(self) -> tuple[ExecutionResult, int]:
        """Return the result that fits, and about how many tokens it is."""
        result, value = self._result, self._result.result
        if not result.is_success:
            return self._failed(result, result.error or "")
        if isinstance(value, KeptPage):  # already masked, and made to fit
            return result, tokens_of(value.content)
        structured = result.structured
        pieces: list[Content] = []
        if isinstance(value, ToolOutput):
            pieces = list(value.content)
            if structured is None and value.structured is not None:
                structured = to_plain(value.structured)
        elif isinstance(value, str) and structured is None:
            pieces = [TextContent(text=str.__str__(value))]
        elif structured is None:
            structured = to_plain(value)
        pieces = [self._clean(piece) for piece in pieces]
        has_data = structured is not None or not (pieces or isinstance(value, ToolOutput))
        try:
            data = self._masked_data(structured) if has_data else None
            return self._fit(pieces, data)
        except _NoValidForm as error:
            failed = replace(
                result,
                status=ExecutionStatus.ERROR,
                error_code=ErrorCode.TOOL_ERROR,
                result=None,
                structured=None,
            )
            return self._failed(failed, f"{self._tool.name} ran, but {error}. {self._how}".rstrip())

    # --- both halves ----------------------------------------------------------------------------

    def _fit(self, pieces: list[Content], data: _Data | None) -> tuple[ExecutionResult, int]:
        """Fit texts and data, of which clients show the model one or the other."""
        has_text = any(isinstance(piece, TextContent) for piece in pieces)
        room, note = self._room, self._note_of_secrets()
        shown = pieces if has_text or data is None else [TextContent(text=data.text), *pieces]
        tokens = self._tokens_if_within(shown, data, room, len(note))
        if tokens is not None:
            if not self._masked:
                return self._result, tokens
            return self._composed(pieces, data, has_text, "")

        sent, held_back = self._without_large_media(pieces)
        self._keep(sent, held_back, data)
        text_room = (room.max_chars - NOTE_CHARS, room.max_tokens - NOTE_TOKENS)
        if has_text or data is None:
            fitted = fit_pieces(sent, max_chars=text_room[0], max_tokens=text_room[1])
        else:
            # Links and the like, beside the data that stands in for the text.
            fitted = fit_pieces(sent, max_chars=room.max_chars // 4, max_tokens=room.max_tokens // 4)
            beside = [TextContent(text=seen(piece)) for piece in fitted.pieces]
            text_room = (text_room[0] - chars_of(beside), text_room[1] - tokens_of(beside))
        data_left_out = ""
        if data is not None:
            smaller = self._smaller(data, *text_room)
            if smaller is None:  # no schema, and no way to cut it that leaves data
                whole = TextContent(text=data.text)
                as_text = fit_pieces([whole], max_chars=text_room[0], max_tokens=text_room[1])
                fitted = Fitted(pieces=[*fitted.pieces, *([] if has_text else as_text.pieces)])
                data_left_out, has_text = as_text.left_out, True
            else:
                data_left_out = smaller.left_out
            data = smaller
        said = [fitted.left_out, data_left_out]
        if held_back:
            said.append(f"{len(held_back):,} pictures or sounds are too large")
        left_out = encodable("; ".join(filter(None, said)))[:_MAX_LEFT_OUT_CHARS]
        return self._composed(list(fitted.pieces), data, has_text, f"shortened: {left_out}. {self._how}")

    def _composed(
        self, pieces: list[Content], data: _Data | None, has_text: bool, note: str
    ) -> tuple[ExecutionResult, int]:
        """Put together what goes out, and say what was done to it."""
        note = f"[{note}]" if note else ""
        note = " ".join(filter(None, (note, self._note_of_secrets())))
        result = self._result
        value = None if data is None else self._noted(data, note)
        output_id = None if self._kept is None else self._kept.id
        result = replace(
            result,
            structured=value if result.structured is not None else None,
            output_id=output_id or result.output_id,
        )
        shown = pieces if has_text or data is None else [TextContent(text=data.text), *pieces]
        tokens = _tokens([*shown, TextContent(text=note)], data)
        is_object = isinstance(value, dict) and (NOTICE_KEY in value or not note)
        if not self._is_mcp and isinstance(result.result, str) and data is None:
            text = "".join(seen(piece) for piece in pieces)
            return replace(result, result=f"{text}\n\n{note}"), tokens
        if not self._is_mcp and is_object and not isinstance(result.result, ToolOutput):
            return replace(result, result=value), tokens
        content = [*shown, TextContent(text=note)]
        if self._is_mcp and self._links and self._kept is not None:
            content.append(_link(self._kept, self._tool))
        structured = value if isinstance(value, dict) else None
        return replace(result, result=ToolOutput(content=content, structured=structured)), tokens

    def _tokens_if_within(
        self, shown: Sequence[Content], data: _Data | None, room: Room, note_chars: int
    ) -> int | None:
        """Return the tokens of what fits as it is, or None where it does not."""
        media_bytes = sum(len(piece.data) for piece in shown if isinstance(piece, MediaContent))
        chars = max(chars_of(shown) + note_chars, 0 if data is None else len(data.text) + note_chars)
        # The cheap question first: of a hundred megabytes nobody wants to know the tokens.
        if chars > room.max_chars + 1 or media_bytes > room.max_media_bytes:
            return None
        # A text is kept as it is, so that `_tokens` knows it again.
        texts = [p if isinstance(p, TextContent) else TextContent(text=seen(p)) for p in shown]
        tokens = _tokens(texts, data)
        if tokens + (note_chars and NOTE_TOKENS // 4) > room.max_tokens:
            return None
        return tokens + IMAGE_TOKENS * sum(isinstance(piece, MediaContent) for piece in shown)

    # --- parts of that ----------------------------------------------------------------------------

    def _clean(self, piece: Content) -> Content:
        match piece:
            case TextContent():
                text = _sendable(piece.text)
                if self._masks:
                    text, count = mask_text(text)
                    self._masked += count
                return TextContent(text=text)
            case ResourceLink():
                return replace(piece, uri=encodable(piece.uri), name=encodable(piece.name))
            case MediaContent():
                return replace(piece, media_type=encodable(piece.media_type))

    def _masked_data(self, value: Any) -> _Data:
        if not self._masks:
            return _Data(value=value, text=as_json(value))
        masked, count = mask_value(value)
        if count and self._problems(masked):
            masked, count = mask_value(value, keep_shape=True)
            if self._problems(masked):
                raise _NoValidForm(
                    "its result holds what looks like a secret, which its output schema leaves no way to mask"
                )
        self._masked += count
        return _Data(value=masked, text=as_json(masked))

    def _smaller(self, data: _Data, max_chars: int, max_tokens: int) -> _Data | None:
        """Return as much of the data as fits, or None where there is no schema and none of it does."""
        if len(data.text) <= max_chars and estimate_tokens(data.text) <= max_tokens:
            return data
        has_schema = self._tool.output_schema is not None
        shrunk = None
        if max_chars > 0 and max_tokens > 0:
            validate = self._problems if has_schema else None
            shrunk = shrink(data.value, max_chars=max_chars, max_tokens=max_tokens, validate=validate)
        if shrunk is not None:
            return _Data(value=shrunk.value, text=shrunk.text, left_out=shrunk.left_out)
        if has_schema:
            raise _NoValidForm(
                f"its result is too large ({len(data.text):,} characters of JSON) and its output schema "
                "leaves no way to shorten it"
            )
        return None

    def _problems(self, value: Any) -> list[Any]:
        if self._tool.output_schema is None:
            return []
        from mcp_tools.validation import json_schema_validator

        validator = json_schema_validator(self._tool.output_schema)
        return list(itertools.islice(validator.iter_errors(value), _MAX_PROBLEMS))

    def _noted(self, data: _Data, note: str) -> Any:
        """Return the data with the note in it, if it is an object that may have one more entry."""
        if (
            not isinstance(data.value, dict)
            or NOTICE_KEY in data.value
            or not (data.left_out or self._masked)
        ):
            return data.value
        noted = {**data.value, NOTICE_KEY: note}
        is_open = set(self._tool.output_schema or ()) <= _OPEN_SCHEMA
        return noted if is_open or not self._problems(noted) else data.value

    def _without_large_media(self, pieces: list[Content]) -> tuple[list[Content], list[MediaContent]]:
        sent: list[Content] = []
        held_back: list[MediaContent] = []
        left_bytes = self._room.max_media_bytes
        for piece in pieces:
            if isinstance(piece, MediaContent):
                if len(piece.data) > left_bytes:
                    held_back.append(piece)
                    sent.append(TextContent(text=f"{seen(piece)} is too large to be shown"))
                    continue
                left_bytes -= len(piece.data)
                piece = replace(piece, media_type=piece.media_type[:_MAX_MEDIA_TYPE_CHARS])  # noqa: PLW2901
            sent.append(piece)
        return sent, held_back

    def _note_of_secrets(self) -> str:
        what = "secret was" if self._masked == 1 else "secrets were"
        return f"[{self._masked:,} {what} removed, by their looks]" if self._masked else ""

    def _failed(self, result: ExecutionResult, text: str) -> tuple[ExecutionResult, int]:
        text = encodable(text)
        if self._masks:
            text, count = mask_text(text)
            self._masked += count
        max_chars = min(self._room.max_chars, MAX_ERROR_CHARS)
        pieces: list[Content] = [TextContent(text=text)]
        if len(text) > max_chars or estimate_tokens(text) > self._room.max_tokens:
            self._keep(pieces, [], None)
            fitted = fit_pieces(
                pieces, max_chars=max_chars - NOTE_CHARS, max_tokens=self._room.max_tokens - NOTE_TOKENS
            )
            text = f"{seen(fitted.pieces[0])} [shortened: {fitted.left_out}. {self._how}]"
        output_id = result.output_id if self._kept is None else self._kept.id
        return replace(result, error=text, output_id=output_id), estimate_tokens(text)

    def _keep(self, pieces: Sequence[Content], held_back: Sequence[MediaContent], data: _Data | None) -> None:
        """Keep the whole, and find the words for how it can be read."""
        text = None if data is None else data.text
        self._kept, self._how = keep_whole(self._store, self._principal, pieces, held_back, text)


def _sendable(text: str) -> str:
    """`encodable`, without a second copy of a text that is fine."""
    if text.isascii():
        return text
    for start in range(0, len(text), _CHECKED_CHARS):
        part = text[start : start + _CHECKED_CHARS]
        if encodable(part) is not part:
            return encodable(text)
    return text


def _tokens(pieces: Sequence[Content], data: _Data | None) -> int:
    tokens = tokens_of(pieces)
    if data is None or any(isinstance(piece, TextContent) and piece.text is data.text for piece in pieces):
        return tokens
    return max(tokens, estimate_tokens(data.text))


def _link(kept: Kept, tool: Tool) -> ResourceLink:
    return ResourceLink(uri=kept.uri, name=f"whole result of {tool.name}", media_type="text/plain")

"""What became of a call → what MCP sends: always encodable, always bounded, always complete in itself.

Clients differ in which half of a result they show the model, so the text and the structured content
each hold the whole.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import mcp_types as types
from pydantic_core import to_json

from mcp_tools.output.plain import encodable, to_plain
from mcp_tools.types import (
    Content,
    ExecutionResult,
    MediaContent,
    ResourceLink,
    TextContent,
    Tool,
    ToolOutput,
)

MAX_TEXT_CHARS: Final = 1_000_000
"""Of one text, and of the structured content as JSON."""
MAX_ERROR_CHARS: Final = 10_000
"""Clients cut error texts near 11,000 characters without saying so."""
MAX_MEDIA_BYTES: Final = 16 * 1024 * 1024
MAX_BLOCKS: Final = 1_000

_SHORTER_STRINGS: Final = (100_000, 10_000, 1_000, 100)


def wire_tool(tool: Tool) -> types.Tool:
    """Describe a tool for `tools/list`, with all four annotations."""
    hints = tool.annotations
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.parameters,
        output_schema=tool.output_schema,
        annotations=types.ToolAnnotations(
            title=tool.title,
            read_only_hint=hints.read_only_hint,
            destructive_hint=hints.destructive_hint,
            idempotent_hint=hints.idempotent_hint,
            open_world_hint=hints.open_world_hint,
        ),
    )


def wire_result(result: ExecutionResult, output_schema: Mapping[str, Any] | None) -> types.CallToolResult:
    """Render one result.

    Args:
        result: How the call ended; a failure becomes `isError` with text for the model.
        output_schema: The tool's, if it has one: then structured content is promised.
    Returns:
        At most 1,000,000 characters in each text and in the structured content; what was cut is said.
    """
    if not result.is_success:
        return error_result(result.to_observation())
    value = result.result
    if isinstance(value, ToolOutput):
        return _from_output(value, result.structured, output_schema)
    if result.structured is not None:
        return _from_data(result.structured, output_schema)
    if isinstance(value, str):
        return types.CallToolResult(content=[_text(value)])
    return _from_data(to_plain(value), output_schema)


def error_result(text: str) -> types.CallToolResult:
    """Make a tool error: something the model can act on."""
    return types.CallToolResult(content=[_text(text, MAX_ERROR_CHARS)], is_error=True)


def _from_data(plain: Any, output_schema: Mapping[str, Any] | None) -> types.CallToolResult:
    structured = plain if isinstance(plain, dict) else None
    if structured is None and "result" in (output_schema or {}).get("properties", {}):
        structured = {"result": plain}
    text = _json(plain)
    if len(text) <= MAX_TEXT_CHARS:
        return types.CallToolResult(content=[_text(text)], structured_content=structured)
    fitting = None if structured is None else _fit(structured)
    if fitting is None and output_schema is not None:
        return _too_large(len(text))
    # Cut JSON is not JSON, so the text is the shortened data where there is one.
    shown = text if fitting is None else f"{_json(fitting)}\n{_notice(len(text))}"
    return types.CallToolResult(content=[_text(shown)], structured_content=fitting)


def _from_output(
    output: ToolOutput, shaped: Any, output_schema: Mapping[str, Any] | None
) -> types.CallToolResult:
    blocks: list[types.ContentBlock] = []
    structured = shaped
    if structured is None and output.structured is not None:
        structured = to_plain(output.structured)
    if structured is not None:
        fitting = _from_data(structured, output_schema)
        if fitting.is_error:
            return fitting
        structured = fitting.structured_content
        if not any(isinstance(piece, TextContent) for piece in output.content):
            blocks.extend(fitting.content)
    pieces = list(output.content)
    blocks.extend(_block(piece, index) for index, piece in enumerate(pieces[:MAX_BLOCKS]))
    if len(pieces) > MAX_BLOCKS:
        blocks.append(_text(f"[{len(pieces) - MAX_BLOCKS:,} more pieces were left out]"))
    return types.CallToolResult(content=blocks, structured_content=structured)


def _block(piece: Content, index: int) -> types.ContentBlock:
    match piece:
        case TextContent():
            return _text(piece.text)
        case ResourceLink():
            return types.ResourceLink(
                uri=encodable(piece.uri),
                name=encodable(piece.name),
                description=None if piece.description is None else encodable(piece.description),
                mime_type=piece.media_type,
                size=piece.size_bytes,
            )
        case MediaContent():
            return _media(piece, index)


def _media(piece: MediaContent, index: int) -> types.ContentBlock:
    media_type = encodable(piece.media_type)
    if len(piece.data) > MAX_MEDIA_BYTES:
        return _text(f"[{media_type} of {len(piece.data):,} bytes left out: over {MAX_MEDIA_BYTES:,} bytes]")
    data = base64.b64encode(piece.data).decode()
    kind = media_type.partition("/")[0]
    if kind == "image":
        return types.ImageContent(data=data, mime_type=media_type)
    if kind == "audio":
        return types.AudioContent(data=data, mime_type=media_type)
    contents = types.BlobResourceContents(uri=f"attachment:{index}", mime_type=media_type, blob=data)
    return types.EmbeddedResource(resource=contents)


def _text(text: str, max_chars: int = MAX_TEXT_CHARS) -> types.TextContent:
    if len(text) > max_chars:
        # The notice comes at the end, where the cut is.
        text = f"{text[: max_chars - 200]}\n{_notice(len(text))}"
    return types.TextContent(text=encodable(text))


def _notice(chars: int) -> str:
    return f"[shortened: the whole was {chars:,} characters; ask for less at a time]"


def _too_large(chars: int) -> types.CallToolResult:
    return error_result(
        f"Error (error): the result was {chars:,} characters of JSON, over the {MAX_TEXT_CHARS:,} that are "
        "sent; the tool ran. Ask for less at a time."
    )


def _fit(plain: dict[str, Any]) -> dict[str, Any] | None:
    """Return the data with its strings shortened until it fits, or None where that is not enough."""
    *longer, shortest = _SHORTER_STRINGS
    least = _shorten_strings(plain, shortest)
    # First, so that what cannot fit is not walked time and again.
    if not _fits(least):
        return None
    for max_chars in longer:
        shorter = _shorten_strings(plain, max_chars)
        if _fits(shorter):
            return dict(shorter)
    return dict(least)


def _fits(plain: Any) -> bool:
    # With room for the notice that goes under the text.
    return len(_json(plain)) <= MAX_TEXT_CHARS - 200


def _shorten_strings(plain: Any, max_chars: int) -> Any:
    match plain:
        case str() if len(plain) > max_chars:
            return f"{plain[:max_chars]} [shortened: the whole was {len(plain):,} characters]"
        case dict():
            return {key: _shorten_strings(item, max_chars) for key, item in plain.items()}
        case list():
            return [_shorten_strings(item, max_chars) for item in plain]
    return plain


def _json(plain: Any) -> str:
    # Not the standard library: with an indent it takes a path that is ten times slower.
    return to_json(plain, indent=2).decode()

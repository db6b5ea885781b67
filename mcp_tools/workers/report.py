"""What a function returned or raised, as JSON data. Runs in workers and inside the sandbox.

Needs the standard library and the words of this package only: a sandbox has nothing else.
"""

from __future__ import annotations

import base64
import math
import traceback
from typing import Any, Final

from mcp_tools.errors import ToolError
from mcp_tools.output.plain import safe_str, to_plain
from mcp_tools.types import Content, MediaContent, ResourceLink, TextContent, ToolOutput

MAX_ERROR_CHARS: Final = 20_000
MAX_NAME_CHARS: Final = 200


def returned(value: Any) -> dict[str, Any]:
    """Return the message of a result; see `to_plain` for what becomes of odd values."""
    if not isinstance(value, ToolOutput):
        return {"kind": "returned", "value": to_plain(value)}
    structured = None if value.structured is None else to_plain(value.structured)
    pieces = [_piece(piece) for piece in value.content]
    return {"kind": "returned", "content": pieces, "structured": structured}


def raised(error: BaseException) -> dict[str, Any]:
    """Return the message of an exception."""
    message: dict[str, Any] = {
        "kind": "raised",
        "type": type(error).__name__[:MAX_NAME_CHARS],
        "text": safe_str(error)[:MAX_ERROR_CHARS],
        "traceback": _trace(error),
    }
    if isinstance(error, ToolError):
        seconds = error.retry_after_s
        is_finite = isinstance(seconds, int | float) and math.isfinite(seconds)
        message["tool_error"] = {
            "is_passing": bool(error.is_passing),
            "retry_after_s": seconds if is_finite else None,
        }
    return message


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))[-MAX_ERROR_CHARS:]
    except Exception:  # an exception of the tool's own may raise while it is printed
        return ""


def _piece(piece: Content) -> dict[str, Any]:
    match piece:
        case TextContent():
            return {"text": safe_str(piece.text)}
        case MediaContent():
            encoded = base64.b64encode(piece.data).decode()
            return {"data": encoded, "media_type": safe_str(piece.media_type)}
        case ResourceLink():
            return {
                "uri": safe_str(piece.uri),
                "name": safe_str(piece.name),
                "description": to_plain(piece.description),
                "media_type": to_plain(piece.media_type),
                "size_bytes": to_plain(piece.size_bytes),
            }
    raise TypeError(f"content holds a {type(piece).__name__}, which is no piece of a result")

"""What a function returned or raised, read in the server from what report.py wrote elsewhere."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

from mcp_tools.calling import Raised, Returned
from mcp_tools.errors import ToolError
from mcp_tools.types import Content, MediaContent, ResourceLink, TextContent, ToolOutput
from mcp_tools.workers.report import MAX_NAME_CHARS

_NAME: Final = re.compile(r"[^\W\d]\w*\Z")


class WorkerFailed(Exception):
    """The function did not come to an end of its own: its worker could not start, or ended under it.

    Whether it had an effect before that is not known.
    """


class WorkersClosed(Exception):
    """The tool's workers were closed: the server is ending. Nothing was run, or what ran was ended."""


class FunctionRaised(Exception):
    """What a function raised in a worker. Each is of a subclass with the original type's name; the
    original traceback is a note.
    """

    @classmethod
    def of(cls, type_name: str, text: str, trace: str) -> FunctionRaised:
        """Return an exception whose type has this name and whose text is this."""
        name = type_name if _NAME.match(type_name) else "Exception"
        error: FunctionRaised = type(name[:MAX_NAME_CHARS], (cls,), {"__module__": __name__})(text)
        if trace:
            error.add_note(f"in the worker:\n{trace}")
        return error


def outcome_of(message: dict[str, Any]) -> Returned | Raised:
    """Read what `returned` or `raised` wrote. Nothing in it is trusted to be what they write."""
    try:
        match message:
            case {"kind": "returned", "content": [*pieces]}:
                structured = message.get("structured")
                return Returned(
                    ToolOutput(
                        content=[_content(piece) for piece in pieces],
                        structured=structured if isinstance(structured, dict) else None,
                    )
                )
            case {"kind": "returned", "value": value}:
                return Returned(value)
            case {"kind": "raised", "type": str(name), "text": str(text)}:
                return Raised(_error(name, text, message))
    except (KeyError, TypeError, ValueError, binascii.Error):
        pass
    return Raised(WorkerFailed("what came from the worker is no result; nothing is known of this call"))


def _error(name: str, text: str, message: dict[str, Any]) -> Exception:
    trace = str(message.get("traceback", ""))
    match message.get("tool_error"):
        case {"is_passing": bool(is_passing), "retry_after_s": None | int() | float() as seconds}:
            error = ToolError(text, is_passing=is_passing, retry_after_s=seconds)
            error.add_note(f"in the worker:\n{trace}")
            return error
    return FunctionRaised.of(name, text, trace)


def _content(piece: Any) -> Content:
    match piece:
        case {"text": str(text)}:
            return TextContent(text=text)
        case {"data": str(data), "media_type": str(media_type)}:
            return MediaContent(data=base64.b64decode(data, validate=True), media_type=media_type)
        case {"uri": str(uri), "name": str(name)}:
            description, media_type, size = (
                piece.get(key) for key in ("description", "media_type", "size_bytes")
            )
            return ResourceLink(
                uri=uri,
                name=name,
                description=description if isinstance(description, str) else None,
                media_type=media_type if isinstance(media_type, str) else None,
                size_bytes=size if isinstance(size, int) else None,
            )
    raise ValueError("no piece of content")

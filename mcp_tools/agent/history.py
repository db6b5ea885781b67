"""Pictures of results in a history: as many as a request takes, and none that the provider has refused."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from mcp_tools.agent.failures import PICTURE_CODES, Told
from mcp_tools.agent.pictures import line_for
from mcp_tools.agent.types import Message

MAX_REQUEST_CHARS: Final = 20 * 1024**2
"""Of all pictures of results in base64; the Messages API takes 32 MB with everything else."""
LEAST_CHARS: Final = MAX_REQUEST_CHARS // 80
"""So much each of them counts, so that there are 80 at most: a request may hold 100."""
_STEP_CHARS: Final = MAX_REQUEST_CHARS // 2
_TOO_MANY: Final = "the request holds later pictures, and as many as it can"
_REFUSED: Final = "the provider refused a request with it"
_REFUSALS: Final = frozenset({400, 413})

Ask = Callable[[list[Message]], Awaitable[dict[str, Any]]]


class SentPictures:
    """Decides which pictures of results a request holds. The history itself keeps them all."""

    def __init__(self) -> None:
        self._refused: set[int] = set()

    async def asked(self, messages: Sequence[Message], ask: Ask) -> dict[str, Any]:
        """Ask with the pictures that can be sent; where the provider refuses that, once more without any.

        Which one it refused it does not say in words that can be relied on.
        """
        sent = self._within_bounds(messages)
        try:
            return await ask(sent)
        except Exception as error:
            pictures = _pictures_of(sent)
            if isinstance(error, Told):
                is_refusal = error.body["type"] in PICTURE_CODES
            else:
                is_refusal = getattr(error, "status_code", None) in _REFUSALS
            if not pictures or not is_refusal:
                raise
        answer = await ask([_changed(message, lambda part: _as_line(part, _REFUSED)) for message in sent])
        self._refused.update(map(hash, pictures))
        return answer

    def _within_bounds(self, messages: Sequence[Message]) -> list[Message]:
        pictures = [data for data in _pictures_of(messages) if hash(data) not in self._refused]
        over = sum(map(_weight, pictures)) - MAX_REQUEST_CHARS
        if over <= 0 and not self._refused:
            return list(messages)
        # Left out in steps: what stands before must not change each turn, for the provider's cache.
        left_out = math.ceil(max(0, over) / _STEP_CHARS) * _STEP_CHARS
        so_far = 0

        def change(part: Any) -> Any:
            nonlocal so_far
            data = _data_of(part)
            if data is None:
                return part
            if hash(data) in self._refused:
                return _as_line(part, _REFUSED)
            so_far += _weight(data)
            return _as_line(part, _TOO_MANY) if so_far - _weight(data) < left_out else part

        return [_changed(message, change) for message in messages]


def _weight(data: str) -> int:
    return max(len(data), LEAST_CHARS)


def _changed(entry: Any, change: Callable[[Any], Any]) -> Any:
    """Return an entry of a history with every part of results in it changed; the entry itself is not."""
    if not isinstance(entry, Mapping):
        return entry
    match entry.get("type"):
        case "tool_result":
            field, inner = "content", change
        case "function_call_output":
            field, inner = "output", change
        case _:
            if entry.get("role") != "user":
                return entry
            field, inner = "content", lambda block: _changed(block, change)
    parts = entry.get(field)
    return {**entry, field: [inner(part) for part in parts]} if isinstance(parts, list) else entry


def _pictures_of(messages: Sequence[Message]) -> list[str]:
    found: list[str] = []

    def note(part: Any) -> Any:
        if (data := _data_of(part)) is not None:
            found.append(data)
        return part

    for message in messages:
        _changed(message, note)
    return found


def _data_of(part: Any) -> str | None:
    """Return what a picture holds: its base64, or its address that holds it."""
    if not isinstance(part, Mapping):
        return None
    source = part.get("source")
    data = source.get("data") if part.get("type") == "image" and isinstance(source, Mapping) else None
    if part.get("type") == "input_image" and str(part.get("image_url")).startswith("data:"):
        data = part["image_url"]
    return data if isinstance(data, str) else None


def _as_line(part: Any, why: str) -> Any:
    data = _data_of(part)
    if data is None:
        return part
    begin, _, base64 = data.rpartition(",")
    size_bytes = len(base64) * 3 // 4 - base64[-2:].count("=")
    if part["type"] == "image":
        media_type = str(part["source"].get("media_type"))
        return {"type": "text", "text": line_for(media_type, size_bytes, why)}
    media_type = begin.removeprefix("data:").removesuffix(";base64")
    return {"type": "input_text", "text": line_for(media_type, size_bytes, why)}

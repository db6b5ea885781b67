"""Arguments and results in traces, where somebody opted in: masked, and bounded in work and size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from mcp_tools.output.masking import MASK, is_secret_name, mask_secrets, shorten
from mcp_tools.output.plain import encodable, safe_str
from mcp_tools.types import ToolOutput

MAX_CHARS: Final = 4_000
_MAX_ITEMS: Final = 50
_MAX_DEPTH: Final = 6
_MAX_LEAVES: Final = 500


def render_content(value: Any) -> str:
    """Return `value` as JSON of at most some 4,000 characters, without what looks like a secret.

    Long texts keep head and tail, long lists and objects their first 50 items, 6 levels deep; what was cut
    is said. However large the value is, only that much of it is looked at.
    """
    if isinstance(value, ToolOutput):
        value = value.structured if value.structured is not None else [_piece(each) for each in value.content]
    if isinstance(value, str):
        return _text(value, MAX_CHARS)
    text = json.dumps(_clipped(value, _MAX_DEPTH, [_MAX_LEAVES]), ensure_ascii=False, default=safe_str)
    return shorten(mask_secrets(encodable(text)), MAX_CHARS)


def _piece(piece: Any) -> Any:
    return getattr(piece, "text", None) or f"[{type(piece).__name__}]"


def _clipped(value: Any, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        return "…"
    match value:
        case None | bool() | float():
            return value
        case int():
            return value if value.bit_length() < 1_000 else "a large number"
        case str():
            return _text(value, 1_000)
        case bytes() | bytearray() | memoryview():
            return f"[{len(value)} bytes]"
        case Mapping():
            return _object(value, depth, budget)
        case Sequence() | set() | frozenset():
            items = [_clipped(item, depth - 1, budget) for item in islice(value, _MAX_ITEMS)]
            return [*items, *_and_more(len(value))]
    return f"[{type(value).__name__}]"


def _object(value: Mapping[Any, Any], depth: int, budget: list[int]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, item in islice(value.items(), _MAX_ITEMS):
        name = _text(safe_str(key) if not isinstance(key, str) else key, 200)
        is_secret = is_secret_name(name) and not isinstance(item, bool | None)
        shown[name] = MASK if is_secret else _clipped(item, depth - 1, budget)
    for note in _and_more(len(value)):
        shown["…"] = note
    return shown


def _text(text: str, max_chars: int) -> str:
    # Cut before masking, since a 50 MB text must not be searched for secrets; and again after it, so that
    # what the first cut left of one is gone.
    return shorten(mask_secrets(encodable(shorten(text, 2 * max_chars))), max_chars)


def _and_more(count: int) -> Iterable[str]:
    return (f"… {count - _MAX_ITEMS} more",) if count > _MAX_ITEMS else ()

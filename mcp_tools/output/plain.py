"""Any Python value → plain data that is always valid JSON and always encodable as UTF-8.

A result that cannot be encoded must never stop a server: a lone surrogate in one answer wedges the
SDK's stdio transport for good. So nothing here raises, whatever a tool returned.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta
from enum import Enum
from typing import Any

MAX_DEPTH = 64
"""Nesting kept; deeper values are named, not walked. JSON readers in the field stop near 100."""

MAX_REPR_CHARS = 1_000

MAX_VALUES = 1_000_000
"""Values in one result, all levels together: a `range` can promise more than memory holds."""

_CUT = f"<cut: more than {MAX_VALUES:,} values>"

_PRINTED_MODULES = frozenset({"decimal", "fractions", "ipaddress", "uuid"})
"""Standard values whose `str` is what people mean by them."""

MAX_INT_BITS = 14_000
"""Some 4,200 digits: Python and the JSON readers in the field refuse to parse more than 4,300."""


def encodable(text: str) -> str:
    r"""Return `text` with lone surrogates written out (`\udc80`), so that it encodes as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def safe_str(value: object) -> str:
    """`str(value)`, or the type's name where that raises."""
    try:
        return encodable(str(value))
    except BaseException:
        return f"<{type(value).__name__} that cannot be printed>"


def to_plain(value: Any) -> Any:
    """Return `value` as None, bool, int, finite float, str, list or dict with string keys.

    Models, dataclasses, enums, dates and containers keep their content. Bytes become
    `{"base64": …, "size_bytes": …}`; NaN and infinities their names as strings, since JSON has no
    such numbers, and integers over 4,200 digits their hexadecimal form; anything else its `repr`, at
    most 1,000 characters. Cycles, nesting over 64 levels
    and what goes beyond 1,000,000 values are named in place.
    """
    return _Conversion().plain(value, 0)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Render any value as JSON text; see `to_plain` for what becomes of odd values."""
    return json.dumps(to_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def strings_in(value: Any) -> list[str]:
    """Return every string among the values of `value`, however deep; the keys of mappings are not."""
    match value:
        case str():
            return [value]
        case dict():
            return [text for item in value.values() for text in strings_in(item)]
        case list() | tuple():
            return [text for item in value for text in strings_in(item)]
        case None | bool() | int() | float():
            return []
    return strings_in(to_plain(value))


class _Conversion:
    """One `to_plain`: the containers we are inside of, and how many more values there may be."""

    __slots__ = ("_left", "_parents")

    def __init__(self) -> None:
        self._parents: set[int] = set()
        self._left = MAX_VALUES

    def plain(self, value: Any, depth: int) -> Any:
        self._left -= 1
        match value:
            case None | bool():
                return value
            case Enum():
                return self.plain(value.value, depth + 1)
            case str():
                return encodable(str.__str__(value))
            case int():
                return int(value) if value.bit_length() <= MAX_INT_BITS else hex(value)
            case float():
                return float(value) if math.isfinite(value) else repr(float(value))
            case bytes() | bytearray() | memoryview():
                raw = bytes(value)
                return {"base64": base64.b64encode(raw).decode(), "size_bytes": len(raw)}
            case datetime() | date() | time():
                return value.isoformat()
            case timedelta():
                return value.total_seconds()
        if depth >= MAX_DEPTH:
            return f"<more than {MAX_DEPTH} levels deep>"
        if id(value) in self._parents:
            return "<contains itself>"
        self._parents.add(id(value))
        try:
            return self._container(value, depth + 1)
        except Exception:
            # A tool's own class may raise anywhere: in model_dump, in iteration, in a property.
            return _bounded_repr(value)
        finally:
            self._parents.discard(id(value))

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return self._mapping(value.items(), depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._mapping(((f.name, getattr(value, f.name)) for f in dataclasses.fields(value)), depth)
        dump = getattr(value, "model_dump", None)  # Pydantic, without importing it
        if callable(dump) and not isinstance(value, type):
            return self.plain(_dumped(dump), depth)
        if isinstance(value, Sequence | Set):
            items: list[Any] = []
            for item in value:
                if self._left <= 0:
                    items.append(_CUT)
                    break
                items.append(self.plain(item, depth))
            return items
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {safe_str(value)}"
        if hasattr(value, "__fspath__") or type(value).__module__ in _PRINTED_MODULES:
            return safe_str(value)
        return _bounded_repr(value)

    def _mapping(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in items:
            if self._left <= 0:
                found["…"] = _CUT
                break
            found[key if type(key) is str and key.isascii() else safe_str(key)] = self.plain(item, depth)
        return found


def _dumped(dump: Callable[..., Any]) -> Any:
    try:
        return dump(mode="json", by_alias=True)  # as its own JSON Schema describes it
    except ValueError:  # bytes that are no text, among others
        return dump(by_alias=True)


def _bounded_repr(value: object) -> str:
    try:
        text = encodable(repr(value))
    except BaseException:
        return f"<{type(value).__name__} that cannot be printed>"
    return text if len(text) <= MAX_REPR_CHARS else text[:MAX_REPR_CHARS] + "…"

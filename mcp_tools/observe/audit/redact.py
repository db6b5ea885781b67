"""Arguments and texts → what may stand in a record: bounded, and without secrets.

What is left out is replaced by its size and a salted digest: two equal values have equal digests in one
log, and nobody without the salt can guess a short one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from mcp_tools.observe.audit.line import canonical
from mcp_tools.output.masking import mask_secrets
from mcp_tools.output.plain import encodable, safe_str, to_json, to_plain

MAX_VALUE_CHARS: Final = 256
"""Of one string among the arguments; a longer one is named by its length and digest."""
MAX_ARGUMENTS_BYTES: Final = 8 * 1024
MAX_ITEMS: Final = 50
MAX_DEPTH: Final = 8
MIN_SECRET_CHARS: Final = 4
"""A shorter one is not searched for in error messages: it would be found everywhere."""

_NAME_CHARS: Final = 32
_ITEM_BYTES: Final = 8
_STAND_IN_BYTES: Final = 120
_SECRET_NAME: Final = re.compile(
    r"(?i)pass(?:word|wd|phrase|code)|secret|token(?!s)|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|authorization|credential|cookie|(?:^|[_-])(?:pwd|pin|auth|otp)(?:$|[_-])"
)


_MARKS: Final = ("-", "_", "=", ":", "eyJ", "AKIA", "ASIA", "AIza")


def may_hold_secret(text: str) -> bool:
    """Whether masking could find anything. A look for what each of its forms has is 20 times as fast."""
    return any(mark in text for mark in _MARKS)


class Redactor:
    """What one log may hold of what callers send.

    Args:
        salt: Of this log.
        names: More names of arguments whose values are secret; case does not matter.
    """

    def __init__(self, salt: bytes, names: Iterable[str] = ()) -> None:
        self._salt = salt
        self._names = frozenset(name.casefold() for name in names)

    def digest(self, data: bytes) -> str:
        """Return the salted digest that stands for `data`: 32 hex digits of BLAKE2b with the salt as key."""
        return blake2b(data, key=self._salt, digest_size=16).hexdigest()

    def text(self, value: object, max_bytes: int) -> str:
        """Return a text masked, and no longer than `max_bytes` as JSON."""
        text = value if type(value) is str else safe_str(value)
        if len(text) <= _NAME_CHARS:
            if text.isascii() and not may_hold_secret(text):  # most ids; at most 194 bytes as JSON
                return text
            if max_bytes > 12 * _NAME_CHARS:
                return _masked_name(text)
        # Cut before masking as well: a long text must not be searched for secrets.
        text = mask_secrets(encodable(text[: 2 * max_bytes]))
        if len(encode_basestring_ascii(text)) <= max_bytes:
            return text
        kept = text[: max_bytes // 2]
        while kept and len(encode_basestring_ascii(kept)) > max_bytes:
            kept = kept[: len(kept) // 2]
        return f"{kept}…"

    def arguments(self, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return what a record holds of a call's arguments, and the secrets that were found by name.

        Returns:
            `values` as they are recorded, the size and digest of all of them; and strings that must not
            appear elsewhere in the record.
        """
        try:
            encoded = canonical(dict(parameters))
            plain: Any = parameters
        except (TypeError, ValueError, RecursionError):
            plain = to_plain(dict(parameters))
            encoded = to_json(plain)
        data = encoded.encode("utf-8", "backslashreplace")
        walk = _Walk(self, self._names)
        values = walk.value(plain, 0)
        return {"values": values, "bytes": len(data), "digest": self.digest(data)}, walk.secrets


@functools.lru_cache(maxsize=2048)
def _masked_name(text: str) -> str:
    """Tools, clients and principals come again and again."""
    return mask_secrets(encodable(text))


class _Walk:
    """One walk through arguments: how many bytes a record still takes, and the secrets it met."""

    def __init__(self, redactor: Redactor, names: frozenset[str]) -> None:
        self._redactor = redactor
        self._names = names
        self._left = MAX_ARGUMENTS_BYTES
        self.secrets: list[str] = []

    def value(self, value: Any, depth: int) -> Any:
        self._left -= _ITEM_BYTES
        match value:
            case None | bool():
                return value
            case str():
                return self._string(value)
            case int() | float():
                text = canonical(value)
                if len(text) <= 40:
                    return value
                return self._stand_in(text)
            case Mapping() if depth < MAX_DEPTH:
                return self._mapping(value, depth)
            case list() | tuple() if depth < MAX_DEPTH:
                return self._list(value, depth)
        return self._stand_in(to_json(value))

    def _string(self, text: str) -> Any:
        if len(text) > MAX_VALUE_CHARS:
            return self._stand_in(text)
        text = encodable(text)
        masked = mask_secrets(text) if may_hold_secret(text) else text
        size = len(encode_basestring_ascii(masked))
        if size > self._left:
            return self._stand_in(text)
        self._left -= size
        if masked == text:
            return text
        self._left -= _STAND_IN_BYTES
        return {"masked": masked, "digest": self._redactor.digest(text.encode())}

    def _mapping(self, mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for count, (key, value) in enumerate(mapping.items()):
            if count >= MAX_ITEMS or self._left <= 0:
                found["…"] = f"{len(mapping) - count} more"
                break
            name = safe_str(key)
            shown = self._redactor.text(name, 400)
            self._left -= len(encode_basestring_ascii(shown))
            found[shown] = self._secret(value) if self._is_secret(name) else self.value(value, depth + 1)
        return found

    def _list(self, items: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        found: list[Any] = []
        for count, item in enumerate(items):
            if count >= MAX_ITEMS or self._left <= 0:
                found.append(f"… {len(items) - count} more")
                break
            found.append(self.value(item, depth + 1))
        return found

    def _is_secret(self, name: str) -> bool:
        return _SECRET_NAME.search(name[:200]) is not None or name.casefold() in self._names

    def _secret(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        self._left -= _STAND_IN_BYTES
        text = value if isinstance(value, str) else to_json(value)
        self._remember(value, 0)
        return {"secret": self._redactor.digest(text.encode("utf-8", "backslashreplace"))}

    def _remember(self, value: Any, depth: int) -> None:
        if isinstance(value, str):
            if MIN_SECRET_CHARS <= len(value) <= 10_000 and len(self.secrets) < MAX_ITEMS:
                self.secrets.append(value)
        elif isinstance(value, Mapping | list | tuple) and depth < MAX_DEPTH:
            for item in list(value.values() if isinstance(value, Mapping) else value)[:MAX_ITEMS]:
                self._remember(item, depth + 1)

    def _stand_in(self, text: str) -> dict[str, Any]:
        self._left -= _STAND_IN_BYTES
        return {"chars": len(text), "digest": self._redactor.digest(text.encode("utf-8", "backslashreplace"))}

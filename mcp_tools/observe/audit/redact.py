"""Arguments and texts → what may stand in a record: bounded, and without secrets.

What is left out is replaced by its size and a salted digest: two equal values have equal digests in one
log, and nobody without the salt can guess a short one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from mcp_tools.observe.audit.line import canonical
from mcp_tools.output.masking import (
    PAIR_NAMES,
    PAIR_VALUES,
    is_secret_name,
    mask_secrets,
    may_hold_secret,
    secret_option,
)
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
        is_pair = self._names_a_secret(mapping)
        for count, (key, value) in enumerate(mapping.items()):
            if count >= MAX_ITEMS or self._left <= 0:
                found[_free("…", found)] = f"{len(mapping) - count} more"
                break
            name = safe_str(key)
            shown = _free(self._redactor.text(name, 400), found)
            self._left -= len(encode_basestring_ascii(shown))
            is_secret = self._is_secret(name) or (is_pair and name.casefold() in PAIR_VALUES)
            found[shown] = self._secret(value) if is_secret else self.value(value, depth + 1)
        return found

    def _names_a_secret(self, mapping: Mapping[Any, Any]) -> bool:
        """`{"name": "Authorization", "value": …}`."""
        if len(mapping) > MAX_ITEMS:
            return False
        names = {key.casefold(): value for key, value in mapping.items() if isinstance(key, str)}
        if names.keys().isdisjoint(PAIR_VALUES):
            return False
        return any(self._is_secret(name) for key in PAIR_NAMES if isinstance(name := names.get(key), str))

    def _list(self, items: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        found: list[Any] = []
        before: Any = None
        for count, item in enumerate(items):
            if count >= MAX_ITEMS or self._left <= 0:
                found.append(f"… {len(items) - count} more")
                break
            is_secret = isinstance(before, str) and self._is_named_by(before, len(items), item)
            found.append(self._secret(item) if is_secret else self.value(item, depth + 1))
            before = item
        return found

    def _is_named_by(self, before: str, count: int, item: Any) -> bool:
        """`["--token", X]`, and `["Authorization", X]` where these are all."""
        if isinstance(item, str) and item.startswith("--"):
            return False
        if before.startswith("-"):
            return secret_option(before) or before.lstrip("-").casefold() in self._names
        return count == 2 and self._is_secret(before)

    def _is_secret(self, name: str) -> bool:
        return is_secret_name(name) or name.casefold() in self._names

    def _secret(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        self._left -= _STAND_IN_BYTES
        text = value if isinstance(value, str) else to_json(value)
        self._remember(value, 0)
        return {"secret": self._redactor.digest(text.encode("utf-8", "backslashreplace"))}

    def _remember(self, value: Any, depth: int) -> None:
        if len(self.secrets) >= MAX_ITEMS or value is None or isinstance(value, bool):
            return
        if isinstance(value, str | int | float):
            if not isinstance(value, int) or value.bit_length() < 1_000:
                self.secrets += _spellings(value)
        elif isinstance(value, Mapping | list | tuple) and depth < MAX_DEPTH:
            for item in list(value.values() if isinstance(value, Mapping) else value)[:MAX_ITEMS]:
                self._remember(item, depth + 1)

    def _stand_in(self, text: str) -> dict[str, Any]:
        self._left -= _STAND_IN_BYTES
        return {"chars": len(text), "digest": self._redactor.digest(text.encode("utf-8", "backslashreplace"))}


def _spellings(secret: str | float) -> list[str]:
    """Return how a message may spell a secret: as it is, quoted by Python or by JSON; the longest first."""
    text = str(secret)
    if not MIN_SECRET_CHARS <= len(text) <= 10_000:
        return []
    if not isinstance(secret, str):
        return [text] if sum(map(str.isdigit, text)) >= MIN_SECRET_CHARS else []
    escaped = (repr(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    # A text in another text is escaped twice, and a quote in it need not be escaped by either.
    quotes = (escaped[0].replace('"', '\\"'), repr(text + "'" + '"')[1:-4])
    return sorted({text, encodable(text), *escaped, *quotes}, key=len, reverse=True)


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """Return a name that is not taken: names that shorten to the same text are all kept."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free

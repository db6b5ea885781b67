"""Secrets in results: masked so that JSON stays JSON, and counted so that it can be said.

What looks like a secret is decided in `masking`; here it is applied to texts of any size and to data.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from typing import Any, Final

from mcp_tools.output.masking import MASK, is_secret_name, mask_secrets

MAX_JSON_CHARS: Final = 5_000_000
"""A text up to this size is looked at as JSON, if it begins like that."""

_BLOCK_CHARS: Final = 200_000  # searched in one go, some 50 ms in which no other thread of ours runs
_BLOCK_END_CHARS: Final = 20_000  # within this much of a block's end it may end earlier
# Where a secret may begin; too many is fine.
_TELLING: Final = re.compile(
    r"(?i)pass|pwd|secret|token|key|auth|credential|cookie|bearer|jwt|signature|-----BEGIN"
)
_MIN_SECRET_CHARS: Final = 4
_PREFIX: Final = re.compile(r"(?:sk|pk|rk|gh[pousr]|github_pat|xox[abeprs])[-_]|AKIA|ASIA|AIza")
# The longest secret there is, a private key, has up to 8,000 characters; others stand near their names.
_SEPARATORS: Final = (("\n", 9_000), ("\n", 150), (" ", 150), ("\n", 0))


def mask_text(text: str) -> tuple[str, int]:
    """Return the text without what looks like a secret, and how many there were.

    A text that is JSON is masked value by value and stays JSON, with an indent of 2.
    """
    if len(text) <= _BLOCK_CHARS:
        masked = mask_secrets(text)
    else:
        masked = "".join(mask_secrets(block) for block in _blocks(text))
    if masked == text:
        return text, 0
    if len(text) <= MAX_JSON_CHARS and text.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            value, count = mask_value(value)
            return json.dumps(value, indent=2, ensure_ascii=False), count
    return masked, masked.count(MASK) - text.count(MASK)


def mask_value(value: Any, *, keep_shape: bool = False) -> tuple[Any, int]:
    """Return plain data without what looks like a secret, and how many there were.

    A text under a telling name (`password`, `api_key`) is masked as a whole; numbers stay.

    Args:
        keep_shape: For schemas that want one: letters of a masked text become `x`, digits `0`.
    """
    match value:
        case str():
            masked = mask_secrets(value)
            if masked == value:
                return value, 0
            count = max(1, masked.count(MASK) - value.count(MASK))
            return shaped_like(value) if keep_shape else masked, count
        case list():
            items = [mask_value(item, keep_shape=keep_shape) for item in value]
            return [item for item, _ in items], sum(count for _, count in items)
        case dict():
            masked_dict: dict[str, Any] = {}
            total = 0
            for key, item in value.items():
                new_key = _free(mask_secrets(key), masked_dict) if len(key) >= _MIN_SECRET_CHARS else key
                is_secret = isinstance(item, str) and len(item) >= _MIN_SECRET_CHARS and is_secret_name(key)
                if is_secret and item != MASK:
                    new_item, count = shaped_like(item) if keep_shape else MASK, 1
                else:
                    new_item, count = mask_value(item, keep_shape=keep_shape)
                masked_dict[new_key] = new_item
                total += count + (new_key != key)
            return masked_dict, total
    return value, 0


def shaped_like(secret: str) -> str:
    """Return the text with its letters as `x` or `X` and its digits as `0`.

    Everything else stays, and so does what keys of a vendor begin with.
    """
    kept = _PREFIX.match(secret)
    start = kept.end() if kept is not None else 0
    prefix, secret = secret[:start], secret[start:]
    return prefix + re.sub(r"[^\W\d_]", _letter, re.sub(r"\d", "0", secret))


def _letter(found: re.Match[str]) -> str:
    return "X" if found.group().isupper() else "x"


def _free(key: str, taken: dict[str, Any]) -> str:
    number, free = 1, key
    while MASK in key and free in taken:
        number += 1
        free = f"{key} {number}"
    return free


def _blocks(text: str) -> list[str]:
    """Split a long text where no secret goes on: at a line's end that no telling name stands before."""
    blocks: list[str] = []
    start = 0
    while start < len(text):
        end = start + _BLOCK_CHARS
        if end < len(text):
            end = _quiet_end(text, end)
        blocks.append(text[start:end])
        start = end
    return blocks


def _quiet_end(text: str, end: int) -> int:
    tells = [found.start() for found in _TELLING.finditer(text, end - 2 * _BLOCK_END_CHARS, end)]
    for separator, reach in _SEPARATORS:
        place = end
        while (place := text.rfind(separator, end - _BLOCK_END_CHARS, place)) >= 0:
            nearest = bisect_left(tells, place) - 1
            if nearest < 0 or tells[nearest] < place - reach:
                return place + 1
    return end

"""One record ↔ one line: canonical JSON, and the hash that chains it to the one before.

A line is the record's canonical JSON (sorted keys, no blanks, ASCII only) with its hash as last member.
The hash is SHA-256 over that JSON without the hash; it covers `prev`, the hash of the record before.
ASCII only, so no line holds a control character, U+2028, a lone surrogate or a line break of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

SCHEMA_VERSION: Final = 1
MAX_LINE_BYTES: Final = 32 * 1024
"""Longer than any record we write; what is longer is none."""

_SUFFIX_BYTES: Final = len(',"hash":""}\n') + 64
_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class Tip(NamedTuple):
    """The last record of a chain: its number and its hash. A chain begins after number 0."""

    seq: int
    hash: str


GENESIS: Final = Tip(0, "0" * 64)


def canonical(value: Any) -> str:
    """Render plain data the one way that is hashed.

    Raises:
        TypeError, ValueError, RecursionError: It is no plain data.
    """
    return _encoder.encode(value)


def seal(record: Mapping[str, Any], after: Tip) -> tuple[bytes, Tip]:
    """Return the line of the record that follows `after`, and its own tip."""
    body = canonical({**record, "v": SCHEMA_VERSION, "seq": after.seq + 1, "prev": after.hash})
    digest = sha256(body.encode("ascii")).hexdigest()
    return f'{body[:-1]},"hash":"{digest}"}}\n'.encode("ascii"), Tip(after.seq + 1, digest)


def has_own_hash(line: bytes) -> bool:
    """Whether a line, its line break included, is as it was written."""
    if len(line) <= _SUFFIX_BYTES or not line.endswith(b'"}\n'):
        return False
    digest = sha256(line[:-_SUFFIX_BYTES] + b"}").hexdigest().encode()
    return line[-_SUFFIX_BYTES:] == b',"hash":"' + digest + b'"}\n'


def read(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line, or None where it is not as it was written."""
    if not has_own_hash(line):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if (
        not isinstance(record, dict)
        or type(record.get("seq")) is not int
        or record.get("v") != SCHEMA_VERSION
    ):
        return None
    return record

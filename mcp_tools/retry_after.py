"""When a server says to come back: of web sites, search engines and models alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

MAX_RETRY_AFTER_S: Final = 3600.0
_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]*)?")  # some send fractions, which RFC 9110 does not have
_MAX_DATE_CHARS: Final = 100


def retry_after_s(
    headers: Mapping[str, str],
    now: datetime | None = None,
    *,
    name: str = "retry-after",
    most_s: float = MAX_RETRY_AFTER_S,
) -> float | None:
    """Read `Retry-After`, in seconds or as a date (RFC 9110, 10.2.3).

    Args:
        headers: Names in lower case, or any case where the mapping does not care.
        now: What a date is compared with, with its zone. None: the clock of this machine.
        name: The header, in lower case.
        most_s: What is longer counts as this.
    Returns:
        Seconds from 0 to `most_s`; None where the header is missing or says nothing that can be read.
    """
    text = headers.get(name, "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), most_s)
    if len(text) > _MAX_DATE_CHARS:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    wait_s = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(wait_s, 0.0), most_s)

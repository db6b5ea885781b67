"""When a server says to come back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

MAX_RETRY_AFTER_S: Final = 3600.0


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Read `Retry-After`, in seconds or as a date.

    Args:
        headers: Names in lower case.
        now: What a date is compared with, with its zone. None: the clock of this machine.
    Returns:
        Seconds from 0 to an hour; None where the header is missing or says nothing that can be read.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        # More digits than a float can hold are still only a long time.
        return min(float(text[:12]), MAX_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    wait_s = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)

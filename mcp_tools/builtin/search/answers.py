"""What an HTTP answer of a search service means: found something, or why not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from mcp_tools.builtin.search.turns import LONGEST_ASKED_REST_S
from mcp_tools.builtin.search.types import Failed, Kind
from mcp_tools.retry_after import retry_after_s
from mcp_tools.web.types import WebResponse

MAX_BODY_BYTES: Final = 256 * 1024
MAX_ROWS: Final = 100
MAX_TEXT_CHARS: Final = 1_000


def windows_reset(headers: Mapping[str, str]) -> float | None:
    """Return when Brave lets us ask again: the longest of its windows in which nothing remains."""
    remaining = headers.get("x-ratelimit-remaining", "").split(",")
    resets = headers.get("x-ratelimit-reset", "").split(",")
    waits = [
        int(reset)
        for left, reset in zip(remaining, resets, strict=False)
        if left.strip() == "0" and reset.strip().isdecimal() and len(reset.strip()) < 12
    ]
    return float(max(waits)) if waits else None


def refuse_status(status: int, headers: Mapping[str, str]) -> None:
    """Raise what a status other than 200 means; how it is meant by one provider is looked at before.

    Raises:
        Failed: It is not 200.
    """
    after = retry_after_s(headers, most_s=LONGEST_ASKED_REST_S)
    match status:
        case 200:
            return
        case 202:
            raise Failed(
                Kind.BLOCKED, "answered 202, a question for a person instead of results", retry_after_s=after
            )
        case 429:
            raise Failed(Kind.RATE_LIMITED, "asked too often, it says (429)", retry_after_s=after)
        case 401 | 403:
            raise Failed(
                Kind.REJECTED,
                f"does not accept the key or this kind of request ({status})",
                retry_after_s=after,
            )
        case 402 | 432 | 433:
            raise Failed(Kind.REJECTED, f"the plan of its key is used up ({status})", retry_after_s=after)
        case 408 | 500 | 501 | 502 | 503 | 504:
            raise Failed(Kind.UNAVAILABLE, f"is in trouble ({status})", retry_after_s=after)
        case _ if 300 <= status < 400:
            raise Failed(
                Kind.UNAVAILABLE,
                f"points elsewhere ({status}), where a key is not carried; is its URL right?",
            )
        case _ if 400 <= status < 500:
            raise Failed(Kind.REJECTED, f"does not accept the request ({status})", retry_after_s=after)
        case _:
            raise Failed(Kind.UNAVAILABLE, f"answered with status {status}", retry_after_s=after)


def read_json(response: WebResponse) -> dict[str, Any]:
    """Read the body of an API's answer.

    Raises:
        Failed: It is no JSON object, or not whole.
    """
    # Reading JSON holds up everything else in the server, and no page of results is as large.
    if response.is_cut or len(response.body) > MAX_BODY_BYTES:
        raise Failed(Kind.UNAVAILABLE, f"its answer is larger than {MAX_BODY_BYTES:,} bytes")
    body = response.body.strip()
    if not body:
        raise Failed(Kind.BLOCKED, "answered with an empty page")
    if body.startswith(b"<"):
        raise Failed(Kind.BLOCKED, "answered with a web page (HTML) where JSON was asked for")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise Failed(Kind.UNAVAILABLE, "its answer is cut short or is no JSON") from None
    if not isinstance(data, dict):
        raise Failed(Kind.UNAVAILABLE, "its answer is JSON of an unknown form")
    return data


def rows(data: Mapping[str, Any], *path: str) -> list[dict[str, Any]]:
    """Return the objects of the list at `path`, the first ones: nobody wants as many.

    Raises:
        Failed: There is no list. Some providers say with status 200 what is wrong.
    """
    value: Any = data
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, list):
        raise Failed(Kind.UNAVAILABLE, "its answer is JSON of another form than that of results")
    return [row for row in value[:MAX_ROWS] if isinstance(row, dict)]


def text_of(row: Mapping[str, Any], *names: str) -> str:
    """Return the beginning of the first of these fields that is a text and not empty."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value[:MAX_TEXT_CHARS]
    return ""

"""From what providers wrote to what a model may read: queries in, results out."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from mcp_tools.builtin.search.types import MAX_QUERY_CHARS, Hit
from mcp_tools.errors import ToolError
from mcp_tools.output.untrusted import clean
from mcp_tools.web.types import Refused
from mcp_tools.web.urls import parse

MAX_URL_CHARS: Final = 2_000
MAX_TITLE_CHARS: Final = 200
MAX_SNIPPET_CHARS: Final = 500
MAX_NOTE_CHARS: Final = 60


def one_line(query: str) -> str:
    """Return the query on one line.

    Raises:
        ToolError: It is empty, too long, or holds what no engine can be asked.
    """
    line = " ".join(query.split())
    if not line:
        raise ToolError("query is empty; say in a few words what to look for")
    if len(line) > MAX_QUERY_CHARS:
        raise ToolError(
            f"query has {len(line):,} characters; at most {MAX_QUERY_CHARS} are allowed. Use a few key words"
        )
    for character in line:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ToolError(
                f"query holds a control character (U+{ord(character):04X}); leave it out and search again"
            )
    return line


def tidy(hits: Iterable[Hit], most: int) -> list[dict[str, str]]:
    """Return the results that can be shown: cleaned, bounded, with safe URLs, each page once."""
    shown: list[dict[str, str]] = []
    seen: set[str] = set()
    for hit in hits:
        url = safe_url(hit.url)
        if url is None or (same := _same(url)) in seen:
            continue
        seen.add(same)
        title = _short(hit.title, MAX_TITLE_CHARS)
        row = {"title": title or url, "url": url, "snippet": _short(hit.snippet, MAX_SNIPPET_CHARS)}
        for name, value in (("date", hit.date), ("source", hit.source)):
            if value and (text := _short(value, MAX_NOTE_CHARS)):
                row[name] = text
        shown.append(row)
        if len(shown) == most:
            break
    return shown


def safe_url(url: str) -> str | None:
    """Return an http(s) URL in ASCII, its host in punycode; None where it is none that one should follow.

    It is one that `fetch_url` could be given: nothing before a host that passes for it, no spaces.
    """
    url = url.strip()
    try:
        return str(parse(url)) if len(url) <= MAX_URL_CHARS else None
    except Refused:
        return None


def _same(url: str) -> str:
    """Return what two URLs of one page have in common."""
    parts = urlsplit(url)
    return f"{parts.netloc.removeprefix('www.').rstrip('.')}{parts.path.rstrip('/')}?{parts.query}"


def _short(text: str, most: int) -> str:
    # Cut before it is cleaned too: a provider's text may have any length.
    cleaned = " ".join(clean(text[: most * 4]).split())
    return cleaned if len(cleaned) <= most else cleaned[: most - 1].rstrip() + "…"

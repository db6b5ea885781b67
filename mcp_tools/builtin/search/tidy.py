"""From what providers wrote to what a model may read: queries in, results out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from mcp_tools.builtin.search.types import MAX_QUERY_CHARS, Hit
from mcp_tools.errors import ToolError
from mcp_tools.output.untrusted import clean

MAX_URL_CHARS: Final = 2_000
MAX_TITLE_CHARS: Final = 200
MAX_SNIPPET_CHARS: Final = 500
MAX_NOTE_CHARS: Final = 60
_PLAIN_HOST: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\.?", re.ASCII)
_KEPT: Final = "!$&'()*+,;=:@/?%~-._"


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

    User names before a host are refused, because they pass for the host.
    """
    url = url.strip()
    if not url or len(url) > MAX_URL_CHARS or "\\" in url or any(c.isspace() or c < " " for c in url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme.lower() not in ("http", "https") or "@" in parts.netloc:
        return None
    host = _ascii_host(parts.hostname or "")
    if host is None:
        return None
    place = host if port is None else f"{host}:{port}"
    rest = (quote(part.encode("utf-8", "replace"), safe=_KEPT) for part in (parts.path, parts.query))
    path, query = rest
    return urlunsplit((parts.scheme.lower(), place, path or "/", query, ""))


def _ascii_host(host: str) -> str | None:
    if ":" in host:
        return f"[{host}]" if all(c in "0123456789abcdef:." for c in host) else None
    if not host.isascii():
        import idna

        try:
            host = idna.encode(host, uts46=True).decode()
        except (idna.IDNAError, UnicodeError):
            return None
    is_short = len(host) <= 253 and all(0 < len(label) <= 63 for label in host.rstrip(".").split("."))
    return host if is_short and _PLAIN_HOST.fullmatch(host) else None


def _same(url: str) -> str:
    """Return what two URLs of one page have in common."""
    parts = urlsplit(url)
    return f"{parts.netloc.removeprefix('www.').rstrip('.')}{parts.path.rstrip('/')}?{parts.query}"


def _short(text: str, most: int) -> str:
    # Cut before it is cleaned too: a provider's text may have any length.
    cleaned = " ".join(clean(text[: most * 4]).split())
    return cleaned if len(cleaned) <= most else cleaned[: most - 1].rstrip() + "…"

"""Providers that are asked over REST: SearXNG by its URL; Brave, Tavily, Exa and Kagi by key."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import unescape
from typing import Any, Final
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit

import anyio

from mcp_tools.builtin.search.answers import read_json, refuse_status, rows, text_of, windows_reset
from mcp_tools.builtin.search.options import URLS, SearchOptions
from mcp_tools.builtin.search.types import Failed, Found, Hit, Kind
from mcp_tools.web.types import Refused, Unreachable, Web, WebResponse

SNIPPET_CHARS: Final = 500
_EMPHASIS: Final = re.compile(r"</?(?:strong|b|em|i|mark|span)(?:\s[^<>]{0,200})?>", re.IGNORECASE)
Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request, ready to be sent."""

    method: str
    url: str
    headers: Headers = field(repr=False)
    json: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One provider: how it is asked, how its answer reads, and what its own refusals mean.

    Args:
        most: How many results it gives for one query.
        refuse: Looks at an answer before statuses are read in the usual way.
    """

    name: str
    web: Web
    ask: Callable[[str, int], Question]
    read: Callable[[dict[str, Any]], tuple[Hit, ...]]
    most: int
    interval_s: float
    refuse: Callable[[WebResponse], None] | None = None

    async def search(self, query: str, count: int, *, timeout_s: float) -> Found:
        """Ask once; see `Provider`."""
        question = self.ask(query, min(count, self.most))
        with anyio.move_on_after(timeout_s):
            try:
                response = await self.web.ask(
                    question.method, question.url, json=question.json, headers=question.headers
                )
            except Refused as error:
                raise Failed(Kind.REJECTED, f"may not be asked: {error}") from None
            except Unreachable as error:
                raise Failed(
                    Kind.UNAVAILABLE, f"cannot be reached: {error}", retry_after_s=error.retry_after_s
                ) from None
            if self.refuse is not None:
                self.refuse(response)
            refuse_status(response.status, response.headers)
            return Found(hits=self.read(read_json(response)))
        raise Failed(Kind.UNAVAILABLE, f"gave no whole answer within {timeout_s:.3g} s")


def service(name: str, options: SearchOptions, web: Web) -> Service:
    """Return the provider of this name.

    Args:
        name: `searxng`, `brave`, `tavily`, `exa` or `kagi`, with what it needs in `options`.
    """
    if name == "searxng":
        return _searxng(options.searxng_url or "", web)
    url = options.urls.get(name, URLS[name])
    key = options.key(name) or ""
    return {"brave": _brave, "tavily": _tavily, "exa": _exa, "kagi": _kagi}[name](url, key, web)


def _searxng(given: str, web: Web) -> Service:
    parts = urlsplit(given)
    userinfo, _, place = parts.netloc.rpartition("@")
    path = parts.path.rstrip("/").removesuffix("/search") + "/search"
    url = urlunsplit((parts.scheme, place, path, "", ""))
    headers = {"accept": "application/json"}
    if userinfo:
        secret = base64.b64encode(unquote(userinfo).encode()).decode()
        headers["authorization"] = f"Basic {secret}"

    def ask(query: str, count: int) -> Question:
        asked = urlencode({"q": query, "format": "json", "pageno": 1})
        return Question(method="GET", url=f"{url}?{asked}", headers=headers)

    def read(data: dict[str, Any]) -> tuple[Hit, ...]:
        if not isinstance(data.get("results"), list):
            raise Failed(Kind.UNAVAILABLE, "its answer holds no list of results; is this a SearXNG?")
        hits = tuple(
            Hit(
                title=text_of(row, "title"),
                url=text_of(row, "url"),
                snippet=text_of(row, "content"),
                date=text_of(row, "publishedDate", "pubdate") or None,
                source=text_of(row, "engine") or None,
            )
            for row in rows(data, "results")
        )
        silent = data.get("unresponsive_engines")
        if not hits and isinstance(silent, list) and silent:
            raise Failed(
                Kind.BLOCKED,
                f"found nothing, and {len(silent)} of its engines did not answer it; its owner sees why",
            )
        return hits

    def refuse(response: WebResponse) -> None:
        if response.status == 403:
            raise Failed(
                Kind.REJECTED,
                "does not give JSON (403); its owner adds `json` to `search.formats` in its settings.yml",
            )

    return Service(name="searxng", web=web, ask=ask, read=read, most=50, interval_s=0.5, refuse=refuse)


def _brave(url: str, key: str, web: Web) -> Service:
    headers = {"accept": "application/json", "x-subscription-token": key}

    def ask(query: str, count: int) -> Question:
        # It refuses more than 50 words.
        words = " ".join(query.split()[:50])
        return Question(method="GET", url=f"{url}?{urlencode({'q': words, 'count': count})}", headers=headers)

    def read(data: dict[str, Any]) -> tuple[Hit, ...]:
        # Where it found no pages, `web` is missing; what is wrong it says in another form.
        is_search = data.get("type") == "search" or isinstance(data.get("query"), dict)
        return tuple(
            Hit(
                title=_without_emphasis(text_of(row, "title")),
                url=text_of(row, "url"),
                snippet=_without_emphasis(text_of(row, "description")),
                date=text_of(row, "page_age", "age") or None,
                source=text_of(profile, "long_name", "name") or None
                if isinstance(profile := row.get("profile"), dict)
                else None,
            )
            for row in (rows(data, "web", "results") if data.get("web") or not is_search else ())
        )

    def refuse(response: WebResponse) -> None:
        if response.status == 422 and b"SUBSCRIPTION_TOKEN_INVALID" in response.body[:10_000]:
            raise Failed(Kind.REJECTED, "does not accept its key (422)")
        if response.status == 429 and "retry-after" not in response.headers:
            raise Failed(
                Kind.RATE_LIMITED,
                "asked too often, it says (429)",
                retry_after_s=windows_reset(response.headers),
            )

    return Service(name="brave", web=web, ask=ask, read=read, most=20, interval_s=1.0, refuse=refuse)


def _tavily(url: str, key: str, web: Web) -> Service:
    headers = {"accept": "application/json", "authorization": f"Bearer {key}"}

    def ask(query: str, count: int) -> Question:
        asked = {"query": query, "max_results": count, "search_depth": "basic", "topic": "general"}
        return Question(method="POST", url=url, headers=headers, json=asked)

    def read(data: dict[str, Any]) -> tuple[Hit, ...]:
        return tuple(
            Hit(
                title=text_of(row, "title"),
                url=text_of(row, "url"),
                snippet=text_of(row, "content"),
                date=text_of(row, "published_date") or None,
            )
            for row in rows(data, "results")
        )

    return Service(name="tavily", web=web, ask=ask, read=read, most=20, interval_s=0.2)


def _exa(url: str, key: str, web: Web) -> Service:
    headers = {"accept": "application/json", "x-api-key": key}

    def ask(query: str, count: int) -> Question:
        contents = {"text": {"maxCharacters": SNIPPET_CHARS}}
        asked = {"query": query, "numResults": count, "type": "auto", "contents": contents}
        return Question(method="POST", url=url, headers=headers, json=asked)

    def read(data: dict[str, Any]) -> tuple[Hit, ...]:
        return tuple(
            Hit(
                title=text_of(row, "title"),
                url=text_of(row, "url"),
                snippet=text_of(row, "summary", "text"),
                date=text_of(row, "publishedDate") or None,
                source=text_of(row, "author") or None,
            )
            for row in rows(data, "results")
        )

    return Service(name="exa", web=web, ask=ask, read=read, most=50, interval_s=0.2)


def _kagi(url: str, key: str, web: Web) -> Service:
    headers = {"accept": "application/json", "authorization": f"Bot {key}"}

    def ask(query: str, count: int) -> Question:
        return Question(method="GET", url=f"{url}?{urlencode({'q': query, 'limit': count})}", headers=headers)

    def read(data: dict[str, Any]) -> tuple[Hit, ...]:
        if data.get("error"):
            raise Failed(Kind.REJECTED, "reports an error of the request or the account")
        return tuple(
            Hit(
                title=_without_emphasis(text_of(row, "title")),
                url=text_of(row, "url"),
                snippet=_without_emphasis(text_of(row, "snippet")),
                date=text_of(row, "published") or None,
            )
            # 0 is a result; other numbers are related searches and the like.
            for row in rows(data, "data")
            if row.get("t") == 0
        )

    return Service(name="kagi", web=web, ask=ask, read=read, most=50, interval_s=0.5)


def _without_emphasis(text: str) -> str:
    """Return a text that came as HTML without the marks of what matched."""
    return unescape(_EMPHASIS.sub("", text))

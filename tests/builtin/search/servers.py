"""Search engines on loopback: the forms in which the real ones answer, over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAGES = [
    ("Alpha page", "https://alpha.example/a", "About alpha."),
    ("Beta page", "https://beta.example/b?x=1", "About beta."),
]
Rows = list[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer. `missing` bytes are announced and never sent; `drip` sends a byte now and then."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    missing: int = 0
    drip: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


class Engine:
    """A server that gives one reply to everything until it is told another."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.reply = Reply()
        self.asked: list[Asked] = []
        self.stopping = threading.Event()


@contextmanager
def engine(reply: Reply | None = None) -> Iterator[Engine]:
    """Serve on a free port of loopback; ends with everything that still drips."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("content-length", 0))))

        def _answer(self, body: bytes) -> None:
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.asked.append(
                Asked(
                    method=self.command,
                    path=parts.path,
                    query=parse_qs(parts.query),
                    headers=headers,
                    body=body,
                )
            )
            said = found.reply
            self.close_connection = True
            with suppress(OSError):
                self.send_response(said.status)
                self.send_header("content-type", said.content_type)
                length = 10_000 if said.drip else len(said.body) + said.missing
                self.send_header("content-length", str(length))
                self.send_header("connection", "close")
                for name, value in said.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said.body)
                while said.drip and not found.stopping.wait(0.05):
                    self.wfile.write(b" ")
                    self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Engine(f"http://127.0.0.1:{server.server_port}")
    if reply is not None:
        found.reply = reply
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def as_json(value: Any, **more: Any) -> Reply:
    return Reply(body=json.dumps(value).encode(), **more)


def html(text: str, **more: Any) -> Reply:
    return Reply(body=text.encode(), content_type="text/html; charset=utf-8", **more)


def searxng(rows: Rows, *, silent: list[list[str]] | None = None) -> Reply:
    results = [
        {
            "url": url,
            "title": title,
            "content": text,
            "publishedDate": "2026-10-01T00:00:00",
            "thumbnail": "",
            "engine": "mojeek",
            "template": "default.html",
            "parsed_url": ["https", "alpha.example", "/a", "", "", ""],
            "engines": ["mojeek"],
            "positions": [1],
            "score": 1.0,
            "category": "general",
        }
        for title, url, text in rows
    ]
    return as_json(
        {
            "query": "q",
            "number_of_results": 0,
            "results": results,
            "answers": [],
            "corrections": [],
            "infoboxes": [],
            "suggestions": [],
            "unresponsive_engines": silent or [],
        }
    )


def brave(rows: Rows) -> Reply:
    results = [
        {
            "title": title,
            "url": url,
            "is_source_local": False,
            "is_source_both": False,
            "description": f"<strong>About</strong> &amp; {text}",
            "page_age": "2026-10-02T10:00:00",
            "profile": {"name": "Alpha", "url": url, "long_name": "alpha.example", "img": ""},
            "language": "en",
            "family_friendly": True,
            "type": "search_result",
            "subtype": "generic",
            "meta_url": {"scheme": "https", "netloc": "alpha.example", "hostname": "alpha.example"},
            "age": "October 2, 2026",
        }
        for title, url, text in rows
    ]
    answer: dict[str, Any] = {"query": {"original": "q", "more_results_available": False}, "type": "search"}
    if results:
        answer["web"] = {"type": "search", "results": results, "family_friendly": True}
    return as_json(answer)


def tavily(rows: Rows) -> Reply:
    results = [
        {"url": url, "title": title, "content": text, "score": 0.9, "raw_content": None}
        for title, url, text in rows
    ]
    return as_json(
        {
            "query": "q",
            "follow_up_questions": None,
            "answer": None,
            "images": [],
            "results": results,
            "response_time": 0.8,
            "request_id": "1",
        }
    )


def exa(rows: Rows) -> Reply:
    results = [
        {
            "id": url,
            "title": title,
            "url": url,
            "publishedDate": "2026-10-03T00:00:00.000Z",
            "author": "A. Writer",
            "text": text,
        }
        for title, url, text in rows
    ]
    return as_json(
        {
            "requestId": "1",
            "resolvedSearchType": "neural",
            "results": results,
            "costDollars": {"total": 0.005},
        }
    )


def kagi(rows: Rows) -> Reply:
    data: list[dict[str, Any]] = [
        {
            "t": 0,
            "rank": 1,
            "url": url,
            "title": title,
            "snippet": f"<b>{text}</b>",
            "published": "2026-10-04T00:00:00Z",
        }
        for title, url, text in rows
    ]
    data.append({"t": 1, "list": ["something related"]})
    return as_json({"meta": {"id": "1", "node": "eu", "ms": 90, "api_balance": 9.9}, "data": data})


def duckduckgo(rows: Rows) -> Reply:
    found = "".join(
        f"""<div class="result results_links"><div class="links_main links_deep result__body">
        <h2 class="result__title"><a class="result__a" href="{url}">{title}</a></h2>
        <a class="result__snippet" href="{url}">{text}</a></div></div>"""
        for title, url, text in rows
    )
    nothing = '<div class="no-results">No  results.</div>'
    return html(f'<html><div class="serp__results">{found or nothing}</div></html>')


def mojeek(rows: Rows) -> Reply:
    found = "".join(
        f'<li class="r1"><h2><a class="title" href="{url}">{title}</a></h2><p class="s">{text}</p></li>'
        for title, url, text in rows
    )
    nothing = "<p>No pages found matching your query.</p>"
    return html(f"<html><ul class='results-standard'>{found}</ul>{'' if rows else nothing}</html>")


CAPTCHA = html(
    '<html><div class="anomaly-modal__title">Unfortunately, bots use us too.</div></html>', status=202
)
BRAVE_LIMITED = as_json(
    {
        "type": "ErrorResponse",
        "error": {"id": "1", "status": 429, "code": "RATE_LIMITED", "detail": "Request rate limit exceeded"},
    },
    status=429,
    headers={"X-RateLimit-Remaining": "0, 1990", "X-RateLimit-Reset": "7, 1419704"},
)
BRAVE_KEY = as_json(
    {
        "type": "ErrorResponse",
        "error": {"id": "1", "status": 422, "code": "SUBSCRIPTION_TOKEN_INVALID", "detail": "invalid"},
    },
    status=422,
)

"""SearXNG, Brave, Tavily, Exa and Kagi: their forms over a real HTTP client and a real socket."""

from __future__ import annotations

import base64
import email.utils
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from mcp_tools.builtin.search.options import SearchOptions
from mcp_tools.builtin.search.services import Service, service
from mcp_tools.builtin.search.types import Failed, Found, Kind
from tests.builtin.search import servers
from tests.builtin.search.loopback import LoopbackWeb
from tests.builtin.search.servers import Engine, Reply, engine

NAMES = ("searxng", "brave", "tavily", "exa", "kagi")
FORMS: dict[str, Callable[..., Reply]] = {
    "searxng": servers.searxng,
    "brave": servers.brave,
    "tavily": servers.tavily,
    "exa": servers.exa,
    "kagi": servers.kagi,
}


def options(name: str, url: str) -> SearchOptions:
    keys: dict[str, Any] = {} if name == "searxng" else {f"{name}_key": "secret-key"}
    return SearchOptions(providers=(name,), searxng_url=url, urls={name: url + "/api"}, **keys)


def made(name: str, at: Engine, web: LoopbackWeb) -> Service:
    return service(name, options(name, at.url), web)


async def failure(name: str, at: Engine, web: LoopbackWeb, timeout_s: float = 5) -> Failed:
    with pytest.raises(Failed) as raised:
        await made(name, at, web).search("q", 10, timeout_s=timeout_s)
    assert "secret-key" not in str(raised.value)
    return raised.value


@pytest.mark.parametrize("name", NAMES)
async def test_results_are_read_in_the_providers_own_form(name: str, web: LoopbackWeb) -> None:
    with engine(FORMS[name](servers.PAGES)) as at:
        found = await made(name, at, web).search("q", 10, timeout_s=5)
    assert [(hit.title, hit.url) for hit in found.hits] == [(title, url) for title, url, _ in servers.PAGES]
    assert all("About" in hit.snippet and "<" not in hit.snippet for hit in found.hits)
    assert (found.hits[0].date or "").startswith("2026-10-") or name == "tavily"


@pytest.mark.parametrize("name", NAMES)
async def test_nothing_found_is_an_answer(name: str, web: LoopbackWeb) -> None:
    with engine(FORMS[name]([])) as at:
        assert await made(name, at, web).search("q", 10, timeout_s=5) == Found(hits=())


async def test_each_is_asked_as_its_api_wants_it(web: LoopbackWeb) -> None:
    asked = {}
    for name in NAMES:
        with engine(FORMS[name](servers.PAGES)) as at:
            await made(name, at, web).search('a&b=c #d %00 "é"', 50, timeout_s=5)
            asked[name] = at.asked[0]
    query = ['a&b=c #d %00 "é"']
    assert asked["searxng"].path == "/search"
    assert asked["searxng"].query == {"q": query, "format": ["json"], "pageno": ["1"]}
    assert asked["brave"].query == {"q": query, "count": ["20"]}
    assert asked["brave"].headers["x-subscription-token"] == "secret-key"
    assert asked["kagi"].query == {"q": query, "limit": ["50"]}
    assert asked["kagi"].headers["authorization"] == "Bot secret-key"
    assert json.loads(asked["tavily"].body)["query"] == query[0]
    assert json.loads(asked["tavily"].body)["max_results"] == 20
    assert asked["tavily"].headers["authorization"] == "Bearer secret-key"
    assert json.loads(asked["exa"].body)["numResults"] == 50
    assert asked["exa"].headers["x-api-key"] == "secret-key"


async def test_a_password_in_the_searxng_url_is_sent_as_a_header(web: LoopbackWeb) -> None:
    with engine(servers.searxng(servers.PAGES)) as at:
        url = at.url.replace("http://", "http://me:p%40ss@") + "/sub/search"
        await service("searxng", SearchOptions(searxng_url=url), web).search("q", 1, timeout_s=5)
    assert at.asked[0].headers["authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert at.asked[0].path == "/sub/search"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(status=202), Kind.BLOCKED),
        (Reply(status=429), Kind.RATE_LIMITED),
        (Reply(status=401), Kind.REJECTED),
        (Reply(status=402), Kind.REJECTED),
        (Reply(status=500), Kind.UNAVAILABLE),
        (Reply(status=302, headers={"location": "/x"}), Kind.UNAVAILABLE),
        (servers.html("<html>hello</html>"), Kind.BLOCKED),
        (Reply(body=b""), Kind.BLOCKED),
        (Reply(body=b'{"results": ['), Kind.UNAVAILABLE),
        (Reply(body=b"{}", missing=10), Kind.UNAVAILABLE),
        (Reply(body=b"[]"), Kind.UNAVAILABLE),
        (Reply(body=b"[" * 100_000), Kind.UNAVAILABLE),
        (servers.as_json({"results": 1, "web": 1, "data": 1}), Kind.UNAVAILABLE),
        (Reply(body=b" " * 10 * 1024**2), Kind.UNAVAILABLE),
    ],
    ids=[
        "202", "429", "401", "402", "500", "302", "html", "empty", "half", "truncated", "list", "deep",
        "form", "10MB",
    ],
)  # fmt: skip
async def test_what_is_no_answer_has_its_kind(name: str, reply: Reply, kind: Kind, web: LoopbackWeb) -> None:
    with engine(reply) as at:
        assert (await failure(name, at, web)).kind is kind
    assert len(at.asked) == 1


@pytest.mark.parametrize("name", NAMES)
async def test_a_slow_body_ends_at_the_deadline(name: str, web: LoopbackWeb) -> None:
    with engine(Reply(drip=True)) as at:
        started = time.monotonic()
        failed = await failure(name, at, web, timeout_s=0.3)
    assert failed.kind is Kind.UNAVAILABLE and "0.3 s" in failed.said
    assert time.monotonic() - started < 3


async def test_nobody_there_is_said(web: LoopbackWeb) -> None:
    with engine() as at:
        pass
    failed = await failure("exa", at, web)
    assert failed.kind is Kind.UNAVAILABLE and "cannot be reached" in failed.said


@pytest.mark.parametrize(
    ("value", "expected"),
    [("17", 17.0), ("0", 0.0), ("-5", None), ("soon", None), ("nan", None), ("1e999", None), ("", None)],
)
async def test_retry_after_in_seconds_is_read(value: str, expected: float | None, web: LoopbackWeb) -> None:
    with engine(Reply(status=429, headers={"Retry-After": value})) as at:
        assert (await failure("tavily", at, web)).retry_after_s == expected


async def test_retry_after_as_a_date_is_read(web: LoopbackWeb) -> None:
    date = email.utils.formatdate(time.time() + 90, usegmt=True)
    with engine(Reply(status=503, headers={"Retry-After": date})) as at:
        after = (await failure("kagi", at, web)).retry_after_s
    assert after is not None and 80 < after <= 90


async def test_braves_own_refusals_are_understood(web: LoopbackWeb) -> None:
    with engine(servers.BRAVE_LIMITED) as at:
        limited = await failure("brave", at, web)
        at.reply = servers.BRAVE_KEY
        rejected = await failure("brave", at, web)
    assert (limited.kind, limited.retry_after_s) == (Kind.RATE_LIMITED, 7.0)
    assert rejected.kind is Kind.REJECTED and "key" in rejected.said


async def test_a_searxng_whose_engines_are_silent_has_not_found_nothing(web: LoopbackWeb) -> None:
    with engine(servers.searxng([], silent=[["google", "CAPTCHA"], ["bing", "timeout"]])) as at:
        failed = await failure("searxng", at, web)
    assert failed.kind is Kind.BLOCKED and "2 of its engines" in failed.said


async def test_a_searxng_without_json_says_what_its_owner_can_do(web: LoopbackWeb) -> None:
    with engine(servers.html("<html>Forbidden</html>", status=403)) as at:
        failed = await failure("searxng", at, web)
    assert failed.kind is Kind.REJECTED and "search.formats" in failed.said

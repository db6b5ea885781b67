"""The real ddgs library and its real HTTP client, with its engines' URLs on loopback."""

from __future__ import annotations

import resource
import threading
import time
import zlib

import anyio
import ddgs.engines.duckduckgo
import ddgs.engines.mojeek
import primp
import pytest

from mcp_tools.builtin.search import keyless
from mcp_tools.builtin.search.keyless import Keyless
from mcp_tools.builtin.search.options import SearchOptions
from mcp_tools.builtin.search.types import Failed, Found, Kind
from tests.builtin.search import servers
from tests.builtin.search.servers import Engine, Reply, engine

ENGINES = {
    "duckduckgo": ddgs.engines.duckduckgo.Duckduckgo,
    "mojeek": ddgs.engines.mojeek.Mojeek,
}


def point(monkeypatch: pytest.MonkeyPatch, name: str, at: Engine) -> None:
    monkeypatch.setattr(ENGINES[name], "search_url", at.url + "/search/")


def asking(*engines: str, proxy: str | None = None) -> Keyless:
    return Keyless(SearchOptions(engines=engines, proxy=proxy))


async def failure(provider: Keyless, timeout_s: float = 3) -> Failed:
    with pytest.raises(Failed) as raised:
        await provider.search("q", 10, timeout_s=timeout_s)
    return raised.value


async def test_results_are_read_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(servers.duckduckgo(servers.PAGES)) as at:
        point(monkeypatch, "duckduckgo", at)
        found = await asking("duckduckgo").search("a&b é", 10, timeout_s=5)
    assert [(hit.title, hit.url, hit.snippet) for hit in found.hits] == servers.PAGES
    assert found.by == "duckduckgo"
    assert b"q=a%26b+%C3%A9" in at.asked[0].body


@pytest.mark.parametrize(("name", "form"), [("duckduckgo", servers.duckduckgo), ("mojeek", servers.mojeek)])
async def test_a_page_that_says_so_means_that_nothing_was_found(
    name: str, form: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(form)
    with engine(form([])) as at:
        point(monkeypatch, name, at)
        assert await asking(name).search("q", 10, timeout_s=5) == Found(hits=(), by=name)


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (servers.CAPTCHA, Kind.BLOCKED, "202"),
        (servers.html("<html><form id='captcha'></form></html>"), Kind.BLOCKED, "robot"),
        (servers.html(""), Kind.BLOCKED, "empty page"),
        (servers.html("<html>welcome</html>"), Kind.BLOCKED, "does not say so"),
        (servers.html("no", status=403), Kind.BLOCKED, "403"),
        (Reply(status=302, headers={"location": "/captcha"}), Kind.BLOCKED, "elsewhere"),
        (Reply(status=429, headers={"Retry-After": "40"}), Kind.RATE_LIMITED, "429"),
        (Reply(status=500), Kind.UNAVAILABLE, "500"),
        (Reply(body=b"<html>", missing=100), Kind.UNAVAILABLE, "cut short"),
        (Reply(body=b"x" * 10 * 1024**2), Kind.UNAVAILABLE, "larger"),
        (Reply(body=b"no", headers={"content-encoding": "gzip"}), Kind.UNAVAILABLE, "packed"),
    ],
    ids=["202", "captcha", "empty", "other", "403", "302", "429", "500", "truncated", "10MB", "packed"],
)
async def test_what_is_no_answer_has_its_kind(
    reply: Reply, kind: Kind, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(reply) as at:
        point(monkeypatch, "duckduckgo", at)
        failed = await failure(asking("duckduckgo"))
    assert failed.kind is kind and said in failed.said
    assert failed.retry_after_s == (40.0 if said == "429" else 5.0)
    assert len(at.asked) == 1


async def test_the_librarys_own_front_calls_a_captcha_no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(servers.CAPTCHA) as at:
        point(monkeypatch, "duckduckgo", at)
        with pytest.raises(ddgs.exceptions.DDGSException, match="No results found"):
            await anyio.to_thread.run_sync(lambda: ddgs.DDGS().text("q", backend="duckduckgo"))


async def test_a_slow_page_ends_at_the_deadline_and_so_does_its_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with engine(Reply(drip=True)) as at:
        point(monkeypatch, "duckduckgo", at)
        started = time.monotonic()
        failed = await failure(asking("duckduckgo"), timeout_s=0.5)
    assert failed.kind is Kind.UNAVAILABLE and "in time" in failed.said
    assert time.monotonic() - started < 3


async def test_abandoned_threads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, release = threading.Semaphore(0), threading.Event()

    def hang(*_: object) -> Found:
        hanging.release()
        release.wait(10)
        return Found(hits=())

    monkeypatch.setattr(keyless, "_search", hang)
    monkeypatch.setattr(Keyless, "interval_s", 0.0)
    provider = asking("duckduckgo")
    try:
        for _ in range(keyless.MAX_THREADS):
            with anyio.move_on_after(5) as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(lambda: provider.search("q", 1, timeout_s=5))
                    await anyio.to_thread.run_sync(lambda: hanging.acquire(timeout=5))
                    tasks.cancel_scope.cancel()
            assert not scope.cancelled_caught
        failed = await failure(provider)
        assert "too many searches" in failed.said and not hanging.acquire(blocking=False)
    finally:
        release.set()


async def test_the_next_engine_is_asked_and_a_failed_one_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Keyless, "interval_s", 0.0)
    with engine(servers.CAPTCHA) as first, engine(servers.mojeek(servers.PAGES)) as second:
        point(monkeypatch, "duckduckgo", first)
        point(monkeypatch, "mojeek", second)
        provider = asking("duckduckgo", "mojeek")
        for _ in range(3):
            assert (await provider.search("q", 10, timeout_s=5)).by == "mojeek"
    assert (len(first.asked), len(second.asked)) == (1, 3)


async def test_no_cookie_and_no_redirect_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keyless, "interval_s", 0.0)
    page = servers.duckduckgo(servers.PAGES)
    with engine(servers.html(page.body.decode(), headers={"set-cookie": "id=1; Path=/"})) as at:
        point(monkeypatch, "duckduckgo", at)
        provider = asking("duckduckgo")
        for _ in range(2):
            await provider.search("q", 10, timeout_s=5)
    assert ["cookie" in asked.headers for asked in at.asked] == [False, False]


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(Reply(body=b"proxied")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        attack = await anyio.to_thread.run_sync(lambda: primp.Client(timeout=3).get("http://site.example/"))
        assert attack.text == "proxied" and len(proxy.asked) == 1
        failed = await failure(asking("duckduckgo"))
        assert failed.kind is Kind.REJECTED and "HTTP_PROXY" in failed.said
        assert len(proxy.asked) == 1


async def test_a_configured_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENGINES["duckduckgo"], "search_url", "http://engine.example/html/")
    with engine(servers.duckduckgo(servers.PAGES)) as proxy:
        found = await asking("duckduckgo", proxy=proxy.url).search("q", 10, timeout_s=5)
    assert len(found.hits) == 2
    assert proxy.asked[0].headers["host"] == "engine.example"


async def test_a_packed_page_is_bounded_by_what_it_unpacks_to(monkeypatch: pytest.MonkeyPatch) -> None:
    # Packed piece by piece: the largest memory so far must not already hold all of it.
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(bytes(1024**2)) for _ in range(200)) + packer.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with engine(Reply(body=bomb, headers={"content-encoding": "gzip"})) as at:
        point(monkeypatch, "duckduckgo", at)
        failed = await failure(asking("duckduckgo"), timeout_s=5)
    assert failed.kind is Kind.UNAVAILABLE and "larger" in failed.said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024

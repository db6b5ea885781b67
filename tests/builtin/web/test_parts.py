"""The parts of one page: one question, one request, and the rules all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from mcp_tools.builtin.late import Late
from mcp_tools.builtin.web import FetchOptions, kept, register_web_tool
from mcp_tools.builtin.web.kept import KeptPages, Page
from mcp_tools.builtin.web.readable import Readable
from mcp_tools.confirmation.question import question_text
from mcp_tools.executor import ToolExecutor
from mcp_tools.policy import RulePolicy
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import CallContext, Decision, ExecutionResult, TextContent, ToolOutput
from mcp_tools.web.client import WebClient
from mcp_tools.web.types import Reach
from tests.builtin.web.test_fetch_url import Site, call, site, structured

__all__ = ["site"]  # the fixture
DIGITS = (200, {"Content-Type": "text/plain"}, b"0123456789")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One tool for several callers, whose owner wants to be asked."""

    registry: ToolRegistry
    late: Late[Any]

    async def part(
        self,
        url: str,
        start: int = 0,
        *,
        policy: RulePolicy | None = None,
        says_yes: bool = False,
        **more: Any,
    ) -> ExecutionResult:
        context = {"principal": more.pop("principal", "one"), "confirmed": says_yes}
        arguments = {"url": url, "max_length": 5, "start_index": start, **more}
        return await ToolExecutor(self.registry, policy=policy).execute("fetch_url", arguments, context)


@pytest.fixture
def shared() -> Shared:
    registry = ToolRegistry()
    web = WebClient(Reach(hosts=frozenset({"127.0.0.1", "localhost"})), user_agent="t/1")
    options = FetchOptions(confirms=True, cache_entries=2)
    return Shared(registry=registry, late=register_web_tool(registry, web, None, options))


def is_question(result: ExecutionResult) -> bool:
    return result.confirmation is not None


async def test_the_next_part_is_no_question_and_no_request(site: Site, shared: Shared) -> None:
    site.pages["/"] = DIGITS
    url = site.url + "/"
    assert is_question(await shared.part(url))
    assert structured(await shared.part(url, says_yes=True))["next_index"] == 5
    assert structured(await shared.part(url, 5))["content"] == "56789"
    assert site.asked == ["/"]
    assert is_question(await shared.part(url))  # from its start it is fetched anew
    assert is_question(await shared.part(url, 5, raw=True))
    assert is_question(await shared.part(url, 5, principal="another"))
    assert is_question(await shared.part(site.url + "/else", 5))
    assert site.asked == ["/"]


async def test_a_question_makes_nothing(site: Site, shared: Shared) -> None:
    assert is_question(await shared.part(site.url + "/", 5))
    assert shared.late._made is None


async def test_an_owners_rule_asks_for_each_part(site: Site, shared: Shared) -> None:
    site.pages["/"] = DIGITS
    asks = RulePolicy.parse(ask=["fetch_url(127.0.0.1)"])
    structured(await shared.part(site.url + "/", policy=asks, says_yes=True))
    asked = await shared.part(site.url + "/", 5, policy=asks)
    assert is_question(asked)
    assert asked.confirmation is not None
    assert f"GET {site.url}/" in asked.confirmation.preview and "is kept" in asked.confirmation.preview


async def test_what_led_to_a_kept_page_goes_by_the_rules(site: Site, shared: Shared) -> None:
    there = site.url.replace("127.0.0.1", "localhost")
    site.pages["/"] = (302, {"Location": there + "/there"}, b"")
    site.pages["/there"] = DIGITS
    allows = RulePolicy.parse(allow=["fetch_url(localhost)"])
    structured(await shared.part(site.url + "/", policy=allows, says_yes=True))
    assert structured(await shared.part(site.url + "/", 5, policy=allows))["content"] == "56789"
    denies = RulePolicy.parse(deny=["fetch_url(localhost)"])
    assert "a rule denies" in str((await shared.part(site.url + "/", 5, policy=denies)).error)
    asks = RulePolicy.parse(ask=["fetch_url(localhost)"])
    assert "may not go" in str((await shared.part(site.url + "/", 5, policy=asks)).error)
    assert site.asked == ["/", "/there"]


async def test_a_yes_holds_for_the_parts_of_what_it_led_to(site: Site, shared: Shared) -> None:
    site.pages["/"] = (302, {"Location": "/there"}, b"")
    site.pages["/there"] = DIGITS
    rules = RulePolicy.parse(deny=["fetch_url(**.example)"])
    structured(await shared.part(site.url + "/", policy=rules, says_yes=True))
    assert structured(await shared.part(site.url + "/", 5, policy=rules))["content"] == "56789"
    assert site.asked == ["/", "/there"]


async def test_who_reads_much_pushes_out_nobodys_pages_and_a_new_fetch_is_said(
    site: Site, shared: Shared
) -> None:
    site.pages.update({"/mine": DIGITS, "/a": DIGITS, "/b": DIGITS})

    async def last_line(path: str, start: int, principal: str) -> str:
        result = await shared.part(site.url + path, start, says_yes=True, principal=principal)
        assert isinstance(result.result, ToolOutput), result.error
        last = result.result.content[-1]
        assert isinstance(last, TextContent)
        return last.text

    await last_line("/mine", 0, "one")
    await last_line("/a", 0, "other")
    await last_line("/b", 0, "other")
    assert "anew" not in await last_line("/mine", 5, "one")
    assert site.asked.count("/mine") == 1
    await last_line("/a", 0, "one")
    await last_line("/b", 0, "one")
    assert "anew" in await last_line("/mine", 5, "one")


def page(text: str = "text") -> Page:
    return Page(
        url="http://a.example/",
        status=200,
        content_type="",
        redirects=(),
        rulings=(Decision.ASK,),
        content=Readable(title="", text=text, is_cut=False),
    )


def test_a_call_that_asked_nobody_has_its_page_though_it_goes_in_the_meantime() -> None:
    pages, call, later = KeptPages(seconds=60, entries=1), CallContext(), CallContext()
    pages.put(("http://a.example/", False), call, page())
    assert pages.hold(("http://a.example/", False), later)
    pages.put(("http://b.example/", False), call, page())
    assert pages.get(("http://a.example/", False), later) is not None
    assert pages.get(("http://a.example/", False), CallContext()) is None


def test_kept_pages_are_bounded_in_all_and_whoever_has_most_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    pages = KeptPages(seconds=60, entries=3, clock=lambda: now[0])
    little, much = CallContext(principal="little"), CallContext(principal="much")
    monkeypatch.setattr(kept, "MAX_KEPT_CHARS", 300_000)
    pages.put(("little", False), little, page("x" * 100_000))
    for name in "abc":
        pages.put((name, False), much, page("x" * 100_000))
    assert pages.get(("little", False), little) is not None
    assert pages.get(("a", False), much) is None
    assert pages.get(("c", False), much) is not None
    now[0] = 60.0
    assert pages.get(("c", False), much) is None


async def test_the_question_says_what_a_lookalike_is(shared: Shared) -> None:
    question = (await shared.part("http://\u0430pple.com/login")).confirmation
    assert question is not None
    text = question_text(question, asked_by="a test")
    assert "GET http://xn--pple-43d.com/login" in text
    assert "is not in ASCII. It is xn--pple-43d.com" in text


async def test_arguments_go_by_the_names_of_other_tools_too(site: Site) -> None:
    site.pages["/"] = DIGITS
    assert structured(await call(url=site.url + "/", offset=3, limit=4))["content"] == "3456"
    both = await call(url=site.url + "/", offset=3, start_index=4)
    assert "offset: unknown argument" in str(both.error)

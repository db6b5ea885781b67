"""What the doctor says of the web: search providers that answer, and those that do not."""

from __future__ import annotations

import socket

import pytest

from mcp_tools.config import Settings
from mcp_tools.doctor import Finding, State, Subject
from mcp_tools.doctor.web import search
from tests.builtin.search import servers
from tests.builtin.search.servers import Reply, engine
from tests.doctor.conftest import Doctor
from tests.web.listener import listening, says


def found(**settings: object) -> list[Finding]:
    made = Settings(**settings)  # type: ignore[arg-type]
    return list(search(Subject(settings=made, environ={}, home="", cwd=None, platform="linux")))


def of_searxng(url: str, **settings: object) -> Finding:
    [finding] = found(search_providers=("searxng",), searxng_url=url, **settings)
    assert finding.name == "searxng"
    return finding


def test_the_command_asks_each_provider_once_and_says_what_to_do(no_python: Doctor) -> None:
    with engine(servers.searxng(servers.PAGES)) as searx:
        flags = ("--search-provider", "searxng", "--searxng-url", searx.url)
        said = no_python(*flags, web=True)
        finding = said.one("search")
        assert (finding["topic"], finding["name"], finding["state"]) == ("web", "searxng", "ok")
        assert "2 results" in finding["found"]
        assert [each.path for each in searx.asked] == ["/search"]
        searx.reply = Reply(status=429)
        said = no_python(*flags, web=True)
        finding = said.one("search")
        assert finding["state"] == "warning"
        assert "rate" in finding["found"]
        assert finding["remedy"]
        assert said.code == 0  # others stand in for it, and other tools do without
        assert len(searx.asked) == 2


@pytest.mark.parametrize(
    "reply",
    [
        servers.searxng([]),
        Reply(status=500),
        Reply(status=403),
        servers.html("<html>a page</html>"),
        Reply(body=b"{}", missing=5),
        servers.searxng([], silent=[["mojeek", "CAPTCHA"]]),
    ],
    ids=["nothing found", "down", "forbidden", "no json", "cut", "silent engines"],
)
def test_a_provider_that_gives_no_results_is_a_warning_with_a_remedy(reply: Reply) -> None:
    with engine(reply) as searx:
        finding = of_searxng(searx.url)
        assert finding.state is State.WARNING
        assert finding.found
        assert finding.remedy
        assert len(searx.asked) == 1


def test_a_provider_that_is_not_there_is_a_warning() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        finding = of_searxng(f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert finding.state is State.WARNING


def test_the_doctor_asks_through_the_configured_proxy() -> None:
    reply = servers.searxng(servers.PAGES)
    with listening(says(reply.body, Content_Type="application/json")) as proxy:
        finding = of_searxng("http://search.example", web_proxy=proxy.url())
        assert finding.state is State.OK
        assert proxy.heads[0].startswith(b"GET http://search.example:80/search?")


def test_without_the_web_nobody_is_asked() -> None:
    with engine() as searx:
        [finding] = found(web_enabled=False, search_providers=("searxng",), searxng_url=searx.url)
        assert (finding.name, finding.state) == ("web", State.OK)
        assert "off" in finding.found
        assert searx.asked == []

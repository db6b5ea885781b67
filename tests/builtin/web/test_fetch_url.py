"""`fetch_url` over real sockets: what it reads, where it does not go, and what it marks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mcp_tools.builtin.web import FetchOptions, register_web_tool
from mcp_tools.executor import ToolExecutor
from mcp_tools.policy import RulePolicy
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import ExecutionResult, ExecutionStatus
from mcp_tools.web.client import WebClient
from mcp_tools.web.types import Reach

PAGE = (
    "<html><title>The title</title><body><article><h1>Head</h1><p>" + "Seen words. " * 40 + "</p>"
    "<p style='display: none'>HIDDEN1</p><p aria-hidden='true'>HIDDEN2</p><!-- HIDDEN3 -->"
    "<p style='font-size:0px'>HIDDEN4</p><p>in\u200bvis\u202e\U000e0041ible &lt;/tool_result&gt;</p>"
    "</article></body></html>"
)


class Site:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                status, headers, body = site.pages.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join(5)
    made.server.server_close()


async def call(policy: RulePolicy | None = None, **arguments: Any) -> ExecutionResult:
    registry = ToolRegistry()
    web = WebClient(Reach(hosts=frozenset({"127.0.0.1", "localhost"})), user_agent="t/1")
    register_web_tool(registry, web, None, FetchOptions())
    return await ToolExecutor(registry, policy=policy).execute("fetch_url", arguments)


async def test_a_page_is_marked_markdown_without_what_nobody_sees(site: Site) -> None:
    site.pages["/"] = (200, {"Content-Type": "text/html"}, PAGE.encode())
    result = await call(url=site.url + "/")
    assert result.status is ExecutionStatus.SUCCESS, result
    found = result.result.structured
    assert found["title"] == "The title" and "Seen words." in found["content"]
    assert "HIDDEN" not in found["content"] and "invisible" in found["content"]
    assert result.result.content[0].text.startswith("[untrusted ")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://a@b.example/", "ftp://x.example/"])
async def test_what_is_no_page_of_the_web_is_refused(url: str) -> None:
    assert (await call(url=url)).status is not ExecutionStatus.SUCCESS


async def test_a_picture_that_is_called_html_is_refused_by_its_kind(site: Site) -> None:
    site.pages["/"] = (200, {"Content-Type": "text/html"}, b"\x89PNG\r\n" + bytes(100))
    assert "PNG" in str(await call(url=site.url + "/"))


async def test_pages_join_to_the_whole(site: Site) -> None:
    site.pages["/"] = (200, {"Content-Type": "text/plain"}, b"0123456789")
    first = (await call(url=site.url + "/", max_length=6)).result.structured
    second = (await call(url=site.url + "/", max_length=6, start_index=first["next_index"])).result.structured
    assert first["content"] + second["content"] == "0123456789" and second["next_index"] is None


async def test_a_redirect_to_a_denied_host_is_never_asked(site: Site) -> None:
    target = site.url.replace("127.0.0.1", "localhost") + "/?q=secret"
    site.pages["/"] = (302, {"Location": target}, b"")
    site.pages["/?q=secret"] = (200, {"Content-Type": "text/plain"}, b"taken")
    assert (await call(url=site.url + "/")).status is ExecutionStatus.SUCCESS
    assert site.asked.count("/?q=secret") == 1
    result = await call(RulePolicy.parse(deny=["fetch_url(localhost)"]), url=site.url + "/")
    assert result.status is not ExecutionStatus.SUCCESS and site.asked.count("/?q=secret") == 1


async def test_an_address_that_carries_a_secret_waits_for_a_person(site: Site) -> None:
    result = await call(RulePolicy.parse(ask=["fetch_url(**)"]), url=site.url + "/?q=secret")
    assert result.status is not ExecutionStatus.SUCCESS and site.asked == []

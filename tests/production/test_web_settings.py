"""Settings of the web, as a client of the command sees them: whom the server asks, and whom it does not."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters

from mcp_tools.config import Settings
from mcp_tools.shipped import web_options
from tests.builtin.search import servers
from tests.builtin.search.servers import engine
from tests.production.test_server import ROOT, environ, text_of
from tests.web.listener import Listener, listening, says

SEARX = servers.searxng(servers.PAGES)


@asynccontextmanager
async def client(folder: Path, *flags: str, **variables: str) -> AsyncIterator[Client]:
    arguments = ["-m", "mcp_tools", "serve", "--no-python", "--no-audit", *flags]
    server = StdioServerParameters(
        command=sys.executable, args=arguments, env=environ(folder) | variables, cwd=str(ROOT)
    )
    with anyio.fail_after(60):
        async with Client(server) as connected:
            yield connected


def asked(listener: Listener) -> list[str]:
    return [head.split()[1].decode() for head in listener.heads]


def titles(result: types.CallToolResult) -> list[str]:
    assert result.structured_content is not None, text_of(result)
    found: list[dict[str, Any]] = result.structured_content["results"]
    return [each["title"] for each in found]


async def test_robots_are_obeyed_and_pages_do_not_reach_what_only_search_may(tmp_path: Path) -> None:
    """F-14; and the owner's SearXNG is no page that others could lead to."""

    def answer(peer: socket.socket, head: bytes) -> None:
        pages = {
            "/robots.txt": says(b"User-agent: *\nDisallow: /private\n"),
            "/away": says(b"", status="302 Found", Location=f"{searx.url}/stats"),
        }
        pages.get(head.split()[1].decode(), says(b"open", Content_Type="text/plain"))(peer, head)

    with engine(SEARX) as searx, listening(answer) as site:
        flags = ("--search-provider", "searxng", "--searxng-url", searx.url)
        async with client(tmp_path, *flags, "--web-host", f"127.0.0.1:{site.port}") as connected:
            fetched = await connected.call_tool("fetch_url", {"url": site.url("/open")})
            assert "open" in text_of(fetched) and not fetched.is_error
            refused = await connected.call_tool("fetch_url", {"url": site.url("/private/page")})
            assert refused.is_error
            assert "robots.txt" in text_of(refused)
            assert asked(site) == ["/robots.txt", "/open"]
            assert titles(await connected.call_tool("search_web", {"query": "alpha"})) == [
                "Alpha page",
                "Beta page",
            ]
            assert [each.path for each in searx.asked] == ["/search"]
            for url in (f"{searx.url}/stats", site.url("/away")):
                refused = await connected.call_tool("fetch_url", {"url": url})
                assert refused.is_error
                assert "not public" in text_of(refused)
            assert [each.path for each in searx.asked] == ["/search"]
            assert asked(site) == ["/robots.txt", "/open", "/away"]


async def test_the_configured_proxy_has_all_of_it_and_robots_can_be_ignored(tmp_path: Path) -> None:
    def answer(peer: socket.socket, head: bytes) -> None:
        is_search = b"//search.example" in head.split()[1]
        page = says(SEARX.body, Content_Type="application/json") if is_search else says(b"through it")
        page(peer, head)

    with listening(answer) as proxy, listening(says(b"not asked")) as other:
        flags = (
            *("--web-proxy", f"http://me:word@127.0.0.1:{proxy.port}", "--ignore-robots"),
            *("--search-provider", "searxng", "--searxng-url", "http://search.example"),
        )
        variables = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"), other.url())
        async with client(tmp_path, *flags, **variables) as connected:
            fetched = await connected.call_tool("fetch_url", {"url": "http://site.example/x"})
            assert "through it" in text_of(fetched) and not fetched.is_error
            assert asked(proxy) == ["http://site.example:80/x"]
            assert titles(await connected.call_tool("search_web", {"query": "alpha"}))
            assert asked(proxy)[1].startswith("http://search.example:80/search?")
            assert all(b"\r\nproxy-authorization: basic " in head.lower() for head in proxy.heads)
            assert other.connections == 0


@pytest.mark.parametrize(
    ("confirm", "roots", "asks"),
    [
        ("always", (), True),
        ("always", ("/some",), True),
        ("auto", (), False),
        ("auto", ("/some",), True),
        ("never", ("/some",), False),
    ],
)
def test_questions_about_pages_are_as_configured(confirm: str, roots: tuple[str, ...], asks: bool) -> None:
    options = web_options(Settings(web_confirm=confirm, roots=roots))
    assert options is not None
    assert options.confirms_fetch is asks


async def test_without_the_web_there_is_none(tmp_path: Path) -> None:
    async with client(tmp_path, "--no-web") as connected:
        names = {tool.name for tool in (await connected.list_tools()).tools}
        assert not names & {"fetch_url", "search_web"}

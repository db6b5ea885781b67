"""What `docs/fetch.md` promises of a call, held against what the site saw and what the caller got."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

from mcp_tools.builtin.web import FetchOptions, readable, register_web_tool
from mcp_tools.executor import ToolExecutor
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import ExecutionResult, ExecutionStatus, TextContent, ToolOutput
from mcp_tools.web.client import WebClient
from mcp_tools.web.robots import Robots
from mcp_tools.web.types import MayFollow, Reach, WebResponse
from tests.builtin.web.test_fetch_url import Site, call, site, structured
from tests.web.listener import listening, says

__all__ = ["site"]  # the fixture
WAIT_S = 15.0
TEXT = {"Content-Type": "text/plain"}
HTML = {"Content-Type": "text/html; charset=utf-8"}


def shown(result: ExecutionResult) -> str:
    assert isinstance(result.result, ToolOutput), result.error
    return "\n".join(block.text for block in result.result.content if isinstance(block, TextContent))


class OneTool:
    """`fetch_url` that lives for several calls."""

    def __init__(self, **reach: Any) -> None:
        self._registry = ToolRegistry()
        web = WebClient(Reach(hosts=frozenset({"127.0.0.1"}), **reach), user_agent="t/1")
        register_web_tool(self._registry, web, None, FetchOptions())

    async def call(self, principal: str = "one", **arguments: Any) -> dict[str, Any]:
        context = {"principal": principal}
        return structured(await ToolExecutor(self._registry).execute("fetch_url", arguments, context))


# --- Parts ------------------------------------------------------------------------------------


async def test_a_kept_page_is_its_callers_own(site: Site) -> None:
    site.pages["/"] = (200, TEXT, b"Words of the first one.")
    tool, url = OneTool(), site.url + "/"
    first = await tool.call(url=url, max_length=5)
    assert (first["content"], first["next_index"]) == ("Words", 5)
    site.pages["/"] = (200, TEXT, b"Words of another one.")
    assert (await tool.call(url=url, start_index=5))["content"] == " of the first one."
    assert site.asked == ["/"]
    assert (await tool.call("another", url=url, start_index=5))["content"] == " of another one."
    assert site.asked == ["/", "/"]
    assert (await tool.call(url=url, start_index=5))["content"] == " of the first one."
    # From its start it is fetched anew.
    assert (await tool.call(url=url))["content"] == "Words of another one."
    assert site.asked == ["/", "/", "/"]


async def test_a_page_and_its_source_are_kept_apart(site: Site) -> None:
    site.pages["/"] = (200, HTML, b"<html><body><p>Words.</p></body></html>")
    tool, url = OneTool(), site.url + "/"
    assert (await tool.call(url=url, raw=True))["content"].startswith("<html>")
    assert (await tool.call(url=url, start_index=1))["content"].strip() == "ords."
    assert site.asked == ["/", "/"]
    assert (await tool.call(url=url, start_index=1, raw=True))["content"].startswith("html>")
    assert site.asked == ["/", "/"]


async def test_a_start_behind_the_end_says_how_long_the_page_is(site: Site) -> None:
    site.pages["/"] = (200, TEXT, b"0123456789")
    behind = await call(url=site.url + "/", start_index=11)
    assert "has 10 characters" in str(behind.error)
    at_end = structured(await call(url=site.url + "/", start_index=10))
    assert (at_end["content"], at_end["next_index"], at_end["total_chars"]) == ("", None, 10)


async def test_what_is_missing_of_a_page_is_said(site: Site) -> None:
    note = "its end is missing"
    site.pages["/"] = (200, TEXT, b"x" * 2_000)
    assert note not in (await OneTool().call(url=site.url + "/"))["content"]
    assert note in (await OneTool(max_bytes=1_000).call(url=site.url + "/"))["content"]
    site.pages["/"] = (200, TEXT, b"x" * 2_000_001)
    last = await OneTool().call(url=site.url + "/", start_index=1_999_990)
    assert last["content"].startswith("x" * 10 + "\n")
    assert note in last["content"]


# --- What the answer says ---------------------------------------------------------------------


async def test_a_title_says_nothing_unseen(site: Site) -> None:
    """F-08."""
    title = "Ti\u200bt\u202ele\U000e0041 \x1b[31mhere"
    site.pages["/"] = (200, HTML, f"<html><title>{title}</title><p>Words.</p></html>".encode())
    result = await call(url=site.url + "/")
    assert structured(result)["title"].startswith("Title")
    for unseen in ("\u200b", "\u202e", "\U000e0041", "\x1b"):
        assert unseen not in structured(result)["title"]
        assert unseen not in shown(result)


@pytest.mark.parametrize(
    ("kind", "raw"), [("text/plain", False), ("text/html", True)], ids=["text", "source"]
)
async def test_text_and_source_hold_nothing_unseen(site: Site, kind: str, raw: bool) -> None:
    """F-08: where no reader of HTML has removed it."""
    text = "in\u200bvis\u202eib\ufeffle\U000e0041\U000e0042\r\nsecond\u2028\x1b[31m\tline"
    site.pages["/"] = (200, {"Content-Type": f"{kind}; charset=utf-8"}, text.encode())
    result = await call(url=site.url + "/", raw=raw)
    assert structured(result)["content"] == "invisible\nsecond [31m\tline"
    assert "invisible\nsecond [31m\tline" in shown(result)


async def test_a_page_that_wants_to_go_on_is_not_followed_and_that_is_said(site: Site) -> None:
    """F-03."""
    for number, name in enumerate(("refresh", "Refresh")):
        onwards = f"<meta http-equiv={name} content='0; url={site.url}/inside?n={number}'>"
        site.pages["/"] = (200, HTML, f"<html><head>{onwards}</head><p>Words.</p></html>".encode())
        content = structured(await call(url=site.url + "/"))["content"]
        assert f"{site.url}/inside?n={number}" in content
        assert "not followed" in content
        assert "Words." in content
    assert set(site.asked) == {"/"}


async def test_a_site_that_cannot_be_asked_now_says_when(site: Site) -> None:
    site.pages["/robots.txt"] = (503, {"Retry-After": "120"}, b"")
    result = await call(robots=True, url=site.url + "/")
    assert result.retry_after_s == pytest.approx(120, abs=WAIT_S)
    assert site.asked == ["/robots.txt"]
    assert (await call(url="http://10.0.0.1/")).retry_after_s is None


# --- What is no page --------------------------------------------------------------------------


async def test_what_is_no_plain_url_of_the_web_connects_to_nobody(tmp_path: Path) -> None:
    """F-02."""
    secret = tmp_path / "secret"
    secret.write_text("TOP-SECRET")
    with listening(says(b"reached")) as listener:
        place = f"127.0.0.1:{listener.port}"
        for url in (
            f"http://a@{place}/",
            f"http://a:b@{place}/",
            f"http://:@{place}/",
            f"http://site.example@{place}/",
            f"http://{place}\\@site.example/",
            f"http:\\\\{place}\\",
            f"http:/\\{place}/",
            *(f"http:{slashes}{place}/" for slashes in ("", "/", "///")),
            f"ht\ttp://{place}/",
            f"http\n://{place}/",
            f"http://{place}/ HTTP/1.1\r\nX: y\r\n\r\n",
            f"http://{place}\r\n/",
            *(f"{scheme}://{place}/" for scheme in ("ftp", "gopher", "dict", "ws", "file", "javascript")),
            f"view-source:http://{place}/",
            f"jar:http://{place}/a.jar!/b",
            f"blob:http://{place}/0",
            f"{place}/",
            f"//{place}/",
            f"file://{secret}",
            f"file://localhost{secret}",
            str(secret),
            "data:text/plain,TOP-SECRET",
        ):
            result = await call(url=url)
            assert result.status is not ExecutionStatus.SUCCESS, url
            assert result.result is None, url
            assert listener.connections == 0, url
        # All that was wrong is how it was written.
        assert structured(await call(url=f"http://{place}/"))["content"] == "reached"


# --- Time -------------------------------------------------------------------------------------


class SlowWeb:
    """Takes 20 s for each answer, as long as the client lets one request take, of a clock that is made up."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def get(
        self,
        url: str,
        *,
        accept: str = "*/*",
        headers: object = None,
        may_follow: MayFollow | None = None,
    ) -> WebResponse:
        self.asked.append(url)
        await anyio.sleep(20)
        return WebResponse(url=url, status=404, headers={}, body=b"", is_cut=False)

    async def ask(self, method: str, url: str, *, json: object = None, headers: object = None) -> WebResponse:
        raise AssertionError(f"{method} {url}: fetch_url only gets")

    async def aclose(self) -> None:
        """Nothing is open."""


def test_robots_txt_redirects_and_the_page_share_one_deadline() -> None:
    """F-06. The clock goes on when all wait, so half a minute takes no time."""
    web = SlowWeb()

    async def main() -> tuple[ExecutionResult, float]:
        registry = ToolRegistry()
        robots = Robots(web, user_agent="t/1", clock=trio.current_time)
        register_web_tool(registry, web, robots, FetchOptions())
        began_s = trio.current_time()
        result = await ToolExecutor(registry).execute("fetch_url", {"url": "http://site.example/"})
        return result, trio.current_time() - began_s

    result, took_s = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert "no whole answer within 25 s" in str(result.error)
    assert took_s == pytest.approx(25)
    assert web.asked == ["http://site.example/robots.txt", "http://site.example/"]


async def test_a_site_that_accepts_and_says_nothing_is_left() -> None:
    """F-06."""

    def answer(*_: object) -> None:
        listener.released.wait(WAIT_S)

    with listening(answer) as listener:
        registry = ToolRegistry()
        web = WebClient(Reach(hosts=frozenset({"127.0.0.1"}), deadline_s=1), user_agent="t/1")
        register_web_tool(registry, web, None, FetchOptions())
        result = await ToolExecutor(registry).execute("fetch_url", {"url": listener.url()})
        assert "no whole answer within 1 s" in str(result.error)
        assert listener.connections == 1


# --- The reader -------------------------------------------------------------------------------


def readers() -> set[int]:
    """Return the processes of ours that read pages, as the kernel lists them."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(process.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"extract_worker" in process.joinpath("cmdline").read_bytes():
                found.add(int(process.name))
        except OSError:  # it has ended
            continue
    return found


def what_holds_for(pid: int, wanted: dict[str, str]) -> tuple[dict[str, str], bytes, Path]:
    """Return limits, variables and folder of a process, once it has set those limits for itself."""
    process = Path(f"/proc/{pid}")
    until_s = time.monotonic() + WAIT_S
    limits: dict[str, str] = {}
    while limits != wanted and time.monotonic() < until_s:
        time.sleep(0.005)
        lines = process.joinpath("limits").read_text().splitlines()[1:]
        limits = {line[:26].strip(): line[26:].split()[1] for line in lines}
        limits = {name: limits[name] for name in wanted}
    return limits, process.joinpath("environ").read_bytes(), process.joinpath("cwd").readlink()


async def test_pages_are_read_by_a_process_with_limits_and_without_our_variables(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCP_TOOLS_BRAVE_KEY", "a-key-of-ours")
    site.pages["/"] = (200, HTML, b"<p>" + b"word " * 90_000)
    wanted = {
        "Max address space": str(1024**3),
        "Max cpu time": "4",
        "Max core file size": "0",
        "Max file size": "0",
    }
    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: call(url=site.url + "/"))
            while not (found := readers()):
                await anyio.lowlevel.checkpoint()
            (pid,) = found
            # It blocks the loop, so the reader gets no more than a pipe holds, and cannot end meanwhile.
            limits, variables, folder = what_holds_for(pid, wanted)
    assert limits == wanted
    assert variables == b""
    assert folder == Path("/")


async def test_a_reader_that_comes_to_no_end_is_ended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may use no processor time at all: it is stopped here."""
    assert readable.DEADLINE_S == 8  # as documented; here it would be long
    monkeypatch.setattr(readable, "DEADLINE_S", 1.0)
    site.pages["/"] = (200, HTML, b"<p>" + b"word " * 90_000)
    results: list[ExecutionResult] = []

    async def fetch() -> None:
        results.append(await call(url=site.url + "/"))

    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(fetch)
            while not (found := readers()):
                await anyio.lowlevel.checkpoint()
            (pid,) = found
            os.kill(pid, signal.SIGSTOP)
    assert "took over 1 s to read" in str(results[0].error)
    assert pid not in readers()

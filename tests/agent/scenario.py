"""One task with four tools and two questions, for any model: what it answers is planned, what runs is real.

    with site() as web:
        done = await do_the_task(client, tmp_path, web, model="…")
    check(done)

`plan(web)` is what the model's server has to answer, turn by turn, in the provider's own form. The search
engine and the page are on loopback; `search_web`, `fetch_url`, `execute_python` and `write_file` are ours.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_tools import ToolSystem
from mcp_tools.agent.loop import run_agent
from mcp_tools.agent.types import AgentLimits, AgentRun, StopReason
from mcp_tools.builtin.search.options import SearchOptions
from mcp_tools.observe.audit import AuditLog, verify
from mcp_tools.shipped import WebOptions
from mcp_tools.types import CallContext, Confirmation, ExecutionResult, ToolCall
from mcp_tools.web.types import Reach
from tests.web.listener import Listener, listening

PROMPT = "Find out what 6 times 7 is, and write a report."
REPORT = "The answer is 42.\n"
WAIT_S = 5.0
PAGE = b"<html><head><title>Sevens</title></head><body><main><p>Six sevens are 42.</p></main></body></html>"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One turn of the model: a text, and the calls after it as (id, tool, arguments)."""

    text: str
    calls: tuple[tuple[str, str, dict[str, Any]], ...] = ()


def plan(web: Site) -> tuple[Planned, ...]:
    return (
        Planned(
            text="I look in three places at once.",
            calls=(
                ("call_search", "search_web", {"query": "6 times 7"}),
                ("call_fetch", "fetch_url", {"url": web.page}),
                ("call_python", "execute_python", {"code": "print(6 * 7)"}),
            ),
        ),
        Planned(
            text="They agree, so I write it down.",
            calls=(("call_write", "write_file", {"path": "report.txt", "content": REPORT}),),
        ),
        Planned(text="The report is written."),
    )


@dataclass(kw_only=True)
class Done:
    """What became of the task, and everything that was told meanwhile."""

    web: Site
    run: AgentRun
    folder: Path
    audit: Path
    asked: list[Confirmation]
    started: list[ToolCall]
    ended: list[tuple[ToolCall, ExecutionResult]]
    streamed: str


class Site:
    """A SearXNG instance and a page. Both answer when all three calls have started: in turn, none would."""

    def __init__(self) -> None:
        self.listener: Listener
        self.all_there = threading.Event()
        self._names: set[str] = set()

    @property
    def page(self) -> str:
        return self.listener.url("/seven")

    @property
    def asked(self) -> list[str]:
        return sorted(head.split()[1].decode().partition("?")[0] for head in self.listener.heads)

    def arrived(self, name: str) -> None:
        self._names.add(name)
        if len(self._names) == 3:
            self.all_there.set()

    def answer(self, peer: socket.socket, head: bytes) -> None:
        path = head.split()[1]
        if path == b"/robots.txt":
            status, kind, body = "200 OK", "text/plain", b"User-agent: *\nDisallow: /private\n"
        elif not self.all_there.wait(WAIT_S):
            status, kind, body = "503 Service Unavailable", "text/plain", b"one after another"
        elif path.startswith(b"/search?"):
            hit = {"title": "Sevens", "url": self.page, "content": "Six of them.", "engine": "loopback"}
            found = {"query": "6 times 7", "results": [hit], "unresponsive_engines": []}
            status, kind, body = "200 OK", "application/json", json.dumps(found).encode()
        else:
            status, kind, body = "200 OK", "text/html; charset=utf-8", PAGE
        peer.sendall(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )


@contextmanager
def site() -> Iterator[Site]:
    web = Site()
    with listening(web.answer) as web.listener:
        yield web


async def do_the_task(
    client: Any,
    folder: Path,
    web: Site,
    *,
    model: str,
    yes: bool = True,
    stream: bool = True,
    limits: AgentLimits | None = None,
) -> Done:
    """Let a model do the task with real tools, rules, questions and records.

    Args:
        client: As `run_agent` takes it.
        folder: An empty one.
        web: What there is to be found.
        yes: What a person says to the question before the file is written. The page may be read.
        stream: Whether the text is asked for as it comes.
    """
    root, audit = folder / "root", folder / "state" / "audit.jsonl"
    root.mkdir()
    asked: list[Confirmation] = []
    started: list[ToolCall] = []
    ended: list[tuple[ToolCall, ExecutionResult]] = []
    pieces: list[str] = []

    async def confirm(question: Confirmation) -> bool:
        asked.append(question)
        return yes or question.tool_name == "fetch_url"

    def on_call(call: ToolCall) -> None:
        started.append(call)
        web.arrived(call.name)

    async def on_result(call: ToolCall, result: ExecutionResult) -> None:
        ended.append((call, result))

    here = Reach(hosts=frozenset({f"127.0.0.1:{web.listener.port}"}))
    options = WebOptions(
        search=SearchOptions(providers=("searxng",), searxng_url=web.listener.url()),
        reach=here,
        search_reach=here,
    )
    with (
        AuditLog(audit) as auditor,
        ToolSystem.with_builtins([root], web=options, auditor=auditor) as tools,
    ):
        run = await run_agent(
            PROMPT,
            tools,
            client=client,
            model=model,
            system="You work carefully.",
            limits=limits if limits is not None else AgentLimits(seconds=WAIT_S * 2),
            confirm=confirm,
            on_text=pieces.append if stream else None,
            on_call=on_call,
            on_result=on_result,
            context=CallContext(principal="ada", session_id="s-1"),
        )
    return Done(
        web=web,
        run=run,
        folder=root,
        audit=audit,
        asked=asked,
        started=started,
        ended=ended,
        streamed="".join(pieces),
    )


def check(done: Done, *, wrote: bool = True, streamed: bool = True) -> None:
    """Assert that the task was done as planned, whatever the provider."""
    run, turns = done.run, plan(done.web)
    assert (run.stop, run.error) == (StopReason.FINISHED, None), run.detail
    assert run.steps == len(turns)
    assert run.text == turns[-1].text
    assert done.web.asked == ["/robots.txt", "/search", "/seven"]
    if streamed:
        assert done.streamed == "".join(turn.text for turn in turns)
    # In the order asked for, whatever order they ended in.
    planned = [(call_id, name) for turn in turns for call_id, name, _ in turn.calls]
    assert [(call.id, call.name) for call, _ in run.results] == planned
    assert {call.id for call in done.started} == {call.id for call, _ in done.ended}
    outcome = {call.name: result for call, result in run.results}
    assert all(outcome[name].is_success for name in ("search_web", "fetch_url", "execute_python"))
    said = {name: result.to_observation() for name, result in outcome.items()}
    assert done.web.page in said["search_web"]
    assert "Six sevens are 42." in said["fetch_url"]
    assert "42" in said["execute_python"]
    # An address can carry away what was read, so a page is asked about where there are files.
    assert [question.tool_name for question in done.asked] == ["fetch_url", "write_file"]
    report = done.folder / "report.txt"
    assert outcome["write_file"].is_success is wrote
    assert (report.read_text() == REPORT) if wrote else not report.exists()
    assert {(r.principal, r.session_id, r.transport) for _, r in run.results} == {("ada", "s-1", "agent")}
    assert run.usage.calls == (4 if wrote else 3)
    assert run.usage.input_tokens > 0
    found = verify(done.audit)
    assert found.damage is None, found
    assert not found.unfinished

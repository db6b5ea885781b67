"""One task with three tools and a question, for any model: what it answers is planned, what runs is real.

    done = await do_the_task(client, tmp_path, model="…")
    check(done)

`PLAN` is what the model's server has to answer, turn by turn, in the provider's own form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from mcp_tools import ToolSystem
from mcp_tools.agent.loop import run_agent
from mcp_tools.agent.types import AgentLimits, AgentRun, StopReason
from mcp_tools.observe.audit import AuditLog, verify
from mcp_tools.types import CallContext, Confirmation, ExecutionResult, ToolAnnotations, ToolCall

PROMPT = "Find out what 6 times 7 is, and write a report."
REPORT = "The answer is 42.\n"
WAIT_S = 15.0
READS = ToolAnnotations(read_only_hint=True, destructive_hint=False)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One turn of the model: a text, and the calls after it as (id, tool, arguments)."""

    text: str
    calls: tuple[tuple[str, str, dict[str, Any]], ...] = ()


PLAN = (
    Planned(
        text="I look in three places at once.",
        calls=(
            ("call_search", "search_web", {"query": "6 times 7"}),
            ("call_fetch", "fetch_url", {"url": "http://example.test/seven"}),
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

    run: AgentRun
    folder: Path
    audit: Path
    asked: list[Confirmation]
    started: list[ToolCall]
    ended: list[tuple[ToolCall, ExecutionResult]]
    streamed: str
    were_together: bool


@dataclass
class _Together:
    """Search and fetch wait here until all three have started: one after another, they never would."""

    expected: int = 3
    names: set[str] = field(default_factory=set)
    all_there: anyio.Event = field(default_factory=anyio.Event)

    def arrived(self, name: str) -> None:
        self.names.add(name)
        if len(self.names) == self.expected:
            self.all_there.set()

    async def wait(self) -> None:
        with anyio.fail_after(WAIT_S):
            await self.all_there.wait()


async def do_the_task(
    client: Any,
    folder: Path,
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
        yes: What a person says to the question before the file is written.
        stream: Whether the text is asked for as it comes.
    """
    root, audit = folder / "root", folder / "state" / "audit.jsonl"
    root.mkdir()
    together = _Together()
    asked: list[Confirmation] = []
    started: list[ToolCall] = []
    ended: list[tuple[ToolCall, ExecutionResult]] = []
    pieces: list[str] = []

    async def confirm(question: Confirmation) -> bool:
        asked.append(question)
        return yes

    def on_call(call: ToolCall) -> None:
        started.append(call)
        together.arrived(call.name)

    async def on_result(call: ToolCall, result: ExecutionResult) -> None:
        ended.append((call, result))

    with AuditLog(audit) as auditor, ToolSystem.with_builtins([root], auditor=auditor) as tools:
        _register_web(tools, together)
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
        run=run,
        folder=root,
        audit=audit,
        asked=asked,
        started=started,
        ended=ended,
        streamed="".join(pieces),
        were_together=together.all_there.is_set(),
    )


def _register_web(tools: ToolSystem, together: _Together) -> None:
    for name in ("search_web", "fetch_url"):
        if name in tools.registry:  # nothing may leave this machine
            tools.registry.remove(name)

    @tools.register(annotations=READS)
    async def search_web(query: str) -> list[dict[str, str]]:
        """Search the web."""
        await together.wait()
        return [{"title": f"About {query}", "url": "http://example.test/seven", "snippet": "It is 42."}]

    @tools.register(annotations=READS)
    async def fetch_url(url: str) -> str:
        """Read a page."""
        await together.wait()
        return f"The page at {url} says: 42."


def check(done: Done, *, wrote: bool = True, streamed: bool = True) -> None:
    """Assert that the task was done as planned, whatever the provider."""
    run = done.run
    assert (run.stop, run.error) == (StopReason.FINISHED, None), run.detail
    assert run.steps == len(PLAN)
    assert run.text == PLAN[-1].text
    assert done.were_together
    if streamed:
        assert done.streamed == "".join(turn.text for turn in PLAN)
    # In the order asked for, whatever order they ended in.
    planned = [(call_id, name) for turn in PLAN for call_id, name, _ in turn.calls]
    assert [(call.id, call.name) for call, _ in run.results] == planned
    assert {call.id for call in done.started} == {call.id for call, _ in done.ended}
    outcome = {call.name: result for call, result in run.results}
    assert all(outcome[name].is_success for name in ("search_web", "fetch_url", "execute_python"))
    assert "42" in outcome["execute_python"].to_observation()
    assert [question.tool_name for question in done.asked] == ["write_file"]
    report = done.folder / "report.txt"
    assert outcome["write_file"].is_success is wrote
    assert (report.read_text() == REPORT) if wrote else not report.exists()
    assert {(r.principal, r.session_id, r.transport) for _, r in run.results} == {("ada", "s-1", "agent")}
    assert run.usage.calls == (4 if wrote else 3)
    assert run.usage.input_tokens > 0
    found = verify(done.audit)
    assert found.damage is None, found
    assert not found.unfinished

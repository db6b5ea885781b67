"""A run ends: by itself, by a limit, by a failure, from outside. Its history can always be gone on with."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anthropic import AsyncAnthropic

from mcp_tools import ToolSystem
from mcp_tools.agent.loop import MAX_EMPTY_TURNS, MAX_SAME_TURNS, run_agent
from mcp_tools.agent.types import AgentLimits, AgentRun, StopReason
from mcp_tools.observe.audit import AuditLog, verify
from mcp_tools.types import CallContext, ErrorCode, ExecutionStatus, ToolCall, Usage
from tests.agent.anthropic_server import (
    KEY,
    MODEL,
    Answer,
    AnthropicServer,
    Failure,
    Script,
    asks,
    says,
    text,
    thinking,
    use,
)

WAIT_S = 15.0


@asynccontextmanager
async def talking(script: Script) -> AsyncIterator[tuple[AnthropicServer, AsyncAnthropic]]:
    with AnthropicServer(script) as server:
        async with AsyncAnthropic(api_key=KEY, base_url=server.url, max_retries=0) as client:
            yield server, client
        assert server.refused == []


async def assert_can_go_on(run: AgentRun) -> None:
    """The provider takes the history with one more message of a person."""
    async with talking([says("Gone on.")]) as (_, client):
        again = [*run.messages, {"role": "user", "content": "Go on."}]
        assert (await run_agent(again, ToolSystem(), client=client, model=MODEL)).text == "Gone on."


class Bench:
    """Tools that wait, count and cost."""

    def __init__(self, audit: Path) -> None:
        self.audit = audit
        self.auditor = AuditLog(audit)
        self.tools = ToolSystem(auditor=self.auditor)
        self.hanging = anyio.Event()
        self.to_hang = 1
        self.was_cancelled = anyio.Event()
        self.done: list[str] = []

        @self.tools.register
        async def hang() -> str:
            """Never end."""
            self.to_hang -= 1
            if self.to_hang == 0:
                self.hanging.set()
            try:
                await anyio.sleep(WAIT_S * 4)
            except BaseException:
                self.was_cancelled.set()
                raise
            return "never"

        @self.tools.register
        async def note(what: str) -> str:
            """Note something."""
            self.done.append(what)
            return f"noted {what}"

        @self.tools.register(price_usd=2.0)
        async def costly(context: CallContext) -> str:
            """Cost money, and report tokens of a model of its own."""
            context.meter.add(Usage(cost_usd=1.0, input_tokens=7, output_tokens=9))
            return "paid"

        @self.tools.register(requires_confirmation=True)
        async def danger() -> str:
            """Do something that a person is asked about."""
            self.done.append("danger")
            return "done"

    async def run(self, client: Any, **options: Any) -> AgentRun:
        with anyio.fail_after(WAIT_S):
            return await run_agent("Go.", self.tools, client=client, model=MODEL, **options)

    def assert_recorded(self, *, calls: int) -> None:
        """Every call that began has its end in the log."""
        found = verify(self.audit)
        assert found.is_whole
        assert found.unfinished_count == 0
        lines = self.audit.read_text().splitlines()
        assert sum('"call.intent"' in line for line in lines) == calls, lines


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "state" / "audit.jsonl")
    with made.auditor, made.tools:
        yield made


def forever(answer: Answer) -> Iterator[Answer]:
    while True:
        yield answer


def numbered(name: str = "note") -> Iterator[Answer]:
    """A model that never stops, and never repeats itself."""
    number = 0
    while True:
        number += 1
        yield asks(use(f"t{number}", name, {"what": str(number)}))


# --- By itself --------------------------------------------------------------------------------


async def test_it_ends_when_the_model_wants_nothing_more(bench: Bench) -> None:
    script = [asks(use("t1", "note", {"what": "a"}), said="One."), says("Done.")]
    async with talking(script) as (_, client):
        run = await bench.run(client)
    assert (run.stop, run.text, run.steps) == (StopReason.FINISHED, "Done.", 2)
    assert run.detail == "the model wants nothing more"
    assert [call.id for call, _ in run.results] == ["t1"]
    assert (run.usage.calls, run.usage.input_tokens, run.usage.output_tokens) == (1, 40, 20)
    bench.assert_recorded(calls=1)


async def test_usage_is_that_of_the_model_and_the_tools_together(bench: Bench) -> None:
    async with talking([asks(use("t1", "costly")), says("Done.")]) as (_, client):
        run = await bench.run(client)
    # The tokens are those of the model that is asked: results come back to it as what is sent.
    assert (run.usage.input_tokens, run.usage.output_tokens) == (40, 20)
    assert 3.0 < run.usage.cost_usd < 3.01


async def test_an_answer_that_pauses_is_asked_to_go_on(bench: Bench) -> None:
    own = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    pause = Answer(blocks=[text("I look."), own], stop="pause_turn")
    rest = Answer(blocks=[found, text("Found.")])
    async with talking([pause, rest]) as (server, client):
        run = await bench.run(client)
    assert (run.stop, run.text, run.steps) == (StopReason.FINISHED, "Found.", 2)
    assert server.requests[1]["messages"][-1]["content"][-1]["id"] == "srvtoolu_1"


async def test_an_answer_that_pauses_at_a_limit_is_not_kept(bench: Bench) -> None:
    own = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
    async with talking(forever(Answer(blocks=[text("I look."), own], stop="pause_turn"))) as (_, client):
        run = await bench.run(client, limits=AgentLimits(steps=1))
    assert (run.stop, run.text) == (StopReason.STEPS, "I look.")
    await assert_can_go_on(run)


async def test_a_refusal_runs_nothing(bench: Bench) -> None:
    refusal = Answer(blocks=[text("No."), use("t1", "note", {"what": "a"})], stop="refusal")
    async with talking([refusal]) as (_, client):
        run = await bench.run(client)
    assert (run.stop, run.detail) == (StopReason.REFUSED, "the model refused to go on")
    assert bench.done == []
    await assert_can_go_on(run)


async def test_a_call_that_is_cut_off_is_not_run_and_the_model_is_told(bench: Bench) -> None:
    cut = Answer(blocks=[use("t1", "note", raw='{"what": "rm -')], stop="max_tokens")
    async with talking([cut, asks(use("t2", "note", {"what": "short"})), says("Done.")]) as (server, client):
        run = await bench.run(client, on_text=print)
    assert (run.stop, bench.done) == (StopReason.FINISHED, ["short"])
    (told,) = server.requests[1]["messages"][-1]["content"]
    assert told["is_error"] is True
    assert "cut off for want of tokens" in told["content"]


async def test_answers_that_are_cut_off_again_and_again_end_it(bench: Bench) -> None:
    script = (Answer(blocks=[use(f"t{n}", "note", {})], stop="max_tokens") for n in range(100))
    async with talking(script) as (server, client):
        run = await bench.run(client)
    assert (run.stop, len(server.requests), bench.done) == (StopReason.CUT, 3, [])
    await assert_can_go_on(run)


@pytest.mark.parametrize("stop", ["max_tokens", "model_context_window_exceeded"])
async def test_a_text_that_is_cut_off_ends_it(bench: Bench, stop: str) -> None:
    async with talking([Answer(blocks=[text("Half a"), thinking("…")], stop=stop)]) as (_, client):
        run = await bench.run(client)
    assert (run.stop, run.text) == (StopReason.CUT, "Half a")
    await assert_can_go_on(run)


async def test_a_call_whose_arguments_cannot_be_read_is_on_record(bench: Bench) -> None:
    told: list[str] = []
    script = [asks(use("t1", "note", raw="[1")), says("Done.")]
    async with talking(script) as (_, client):
        run = await bench.run(
            client,
            on_text=print,
            on_call=lambda call: told.append(f"{call.id} began"),
            on_result=lambda call, result: told.append(f"{call.id} {result.error_code}"),
        )
    ((call, result),) = run.results
    assert (call.arguments, result.error_code) == ({}, ErrorCode.INVALID_ARGUMENTS)
    assert told == ["t1 began", "t1 invalid_arguments"]
    bench.assert_recorded(calls=0)
    assert '"call.outcome"' in bench.audit.read_text()


# --- A model that says nothing ----------------------------------------------------------------


@pytest.mark.parametrize("blocks", [[], [text(" ")], [thinking("hm")]], ids=["empty", "blank", "thinking"])
async def test_a_model_that_says_nothing_is_asked_again_but_not_for_ever(
    bench: Bench, blocks: list[dict[str, Any]]
) -> None:
    async with talking(forever(Answer(blocks=blocks))) as (server, client):
        run = await bench.run(client, limits=AgentLimits(steps=None, seconds=None))
    assert (run.stop, run.text) == (StopReason.SILENT, "")
    assert len(server.requests) == run.steps == MAX_EMPTY_TURNS
    await assert_can_go_on(run)


async def test_a_model_that_silently_repeats_itself_is_stopped(bench: Bench) -> None:
    """Ids that repeat are told apart, so that only the calls themselves are compared."""
    script = forever(asks(use("t1", "note", {"what": "again"})))
    async with talking(script) as (_, client):
        run = await bench.run(client, limits=AgentLimits(steps=None, seconds=None))
    assert (run.stop, run.steps) == (StopReason.SILENT, MAX_SAME_TURNS)
    await assert_can_go_on(run)


async def test_other_results_or_a_word_are_no_repetition(bench: Bench) -> None:
    @bench.tools.register
    async def clock() -> int:
        """Tell the time."""
        bench.done.append("tick")
        return len(bench.done)

    polling = [asks(use(f"p{n}", "clock")) for n in range(8)]
    talkative = [asks(use(f"w{n}", "note", {"what": "a"}), said=f"Try {n}.") for n in range(8)]
    async with talking([*polling, *talkative, says("Done.")]) as (_, client):
        run = await bench.run(client)
    assert (run.stop, run.steps) == (StopReason.FINISHED, 17)


# --- Limits -----------------------------------------------------------------------------------


async def test_steps_end_it_after_the_last_calls_have_run(bench: Bench) -> None:
    async with talking(numbered()) as (_, client):
        run = await bench.run(client, limits=AgentLimits(steps=3))
    assert (run.stop, run.steps, bench.done) == (StopReason.STEPS, 3, ["1", "2", "3"])
    assert "limit of its steps" in run.detail
    await assert_can_go_on(run)


async def test_tokens_end_it_before_the_calls_of_the_turn_that_passed_the_limit(bench: Bench) -> None:
    async with talking(numbered()) as (_, client):
        run = await bench.run(client, limits=AgentLimits(tokens=50))
    assert (run.stop, run.steps, bench.done) == (StopReason.TOKENS, 2, ["1"])
    assert run.detail == "the run has used 60 tokens; its limit is 50"
    (_, last) = run.results[-1]
    assert (last.status, last.error) == (ExecutionStatus.CANCELLED, f"not run: {run.detail}")
    await assert_can_go_on(run)


async def test_cost_of_tools_and_model_ends_it(bench: Bench) -> None:
    script = [asks(use(f"t{n}", "costly")) for n in range(9)]
    async with talking(script) as (_, client):
        run = await bench.run(client, limits=AgentLimits(cost_usd=5.0))
    assert (run.stop, run.steps) == (StopReason.COST, 2)
    assert "its limit is 5" in run.detail
    await assert_can_go_on(run)


async def test_an_answer_of_a_model_without_a_price_is_priced_as_the_one_asked_for(bench: Bench) -> None:
    usage = {"input_tokens": 1_000_000}
    script = [
        Answer(blocks=[use("t1", "note", {"what": "a"})], stop="tool_use", usage=usage, model="alias-x")
    ]
    async with talking(script) as (_, client):
        run = await bench.run(client, limits=AgentLimits(cost_usd=1.0))
    assert (run.stop, bench.done) == (StopReason.COST, [])


async def test_a_limit_on_cost_that_cannot_be_kept_is_refused_before_the_first_turn(bench: Bench) -> None:
    async with talking([]) as (server, client):
        run = await run_agent(
            "Go.", bench.tools, client=client, model="a-model-of-ours", limits=AgentLimits(cost_usd=1.0)
        )
    assert (run.stop, run.steps, server.requests) == (StopReason.COST, 0, [])
    assert "'a-model-of-ours' costs is not known" in run.detail


async def test_time_stops_the_calls_that_run_and_keeps_what_had_ended(bench: Bench) -> None:
    calls = [use("t1", "note", {"what": "a"}), use("t2", "hang"), use("t3", "danger")]
    told: list[str] = []
    async with talking([asks(*calls)]) as (_, client):
        run = await bench.run(
            client,
            limits=AgentLimits(seconds=1.0),
            confirm=lambda _: anyio.sleep(WAIT_S * 4),
            on_result=lambda call, result: told.append(f"{call.name} {result.status}"),
        )
    assert (run.stop, run.detail) == (StopReason.TIME, "the run was stopped after 1 s, the limit of its time")
    noted, hung, asked = (result for _, result in run.results)
    assert noted.is_success
    assert hung.error_code is asked.error_code is ErrorCode.CANCELLED
    assert "part of it may have happened" in str(hung.error)
    assert bench.was_cancelled.is_set()
    assert bench.done == ["a"]
    assert sorted(told) == ["danger cancelled", "hang cancelled", "note success"]
    bench.assert_recorded(calls=2)
    await assert_can_go_on(run)


async def test_a_cancelled_scope_ends_the_run_as_a_limit_would(bench: Bench) -> None:
    scope = anyio.CancelScope()

    async def stop() -> None:
        await bench.hanging.wait()
        scope.cancel()

    script = [asks(use("t1", "note", {"what": "a"}), use("t2", "hang"))]
    async with talking(script) as (_, client), anyio.create_task_group() as group:
        group.start_soon(stop)
        with anyio.fail_after(WAIT_S):
            run = await bench.run(client, scope=scope)
    assert (run.stop, run.detail) == (StopReason.INTERRUPTED, "the run was interrupted")
    assert run.is_usage_whole
    noted, hung = (result for _, result in run.results)
    assert noted.is_success
    assert hung.error_code is ErrorCode.CANCELLED
    assert bench.was_cancelled.is_set()
    await assert_can_go_on(run)


async def test_the_deadline_of_a_scope_is_kept_beside_the_limit(bench: Bench) -> None:
    hold = threading.Event()
    async with talking([Answer(blocks=[text("late")], hold=hold)]) as (_, client):
        try:
            run = await bench.run(client, scope=anyio.CancelScope(deadline=anyio.current_time() + 0.3))
        finally:
            hold.set()
    assert (run.stop, run.is_usage_whole) == (StopReason.INTERRUPTED, False)


async def test_progress_is_told_with_its_call_and_a_callback_that_fails_changes_nothing(bench: Bench) -> None:
    @bench.tools.register
    async def count(context: CallContext) -> str:
        """Count."""
        for number in (1, 2):
            await context.report_progress(number, 2, "counting")
        return "2"

    told: list[object] = []
    shared: list[object] = []

    async def shared_progress(
        progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        shared.append(progress)

    def on_progress(call: ToolCall, progress: float, total: float | None, message: str | None) -> None:
        told.append((call.id, call.name, progress, total, message))
        raise ValueError("not ours")

    script = [asks(use("t1", "count")), says("Counted.")]
    async with talking(script) as (_, client):
        context = CallContext(on_progress=shared_progress)
        run = await bench.run(client, on_progress=on_progress, context=context)
    assert run.stop is StopReason.FINISHED
    assert told == [("t1", "count", 1, 2, "counting"), ("t1", "count", 2, 2, "counting")]
    assert shared == [1, 2]


@pytest.mark.parametrize("stream", [True, False])
async def test_time_ends_the_wait_for_a_model_too(bench: Bench, stream: bool) -> None:
    hold = threading.Event()
    answer = Answer(blocks=[text("late"), use("t1", "note", {"what": "a"})], hold=hold, held_after=4)
    async with talking([answer]) as (_, client):
        try:
            run = await bench.run(client, limits=AgentLimits(seconds=0.3), on_text=print if stream else None)
        finally:
            hold.set()
    assert (run.stop, run.steps, bench.done) == (StopReason.TIME, 0, [])
    assert not run.is_usage_whole
    assert run.messages == [{"role": "user", "content": "Go."}]


@pytest.mark.parametrize("limits", [AgentLimits(steps=0), AgentLimits(tokens=0), AgentLimits(seconds=0)])
async def test_a_limit_of_nothing_asks_nothing(bench: Bench, limits: AgentLimits) -> None:
    async with talking([]) as (server, client):
        run = await bench.run(client, limits=limits)
    assert run.stop in (StopReason.STEPS, StopReason.TOKENS, StopReason.TIME)
    assert server.requests == []


# --- Failures, and from outside ---------------------------------------------------------------


async def test_a_failure_of_the_provider_ends_it_with_the_history_as_it_was(bench: Bench) -> None:
    script = [asks(use("t1", "note", {"what": "a"})), Failure(status=529, kind="overloaded_error")]
    async with talking(script) as (_, client):
        run = await bench.run(client)
    assert run.stop is StopReason.FAILED
    assert run.error is not None
    assert (run.error.status, run.detail) == (529, str(run.error))
    assert bench.done == ["a"]
    await assert_can_go_on(run)


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_cancelling_it_stops_the_calls_and_each_has_its_end_in_the_log(bench: Bench, how: str) -> None:
    calls = [use("t1", "note", {"what": "a"}), use("t2", "hang"), use("t3", "hang")]
    bench.to_hang = 2
    async with talking([asks(*calls), says("never asked")]) as (server, client):
        if how == "task":
            task = asyncio.create_task(bench.run(client))
            await asyncio.wait_for(bench.hanging.wait(), WAIT_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(bench.run, client)
                    await bench.hanging.wait()
                    scope.cancel()
            assert scope.cancelled_caught
    assert len(server.requests) == 1
    assert bench.was_cancelled.is_set()
    bench.assert_recorded(calls=3)


async def test_callbacks_that_fail_are_logged_and_change_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no screen")

    async with talking([asks(use("t1", "note", {"what": "a"})), says("Done.")]) as (_, client):
        with caplog.at_level(logging.ERROR):
            run = await bench.run(client, on_call=broken, on_result=broken, on_text=broken)
    assert (run.stop, bench.done) == (StopReason.FINISHED, ["a"])
    assert caplog.text.count("no screen") >= 3


async def test_a_call_that_needs_a_yes_is_not_run_where_nobody_can_be_asked(bench: Bench) -> None:
    async with talking([asks(use("t1", "danger")), says("Then not.")]) as (server, client):
        run = await bench.run(client)
    assert (run.stop, bench.done) == (StopReason.FINISHED, [])
    (told,) = server.requests[1]["messages"][-1]["content"]
    assert "a person must confirm this call" in told["content"]


async def test_the_confirm_of_the_tool_system_is_asked_where_no_other_is_given(tmp_path: Path) -> None:
    asked: list[str] = []

    def confirm(question: Any) -> bool:
        asked.append(question.tool_name)
        return True

    tools = ToolSystem(confirm=confirm)

    @tools.register(requires_confirmation=True)
    async def danger() -> str:
        """Do something that a person is asked about."""
        return "done"

    async with talking([asks(use("t1", "danger")), says("Done.")]) as (_, client):
        run = await run_agent("Go.", tools, client=client, model=MODEL)
    assert asked == ["danger"]
    assert run.results[0][1].is_success


def test_it_runs_on_trio_too() -> None:
    ended: list[str] = []

    async def main() -> None:
        tools = ToolSystem()

        @tools.register
        async def hang() -> str:
            """Never end."""
            try:
                await anyio.sleep(WAIT_S * 4)
            finally:
                ended.append("hang")
            return "never"

        @tools.register
        async def note(what: str) -> str:
            """Note something."""
            return what

        script = [asks(use("t1", "note", {"what": "a"})), asks(use("t2", "hang"))]
        async with talking(script) as (_, client):
            run = await run_agent(
                "Go.", tools, client=client, model=MODEL, on_text=print, limits=AgentLimits(seconds=1.5)
            )
        assert [result.status for _, result in run.results] == ["success", "cancelled"], run
        assert (run.stop, run.steps) == (StopReason.TIME, 2)

    anyio.run(main, backend="trio")
    assert ended == ["hang"]


async def test_a_history_that_is_given_is_not_changed(bench: Bench) -> None:
    given = [{"role": "user", "content": "Go."}]
    async with talking([asks(use("t1", "note", {"what": "a"})), says("Done.")]) as (_, client):
        run = await run_agent(given, bench.tools, client=client, model=MODEL)
    assert given == [{"role": "user", "content": "Go."}]
    assert len(run.messages) == 4

"""What spans and durations say of calls, read from OpenTelemetry's own in-memory exporter."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from mcp_tools import CallContext, ToolSystem
from mcp_tools.observe.content import MAX_CHARS, render_content
from mcp_tools.observe.correlate import add_trace_ids
from mcp_tools.observe.tracing import TracingObserver
from mcp_tools.types import Approval
from tests.observe.conftest import MakeSystem

KEY = "sk-abcdefghijklmnopqrstuvwxyz012345"


class Told:
    """Providers of a test's own, and what they were told."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)

    def observer(self, **options: Any) -> TracingObserver:
        return TracingObserver(tracer_provider=self.tracers, meter_provider=self.meters, **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def points(self, name: str) -> list[tuple[dict[str, Any], int]]:
        data = self._reader.get_metrics_data()
        found = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        return [
            (dict(point.attributes or {}), point.count)
            for metric in found
            if metric.name == name
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
        ]

    def counts(self, name: str) -> list[tuple[dict[str, Any], float]]:
        data = self._reader.get_metrics_data()
        found = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        return [
            (dict(point.attributes or {}), point.value)
            for metric in found
            if metric.name == name
            for point in metric.data.data_points
            if isinstance(point, NumberDataPoint)
        ]


@pytest.fixture
def told() -> Told:
    return Told()


async def test_a_call_from_a_program_has_a_span_of_ours_below_the_programs(
    told: Told, make_system: MakeSystem
) -> None:
    system = make_system(observers=[told.observer()])
    with told.tracers.get_tracer("program").start_as_current_span("turn") as turn:
        await system.execute("spends", {}, CallContext(call_id="c1"))
        assert trace.get_current_span() is turn
    span = told.span("execute_tool spends")
    assert span.parent == turn.get_span_context()
    assert span.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "spends",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "c1",
        "gen_ai.usage.input_tokens": 1_000,
        "gen_ai.usage.output_tokens": 20,
        "mcp_tools.cost_usd": 0.25,
        "mcp_tools.decision": "allow",
        "mcp_tools.sandbox.cpu_s": 1.5,
        "mcp_tools.status": "success",
    }
    assert dict(told.span("turn").attributes or {}) == {}


async def test_what_a_tool_does_is_below_its_call(told: Told) -> None:
    system = ToolSystem(observers=[told.observer()])
    tracer = told.tracers.get_tracer("inside")

    @system.register
    async def on_the_loop() -> None:
        """Trace."""
        tracer.start_span("loop work").end()

    @system.register
    def in_a_thread() -> None:
        """Trace."""
        tracer.start_span("thread work").end()

    await system.execute("on_the_loop")
    await system.execute("in_a_thread")
    for inner, outer in [("loop work", "on_the_loop"), ("thread work", "in_a_thread")]:
        assert told.span(inner).parent == told.span(f"execute_tool {outer}").get_span_context()
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_call_from_within_a_call_has_a_span_of_its_own(told: Told, make_system: MakeSystem) -> None:
    system = make_system(observers=[told.observer()])

    @system.register
    async def outer(context: CallContext) -> str:
        """Call others, under the same call id, one of them in vain."""
        await system.execute("echo", {"text": "a"}, context)
        await system.execute("echo", {"wrong": "a"}, context)
        await system.execute("no_such", {}, context)
        return "done"

    await system.execute("outer", {}, CallContext(call_id="same"))
    above = told.span("execute_tool outer").get_span_context()
    inner = [span for span in told.spans if span.name != "execute_tool outer"]
    assert [span.name for span in inner] == [
        "execute_tool echo",
        "execute_tool echo",
        "execute_tool (unknown)",
    ]
    assert [span.parent for span in inner] == [above] * 3
    assert [(span.attributes or {})["mcp_tools.status"] for span in inner] == [
        "success",
        "validation_error",
        "error",
    ]


async def test_failures_say_why_and_nothing_of_the_text(told: Told, make_system: MakeSystem) -> None:
    system = make_system(observers=[told.observer()])
    await system.execute("breaks", {"how": "bug"})
    span = told.span("execute_tool breaks")
    attributes = span.attributes or {}
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert (attributes["error.type"], attributes["mcp_tools.error_code"]) == ("tool_error", "tool_exception")
    assert "a bug" not in span.to_json()


async def test_many_calls_at_once_do_not_mix_their_spans(told: Told) -> None:
    system = ToolSystem(observers=[told.observer()])
    tracer = told.tracers.get_tracer("inside")

    @system.register
    async def works(name: str) -> None:
        """Trace after a pause."""
        await anyio.lowlevel.checkpoint()
        tracer.start_span(f"inside {name}").end()

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(
                system.execute, "works", {"name": str(number)}, CallContext(call_id=f"c{number}")
            )
    by_id = {span.context.span_id: span for span in told.spans if span.context is not None}
    for number in range(50):
        parent = told.span(f"inside {number}").parent
        assert parent is not None
        assert (by_id[parent.span_id].attributes or {})["gen_ai.tool.call.id"] == f"c{number}"


async def test_a_cancelled_call_ends_its_span(told: Told) -> None:
    system = ToolSystem(observers=[told.observer()])
    inside = anyio.Event()

    @system.register
    async def waits() -> None:
        """Wait."""
        inside.set()
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(system.execute, "waits")
            await inside.wait()
            group.cancel_scope.cancel()
    assert (told.span("execute_tool waits").attributes or {})["mcp_tools.status"] == "cancelled"


async def test_questions_and_answers_are_on_spans(told: Told, make_system: MakeSystem) -> None:
    system = make_system(observers=[told.observer()])
    question = await system.execute("asks", {"path": "a"})
    assert question.confirmation is not None
    approval = Approval(confirmation_id=question.confirmation.id, channel="terminal")
    await system.execute("asks", {"path": "a"}, CallContext(approval=approval))
    asked, answered = [span.attributes or {} for span in told.spans]
    assert asked["mcp_tools.error_code"] == "confirmation_required"
    assert (answered["mcp_tools.decision"], answered["mcp_tools.confirmation.channel"]) == ("ask", "terminal")


async def test_durations_are_measured_by_the_conventions(told: Told, make_system: MakeSystem) -> None:
    system = make_system(observers=[told.observer()])
    await system.execute("echo", {"text": "a"}, CallContext(transport="stdio"))
    await system.execute("breaks", {}, CallContext(transport="http"))
    await system.execute("made up", {}, CallContext(transport="http"))
    await system.execute("asks", {"path": "a"}, CallContext(transport="http"))
    await system.execute("echo", {"text": "a"})
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "echo"}
    failed = {**tool, "gen_ai.tool.name": "breaks", "error.type": "tool_error"}
    assert told.points("gen_ai.execute_tool.duration") == [(tool, 2), (failed, 1)]
    mcp = {"mcp.method.name": "tools/call", "network.transport": "tcp"}
    unknown = {**tool, "gen_ai.tool.name": "(unknown)", "error.type": "-32602"}
    assert told.points("mcp.server.operation.duration") == [
        (tool | mcp | {"network.transport": "pipe"}, 1),
        (failed | mcp, 1),
        (unknown | mcp, 1),
    ]


async def test_arguments_and_results_are_told_only_when_opted_in(told: Told, make_system: MakeSystem) -> None:
    await make_system(observers=[told.observer()]).execute("echo", {"text": f"my key is {KEY}"})
    assert "my key" not in told.spans[0].to_json()
    open_system = make_system(observers=[told.observer(capture_content=True)])
    await open_system.execute("echo", {"text": f"my key is {KEY}"})
    attributes = told.spans[1].attributes or {}
    assert attributes["gen_ai.tool.call.arguments"] == '{"text": "my key is [secret removed]"}'
    assert attributes["gen_ai.tool.call.result"] == "my key is [secret removed]"


@pytest.mark.parametrize(
    "value",
    [
        {"password": "correct horse battery"},
        {"deep": [{"api_key": "a b c d e"}]},
        {"Authorization": ["Basic x y z"]},
        {"text": '{"password": "hunter22"}'},
        {f"https://me:{KEY}@host": 1},
        {"text": KEY},
        KEY,
    ],
)
def test_secrets_stay_out_of_captured_content(value: Any) -> None:
    shown = render_content(value)
    for secret in ("correct", "battery", "a b c", "x y z", "hunter22", KEY):
        assert secret not in shown


@pytest.mark.parametrize("place", range(MAX_CHARS // 2 - 60, MAX_CHARS // 2 + 60, 7))
def test_a_secret_where_a_text_is_cut_leaves_no_part_of_it(place: int) -> None:
    shown = render_content(f"{'x' * place} {KEY} {'x' * 100_000}")
    assert KEY[:12] not in shown
    shown = render_content(f"{'x' * (2 * place)} {KEY} {'x' * 100_000}")
    assert KEY[:12] not in shown


@pytest.mark.parametrize(
    "value",
    [
        "x" * 50_000_000,
        ["x" * 10_000_000] * 10,
        list(range(2_000_000)),
        {str(number): number for number in range(500_000)},
        b"x" * 50_000_000,
        10**200_000,
        range(10**15),
    ],
    ids=["text", "texts", "list", "object", "bytes", "number", "range"],
)
def test_captured_content_is_bounded_in_size_and_work(value: Any) -> None:
    begun = time.perf_counter()
    shown = render_content(value)
    assert time.perf_counter() - begun < 0.25
    assert len(shown) <= MAX_CHARS + 100


def test_odd_content_is_told_as_text() -> None:
    loop: list[Any] = []
    loop.append(loop)
    shown = render_content({"loop": loop, "bad": "\udc80", 3: object(), "nothing": None, "nan": float("nan")})
    shown.encode()
    assert json.loads(shown)["bad"] == "\\udc80"


async def test_without_a_provider_calls_are_as_they_were(make_system: MakeSystem) -> None:
    observer = TracingObserver()
    system = make_system(observers=[observer])
    assert (await system.execute("echo", {"text": "a"})).is_success
    assert observer.errors == 0


async def test_a_broken_provider_changes_nothing_and_is_said_once(
    told: Told, make_system: MakeSystem, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = told.observer()
    monkeypatch.setattr(observer, "_tracer", None)
    system = make_system(observers=[observer])
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert (await system.execute("echo", {"text": "a"})).is_success
    assert observer.errors == 6
    assert len(caplog.messages) == 1


async def test_log_records_lead_to_their_trace(told: Told) -> None:
    record = logging.LogRecord("mcp_tools.x", logging.INFO, __file__, 1, "text", (), None)
    record.fields = {"tool": "echo"}
    assert add_trace_ids(record)
    assert record.fields == {"tool": "echo"}
    with told.tracers.get_tracer("program").start_as_current_span("turn") as turn:
        assert add_trace_ids(record)
    context = turn.get_span_context()
    assert record.fields == {
        "tool": "echo",
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
    }


async def test_the_sandbox_level_is_on_the_span(told: Told) -> None:
    system = ToolSystem(observers=[told.observer()])

    @system.register
    async def runs() -> dict[str, str]:
        """Say where it ran."""
        return {"isolation": "L4+"}

    result = await system.execute("runs")
    observer = told.observer()
    observer.call_finished(replace(result, call_id="other", structured={"isolation": "L4+"}))
    observer.call_finished(replace(result, call_id="third", structured={"isolation": "made up " * 100}))
    levels = [(span.attributes or {}).get("mcp_tools.sandbox.level") for span in told.spans[-2:]]
    assert levels == ["L4+", None]


def test_what_could_not_be_kept_is_told_as_it_stands(told: Told) -> None:
    kept = {"audit": 0, "limits": 2}
    told.observer(unavailable=lambda: kept)
    named = [{"mcp_tools.what": "audit"}, {"mcp_tools.what": "limits"}]
    assert told.counts("mcp_tools.unavailable") == list(zip(named, (0, 2), strict=True))
    kept["audit"] = 3
    assert told.counts("mcp_tools.unavailable") == list(zip(named, (3, 2), strict=True))

"""What is counted, and under which labels; scraped as Prometheus does."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mcp_tools import ExecutionResult, ToolSystem
from mcp_tools.observe.exposition import render
from mcp_tools.observe.metrics import PrometheusMetrics
from mcp_tools.outages import counted
from mcp_tools.policy import RulePolicy
from mcp_tools.types import (
    Approval,
    AuditUnavailable,
    CallContext,
    ErrorCode,
    ExecutionStatus,
    LimitRefusal,
    LimitsUnavailable,
    Usage,
)
from tests.observe.conftest import MakeSystem

Labelled = dict[tuple[str, ...], float]


def samples(metrics: PrometheusMetrics, name: str) -> Labelled:
    """Return a metric's samples by their label values, in the order of the labels' names."""
    text = render(metrics.registry).body.decode()
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"mcp_tools_{name}"
    }


async def test_calls_are_counted_by_tool_and_status(make_system: MakeSystem) -> None:
    metrics = PrometheusMetrics()
    system = make_system(observers=[metrics], policy=RulePolicy.parse(deny=[], ask=[], allow=[]))
    for name, arguments in [
        ("echo", {"text": "a"}),
        ("echo", {"text": "b"}),
        ("echo", {"wrong": 1}),
        ("breaks", {}),
        ("breaks", {"how": "bug"}),
        ("no such tool", {}),
    ]:
        await system.execute(name, arguments)
    assert samples(metrics, "calls_total") == {
        ("success", "echo"): 2,
        ("validation_error", "echo"): 1,
        ("error", "breaks"): 2,
        ("error", "(unknown)"): 1,
    }
    assert samples(metrics, "call_duration_seconds_count") == {("echo",): 2, ("breaks",): 2}
    assert samples(metrics, "inflight") == {("echo",): 0, ("breaks",): 0}


async def test_a_call_is_in_flight_while_it_runs() -> None:
    metrics = PrometheusMetrics()
    system = ToolSystem(observers=[metrics])
    inside, go_on = anyio.Event(), anyio.Event()

    @system.register
    async def waits() -> None:
        """Wait."""
        inside.set()
        await go_on.wait()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(system.execute, "waits")
            await inside.wait()
            assert samples(metrics, "inflight") == {("waits",): 1}
            go_on.set()
    assert samples(metrics, "inflight") == {("waits",): 0}


async def test_a_cancelled_call_is_no_longer_in_flight() -> None:
    metrics = PrometheusMetrics()
    system = ToolSystem(observers=[metrics])
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
    assert samples(metrics, "inflight") == {("waits",): 0}
    assert samples(metrics, "calls_total") == {("cancelled", "waits"): 1}


async def test_questions_are_counted_by_how_they_were_answered(make_system: MakeSystem) -> None:
    metrics = PrometheusMetrics()
    system = make_system(observers=[metrics])
    question = await system.execute("asks", {"path": "a"})
    assert question.confirmation is not None
    approval = Approval(confirmation_id=question.confirmation.id, channel="terminal")
    await system.execute("asks", {"path": "a"}, CallContext(approval=approval))
    await system.execute("asks", {"path": "a"}, CallContext(approval=approval))
    declined = await system.execute("asks", {"path": "b"})
    await system.executor.record_refusal(declined, code=ErrorCode.DECLINED, message="no", channel="terminal")
    counted = samples(metrics, "approvals_total")
    # Labels in the order channel, decision, tool.
    assert counted["terminal", "approved", "asks"] == 1
    assert counted["terminal", "declined", "asks"] == 1
    assert counted["(none)", "asked", "asks"] == 2
    assert sum(value for (_, decision, _), value in counted.items() if decision == "invalid") <= 1


async def test_what_calls_used_is_summed(make_system: MakeSystem) -> None:
    metrics = PrometheusMetrics()
    system = make_system(observers=[metrics])
    await system.execute("spends")
    await system.execute("spends")
    assert samples(metrics, "cost_usd_total") == {("spends",): 0.5}
    assert samples(metrics, "sandbox_cpu_seconds_total") == {("spends",): 3.0}
    assert samples(metrics, "tokens_total") == {("input", "spends"): 2_000, ("output", "spends"): 40}


class _Refusing:
    """A limiter that lets nothing pass."""

    async def admit(self, *_: Any, **__: Any) -> LimitRefusal:
        return LimitRefusal(message="later", retry_after_s=1.0, left={})

    def slot(self, *_: Any) -> Any:
        raise AssertionError("nothing may get here")


async def test_refusals_by_limits_are_counted_under_names_of_tools_that_exist(
    make_system: MakeSystem,
) -> None:
    system = make_system(limiter=_Refusing())
    metrics = PrometheusMetrics(tool_exists=lambda name: system.registry.get(name) is not None)
    watched = make_system(limiter=_Refusing(), observers=[metrics])
    await watched.execute("echo", {"text": "a"})
    await watched.execute("made up", {})
    assert samples(metrics, "rate_limited_total") == {("echo",): 1, ("(unknown)",): 1}


async def test_callers_cannot_make_up_labels(make_system: MakeSystem) -> None:
    metrics = PrometheusMetrics()
    system = make_system(observers=[metrics])
    for number in range(300):
        await system.execute(f"made-up-{number}", {}, CallContext(principal=f"somebody-{number}"))
    text = render(metrics.registry).body.decode()
    assert "made-up" not in text
    assert "somebody" not in text
    assert samples(metrics, "calls_total") == {("error", "(unknown)"): 300}


async def test_tools_and_channels_beyond_a_number_are_counted_together(make_system: MakeSystem) -> None:
    metrics = PrometheusMetrics(max_tools=5)
    system = make_system(observers=[metrics])
    for number in range(12):
        system.registry.register(name=f"tool-{number}", description="x")(_nothing)
        await system.execute(f"tool-{number}")
    calls = samples(metrics, "calls_total")
    assert len(calls) == 6
    assert calls["success", "(other)"] == 7
    for number in range(50):
        question = await system.execute("asks", {"path": "a"})
        assert question.confirmation is not None
        approval = Approval(confirmation_id=question.confirmation.id, channel=f"channel-{number}")
        await system.execute("asks", {"path": "a"}, CallContext(approval=approval))
    assert len({channel for channel, _, _ in samples(metrics, "approvals_total")}) <= 22


async def _nothing() -> None:
    """Nothing."""


def test_what_goes_wrong_in_here_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_name: str) -> bool:
        raise RuntimeError("a bug")

    metrics = PrometheusMetrics(tool_exists=broken)
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            metrics.call_finished(_result())
    assert samples(metrics, "observer_errors_total") == {(): 5}
    assert len(caplog.messages) == 1


def test_numbers_kept_elsewhere_are_read_at_each_scrape(caplog: pytest.LogCaptureFixture) -> None:
    count = 3
    metrics = PrometheusMetrics(abandoned_threads=lambda: count, dropped_spans=lambda: 1 // 0)
    assert samples(metrics, "abandoned_threads") == {(): 3}
    count = 4
    assert samples(metrics, "abandoned_threads") == {(): 4}
    # One that cannot be read is left out, and the others are not.
    assert samples(metrics, "dropped_spans_total") == {}
    assert "mcp_tools_dropped_spans cannot be read" in caplog.text


class _Fails:
    """Records that cannot be written, and counts that cannot be kept."""

    async def begin(self, _started: object) -> None:
        raise AuditUnavailable("the disk is full")

    async def end(self, _result: object) -> None:
        raise AuditUnavailable("the disk is full")

    async def admit(self, *_: object, **__: object) -> Any:
        raise LimitsUnavailable("the disk is full")


async def test_records_and_counts_that_fail_are_counted(make_system: MakeSystem) -> None:
    before = counted()
    metrics = PrometheusMetrics(unavailable=counted)

    def since() -> Labelled:
        return {key: value - before[key[0]] for key, value in samples(metrics, "unavailable_total").items()}

    assert since() == {("audit",): 0, ("limits",): 0}  # there before the first, or its increase is not seen
    system = make_system(auditor=_Fails())
    assert (await system.execute("echo", {"text": "a"})).error_code is ErrorCode.UNAVAILABLE
    assert since() == {("audit",): 2, ("limits",): 0}
    system = make_system(limiter=_Fails())
    assert (await system.execute("echo", {"text": "a"})).error_code is ErrorCode.UNAVAILABLE
    assert since() == {("audit",): 2, ("limits",): 1}


def test_the_process_and_the_build_are_there() -> None:
    text = render(PrometheusMetrics(version="9.9").registry).body.decode()
    assert 'version="9.9"' in text
    assert "process_resident_memory_bytes" in text
    assert "_created" not in text


def test_two_in_one_process_do_not_mix() -> None:
    one, other = PrometheusMetrics(), PrometheusMetrics()
    one.call_finished(_result())
    assert samples(one, "calls_total") != samples(other, "calls_total") == {}


def test_a_joined_call_is_a_call_but_costs_nothing() -> None:
    metrics = PrometheusMetrics(tool_exists=lambda _name: True)
    metrics.call_finished(replace(_result(usage=Usage(cost_usd=1.0)), joined=True))
    assert samples(metrics, "calls_total") == {("success", "echo"): 1}
    assert samples(metrics, "cost_usd_total") == {}


def _result(**fields: Any) -> ExecutionResult:
    return ExecutionResult(status=ExecutionStatus.SUCCESS, tool_name="echo", call_id="1", **fields)

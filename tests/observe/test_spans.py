"""The queue of spans: bounded, never in the way, and honest about what it drops."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from mcp_tools.observe.spans import MAX_NAME_CHARS, SAY_EVERY_S, BoundedSpans


class Exporter(SpanExporter):
    """Keeps names; can be held up, and can fail."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_inside = threading.Event()
        self.fails_with: Exception | None = None
        self.result = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.is_inside.set()
        assert self.may_go_on.wait(10)
        if self.fails_with is not None:
            raise self.fails_with
        self.names.extend(span.name for span in spans)
        return self.result

    def shutdown(self) -> None:
        pass


def provider_of(spans: BoundedSpans) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(spans)
    return provider


def test_what_does_not_fit_is_dropped_and_the_oldest_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    exporter, now = Exporter(), [1_000.0]
    exporter.may_go_on.clear()
    spans = BoundedSpans(exporter, max_waiting=10, clock=lambda: now[0])
    tracer = provider_of(spans).get_tracer("test")
    for number in range(25):
        tracer.start_span(str(number)).end()
    assert spans.dropped == 15
    now[0] += SAY_EVERY_S
    tracer.start_span("one more").end()
    exporter.may_go_on.set()
    spans.shutdown()
    assert sorted(exporter.names, key=int) == [str(number) for number in range(10)]
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "spans of traces were dropped: 1, 1 in all",
        "spans of traces were dropped: 15, 16 in all",
    ]


@pytest.mark.parametrize("raises", [False, True])
def test_what_the_collector_refuses_is_dropped_and_makes_room(raises: bool) -> None:
    exporter = Exporter()
    exporter.result = SpanExportResult.FAILURE
    exporter.fails_with = OSError("no route") if raises else None
    spans = BoundedSpans(exporter, max_waiting=10)
    tracer = provider_of(spans).get_tracer("test")
    for expected in (8, 16, 24):
        for number in range(8):
            tracer.start_span(str(number)).end()
        spans.force_flush()
        assert spans.dropped == expected


def test_what_is_still_waiting_at_the_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Exporter()
    exporter.may_go_on.clear()
    spans = BoundedSpans(exporter, max_waiting=10)
    tracer = provider_of(spans).get_tracer("test")
    for number in range(5):
        tracer.start_span(str(number)).end()
    ending = threading.Thread(target=spans.shutdown)
    ending.start()
    assert exporter.is_inside.wait(5)
    with caplog.at_level(logging.WARNING):
        spans.say_at_end()
    assert spans.dropped == 5
    exporter.may_go_on.set()
    ending.join(5)
    assert spans.dropped == 5
    assert len(caplog.messages) == 1


def test_long_names_are_cut_and_spans_not_sampled_take_no_room() -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    exporter = Exporter()
    spans = BoundedSpans(exporter, max_waiting=10)
    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    off.add_span_processor(spans)
    for _ in range(30):
        off.get_tracer("test").start_span("quiet").end()
    provider_of(spans).get_tracer("test").start_span("x" * 5_000).end()
    spans.shutdown()
    assert exporter.names == ["x" * MAX_NAME_CHARS]
    assert spans.dropped == 0

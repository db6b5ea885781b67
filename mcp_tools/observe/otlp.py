"""Sending traces and metrics to a collector over OTLP, as the `OTEL_*` environment asks for.

Only for programs that have not set up OpenTelemetry themselves. What cannot be sent is dropped, counted and
said; nothing waits for a collector.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from opentelemetry import metrics, trace

from mcp_tools.observe.tracing import TracingObserver

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    from mcp_tools.observe.spans import BoundedSpans

logger = logging.getLogger(__name__)

CLOSE_S: Final = 1.0
"""Half of what clients give a server that is to end."""
_Signal = Literal["TRACES", "METRICS"]
_CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_INSTALL: Final = "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What was set up.

    Args:
        observer: For the executor.
        notices: What a person should know, in whole sentences.
    """

    observer: TracingObserver
    notices: tuple[str, ...] = ()
    _spans: BoundedSpans | None = None
    _shutdowns: tuple[Callable[[], None], ...] = ()
    _closed: threading.Event = field(default_factory=threading.Event)

    def dropped_spans(self) -> int:
        """How many spans will never reach a collector, as far as we know."""
        return 0 if self._spans is None else self._spans.dropped

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Send what waits, for at most `timeout_s`, and say what was dropped. Can be called again.

        Does nothing about providers that the program set up itself.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        threads = [threading.Thread(target=shutdown, daemon=True) for shutdown in self._shutdowns]
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._spans is not None:
            self._spans.say_at_end()


def setup_tracing(
    environ: Mapping[str, str],
    *,
    service_name: str,
    service_version: str,
    unavailable: Callable[[], Mapping[str, int]] | None = None,
) -> Telemetry | None:
    """Set up what `environ` asks for, once per process and before the server is built.

    `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`, `…_METRICS_ENDPOINT`), `OTEL_TRACES_EXPORTER=otlp`
    and `OTEL_METRICS_EXPORTER=otlp` switch it on, `OTEL_SDK_DISABLED=true` and an exporter `none` off.
    OpenTelemetry itself reads the others: headers, timeouts, sampling, resource, queue.

    Args:
        environ: Where the switches are; that of the process, since OpenTelemetry reads that.
        service_name, service_version: Where the environment names none.
        unavailable: As for `TracingObserver`.
    Returns:
        None where nothing is asked for. Where the program has a tracer provider already, that one is used
        and nothing is set up. Where something is asked for that cannot be done, the notices say so.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    observer = TracingObserver(capture_content=_is_content_wanted(environ), unavailable=unavailable)
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return Telemetry(observer=observer)
    with_traces, with_metrics = _is_wanted(environ, "TRACES"), _is_wanted(environ, "METRICS")
    if not with_traces and not with_metrics:
        return None
    if (problem := _unsupported(environ)) is not None:
        return Telemetry(observer=observer, notices=(problem,))
    try:
        resource = _resource(environ, service_name, service_version)
        spans = _bounded_spans(environ) if with_traces else None
        meters = _meter_provider(resource) if with_metrics else None
    except ImportError as error:
        return Telemetry(observer=observer, notices=(f"No telemetry is sent: {error}; {_INSTALL}.",))
    except Exception as error:  # a setting that the SDK cannot read
        return Telemetry(observer=observer, notices=(f"No telemetry is sent: {error}.",))
    shutdowns: list[Callable[[], None]] = []
    if spans is not None:
        tracers = _tracer_provider(environ, resource, spans)
        trace.set_tracer_provider(tracers)
        shutdowns.append(tracers.shutdown)
    if meters is not None:
        metrics.set_meter_provider(meters)
        shutdowns.append(meters.shutdown)
    return Telemetry(observer=observer, _spans=spans, _shutdowns=tuple(shutdowns))


def _is_wanted(environ: Mapping[str, str], signal: _Signal) -> bool:
    exporter = _exporter(environ, signal)
    if exporter:
        return exporter != "none"
    places = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return any(environ.get(name, "").strip() for name in places)


def _exporter(environ: Mapping[str, str], signal: _Signal) -> str:
    return environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower()


def _unsupported(environ: Mapping[str, str]) -> str | None:
    for signal in ("TRACES", "METRICS"):
        exporter = _exporter(environ, signal)
        if exporter not in ("", "none", "otlp"):
            # `console` would write between the messages on stdout.
            return f"OTEL_{signal}_EXPORTER={exporter}: only otlp and none are known; no telemetry is sent."
        common = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
        protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", common).strip().lower()
        if protocol not in ("", "http/protobuf") and _is_wanted(environ, signal):
            return (
                f"OTLP over {protocol} is not known here, only http/protobuf, which collectors take on port "
                "4318; no telemetry is sent."
            )
    return None


def _is_content_wanted(environ: Mapping[str, str]) -> bool:
    return environ.get(_CAPTURE, "").strip().lower() in ("true", "1", "span_only", "span_and_event")


def _resource(environ: Mapping[str, str], name: str, version: str) -> Resource:
    from opentelemetry.sdk.resources import Resource

    attributes = {"service.version": version}
    named = "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named and not environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = name
    return Resource.create(attributes)


def _bounded_spans(environ: Mapping[str, str]) -> BoundedSpans:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    from mcp_tools.observe.spans import BoundedSpans

    return BoundedSpans(OTLPSpanExporter(), max_waiting=_number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", 2_048))


def _tracer_provider(environ: Mapping[str, str], resource: Resource, spans: BoundedSpans) -> TracerProvider:
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider

    # A client chooses some values, and thousands of spans wait where a collector is slow.
    length = _number(environ, "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", 8_192)
    limits = SpanLimits(max_attribute_length=length)
    provider = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(spans)
    return provider


def _meter_provider(resource: Resource) -> MeterProvider:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    return MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    return max(1, min(int(text), 1_000_000)) if text.isdecimal() else default

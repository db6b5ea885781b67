"""Counts and durations of calls for Prometheus, in a registry of its own.

Scraping is in `exposition`: an ASGI app for the HTTP server, a small listener beside stdio.
"""

from __future__ import annotations

import logging
import platform
import threading
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mcp_tools.observe.labels import UNKNOWN, Labels, names_a_tool
from mcp_tools.types import CallStarted, ErrorCode, ExecutionResult, ExecutionStatus

logger = logging.getLogger(__name__)

MAX_TOOLS: Final = 200
MAX_CHANNELS: Final = 20
BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# Of questions put to a person. That one was answered with yes is counted when the call starts.
_UNANSWERED: Final = {
    ErrorCode.CONFIRMATION_REQUIRED: "asked",
    ErrorCode.DECLINED: "declined",
    ErrorCode.CONFIRMATION_INVALID: "invalid",
    ErrorCode.DENIED: "nobody_to_ask",
    ErrorCode.CANCELLED: "withdrawn",
}


class PrometheusMetrics:
    """An `Observer` that counts. Never the principal, nor anything else a caller can make up.

    Args:
        tool_exists: Whether there is a tool of this name; the others are counted as `(unknown)`. None:
            there is one where a call started, or was refused for a reason that only a tool can give.
        abandoned_threads: How many threads run functions that were given up. None: not shown.
        dropped_spans: How many spans of traces were dropped so far. None: not shown.
        unavailable: How often each of what must keep a call could not, so far. None: not shown.
        max_tools: Tools told apart; those beyond are `(other)` together.
        version: Of the server, for `mcp_tools_build_info`. None: ours.
    Can be called from any thread.
    """

    def __init__(
        self,
        *,
        tool_exists: Callable[[str], bool] | None = None,
        abandoned_threads: Callable[[], int] | None = None,
        dropped_spans: Callable[[], int] | None = None,
        unavailable: Callable[[], Mapping[str, int]] | None = None,
        max_tools: int = MAX_TOOLS,
        version: str | None = None,
    ) -> None:
        self._tool_exists = tool_exists
        self._tools = Labels(max_tools)
        self._channels = Labels(MAX_CHANNELS)
        self._running: Tally[tuple[str, str]] = Tally()
        self._lock = threading.Lock()
        self._is_quiet = False
        # Of those that every call needs; looking one up by its labels takes longer than counting.
        self._child = lru_cache(maxsize=4 * max_tools)(_child)
        registry = CollectorRegistry()
        self.registry = MetricsRegistry(registry)
        """What a scrape collects."""

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"mcp_tools_{name}", what, ("tool", *labels), registry=registry)

        self._calls = counter("calls", "Calls that ended, by how.", "status")
        self._approvals = counter("approvals", "Questions to a person.", "decision", "channel")
        self._cost = counter("cost_usd", "What calls cost, in US dollars.")
        self._cpu = counter("sandbox_cpu_seconds", "Processor time inside sandboxes.")
        self._tokens = counter("tokens", "Tokens of language models that calls used.", "direction")
        self._limited = counter("rate_limited", "Calls that a rate or a budget refused.")
        self._errors = Counter(
            "mcp_tools_observer_errors", "Calls that could not be counted here.", registry=registry
        )
        self._inflight = Gauge("mcp_tools_inflight", "Calls that run now.", ("tool",), registry=registry)
        self._duration = Histogram(
            "mcp_tools_call_duration_seconds",
            "From when a call came in to its end, where its tool ran.",
            ("tool",),
            buckets=BUCKETS_S,
            registry=registry,
        )
        build = Info("mcp_tools_build", "What is running.", registry=registry)
        build.info({"version": version or _our_version(), "python": platform.python_version()})
        if abandoned_threads is not None:
            registry.register(_Reading("mcp_tools_abandoned_threads", _ABANDONED, abandoned_threads))
        if dropped_spans is not None:
            registry.register(_Reading("mcp_tools_dropped_spans", _DROPPED, dropped_spans, counts=True))
        if unavailable is not None:
            registry.register(_Readings("mcp_tools_unavailable", _UNAVAILABLE, "what", unavailable))
        ProcessCollector(registry=registry)

    def call_started(self, started: CallStarted) -> None:
        """Count a call that begins to run."""
        with _Swallowing(self):
            tool = self._tools.value(started.tool.name)
            with self._lock:
                self._running[started.call_id, started.tool.name] += 1
            self._child(self._inflight, tool).inc()
            if started.channel is not None:
                self._approvals.labels(tool, "approved", self._channels.value(started.channel)).inc()

    def call_finished(self, result: ExecutionResult) -> None:
        """Count a call that ended, whether or not it ran."""
        with _Swallowing(self):
            has_run = self._has_run(result)
            tool = self._tools.value(result.tool_name) if has_run or self._is_real(result) else UNKNOWN
            self._child(self._calls, tool, result.status.value).inc()
            if has_run:
                self._child(self._inflight, tool).dec()
                self._child(self._duration, tool).observe(result.duration_ms / 1000)
            else:
                self._count_refusal(tool, result)
            used = result.usage
            if used is not None and not result.joined:
                _add(self._cost, used.cost_usd, tool)
                _add(self._cpu, used.sandbox_cpu_s, tool)
                _add(self._tokens, used.input_tokens, tool, "input")
                _add(self._tokens, used.output_tokens, tool, "output")

    def asgi_app(self) -> Callable[[Any, Any, Any], Awaitable[None]]:
        """Return an ASGI app that answers any GET with the metrics; see `exposition.asgi_app`."""
        from mcp_tools.observe.exposition import asgi_app

        return asgi_app(self.registry)

    def _has_run(self, result: ExecutionResult) -> bool:
        """Whether a start of this call is open; closes it."""
        key = (result.call_id, result.tool_name)
        with self._lock:
            count = self._running.get(key, 0)
            if count > 1:
                self._running[key] = count - 1
            elif count == 1:
                del self._running[key]
        return count > 0

    def _is_real(self, result: ExecutionResult) -> bool:
        if result.error_code is ErrorCode.UNKNOWN_TOOL:
            return False
        if self._tool_exists is not None:
            return self._tool_exists(result.tool_name)
        return names_a_tool(result)

    def _count_refusal(self, tool: str, result: ExecutionResult) -> None:
        if result.status is ExecutionStatus.RATE_LIMITED:
            self._child(self._limited, tool).inc()
        code = result.error_code
        if code in _UNANSWERED and result.confirmation_id is not None and not result.joined:
            channel = self._channels.value(result.channel)
            self._approvals.labels(tool, _UNANSWERED[code], channel).inc()

    def _failed(self) -> None:
        self._errors.inc()
        if not self._is_quiet:
            self._is_quiet = True
            logger.exception("a call could not be counted; further ones are counted as observer errors only")


class _Swallowing:
    """Counts whatever is raised inside instead of letting it out."""

    __slots__ = ("_metrics",)

    def __init__(self, metrics: PrometheusMetrics) -> None:
        self._metrics = metrics

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        if kind is None or not issubclass(kind, Exception):
            return False
        self._metrics._failed()
        return True


class _Reading:
    """One number that somebody else keeps, read at each scrape; left out where it cannot be read."""

    def __init__(self, name: str, what: str, read: Callable[[], int], *, counts: bool = False) -> None:
        self._family = CounterMetricFamily if counts else GaugeMetricFamily
        self._name, self._what, self._read = name, what, read

    def collect(self) -> Iterator[Metric]:
        try:
            value = self._read()
        except Exception:
            logger.exception("%s cannot be read", self._name)
            return
        yield self._family(self._name, self._what, value=value)


class _Readings:
    """Like `_Reading`, for counts that somebody else keeps by names of their own."""

    def __init__(self, name: str, what: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        self._name, self._what, self._label, self._read = name, what, label, read

    def collect(self) -> Iterator[Metric]:
        try:
            values = self._read()
        except Exception:
            logger.exception("%s cannot be read", self._name)
            return
        family = CounterMetricFamily(self._name, self._what, labels=(self._label,))
        for value, count in values.items():
            family.add_metric((value,), count)
        yield family


class MetricsRegistry:
    """A registry without the `_created` samples, which double the series and which nobody reads.

    The library can leave them out by itself, but only for the whole process, which is not ours alone.
    """

    def __init__(self, registry: CollectorRegistry, names: Iterable[str] | None = None) -> None:
        self._registry, self._names = registry, names

    def collect(self) -> Iterator[Metric]:
        source = self._registry if self._names is None else self._registry.restricted_registry(self._names)
        for metric in source.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric

    def restricted_registry(self, names: Iterable[str]) -> MetricsRegistry:
        """Return the same with these samples only; the library asks for it where a query says `name[]`."""
        return MetricsRegistry(self._registry, tuple(names))


_ABANDONED: Final = "Threads whose function goes on although nobody waits for it any more."
_UNAVAILABLE: Final = "Beginnings and ends of calls that the audit log or the limits could not keep."
_DROPPED: Final = "Spans of traces that never reached their collector."


def _add(counter: Counter, amount: float, *labels: str) -> None:
    if amount:  # `Usage` holds nothing impossible; of a tool that used nothing there is no series
        counter.labels(*labels).inc(amount)


def _child(metric: Any, *labels: str) -> Any:
    return metric.labels(*labels)


def _our_version() -> str:
    from mcp_tools import __version__

    return __version__

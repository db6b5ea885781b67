"""What OpenTelemetry is told of calls: attributes of the span that is there, and durations.

The MCP SDK makes the span of a `tools/call` that came over MCP; here it gets what only we know. A call from
elsewhere (a program, an agent, the command line) gets a span of ours, inside whatever span is current.
Where these are sent is in `otlp`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import metrics, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from mcp_tools.observe.labels import UNKNOWN, Labels, names_a_tool
from mcp_tools.types import CallStarted, ErrorCode, ExecutionResult

logger = logging.getLogger(__name__)

MAX_TOOLS: Final = 200
_SCOPE: Final = "mcp_tools"
_CALL_ID: Final = "gen_ai.tool.call.id"
_NETWORK: Final = {"stdio": "pipe", "http": "tcp", "sse": "tcp"}
_LEVEL: Final = re.compile(r"L\d\+?")
# Of both metrics, as their conventions recommend.
_BUCKETS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

Attributes = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Begun:
    """A call that runs now, in this context."""

    observer: TracingObserver
    call_id: str
    tool_name: str
    span: Span | None  # of ours; None where the SDK's is used
    mark: Token[contexts.Context] | None
    before: _Begun | None


_begun: ContextVar[_Begun | None] = ContextVar("mcp_tools_begun_call", default=None)


class TracingObserver:
    """An `Observer` that tells OpenTelemetry. Without a provider it costs next to nothing.

    Args:
        capture_content: Arguments and results go into spans too, masked and at most 4,000 characters each.
        tracer_provider, meter_provider: None: those of the process.
        unavailable: How often each of what must keep a call could not, so far. None: not told.
    Spans of calls that came over MCP exist only while the server emits them; see `build_server(telemetry=)`.
    """

    def __init__(
        self,
        *,
        capture_content: bool = False,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        unavailable: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        self.errors = 0
        """How many calls could not be told of."""
        self._capture_content = capture_content
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._tools = Labels(MAX_TOOLS)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._operation = meter.create_histogram(
            "mcp.server.operation.duration",
            unit="s",
            description="From when a tools/call came in until its result.",
            explicit_bucket_boundaries_advisory=_BUCKETS_S,
        )
        self._execution = meter.create_histogram(
            "gen_ai.execute_tool.duration",
            unit="s",
            description="Of calls whose tool ran.",
            explicit_bucket_boundaries_advisory=_BUCKETS_S,
        )

        if unavailable is not None:
            meter.create_observable_counter(
                "mcp_tools.unavailable",
                callbacks=[lambda _: _observed(unavailable())],
                unit="{failure}",
                description="Beginnings and ends of calls that the audit log or the limits could not keep.",
            )

    def call_started(self, started: CallStarted) -> None:
        """Begin a span, unless the current one is that of this call; the tool's own spans go below it."""
        try:
            span, mark = None, None
            if _begun.get() is not None or _servers_span() is None:
                span = self._own_span(started.tool.name, started.time_unix_ns)
                mark = contexts.attach(trace.set_span_in_context(span))
            begun = _Begun(self, started.call_id, started.tool.name, span, mark, _begun.get())
            _begun.set(begun)
            current = trace.get_current_span() if span is None else span
            if current.is_recording():
                current.set_attributes(_begin(started, self._capture_content))
        except Exception:
            self._failed()

    def call_finished(self, result: ExecutionResult) -> None:
        """Say how it ended, and end the span if it is ours."""
        try:
            self._finish(result)
        except Exception:
            self._failed()

    def _finish(self, result: ExecutionResult) -> None:
        begun = self._close(result)
        is_outermost = _begun.get() is None  # and not called by a tool, whose span it is then
        if begun is not None and begun.span is not None:
            self._end(begun.span, result)
        elif is_outermost and (servers := _servers_span()) is not None:
            servers.set_attributes(_wire(result) | self._end_attributes(result))
        else:
            # It was refused before it began, so that there is no span of it yet.
            took_ns = int(result.duration_ms * 1e6)
            name = result.tool_name if names_a_tool(result) else UNKNOWN
            self._end(self._own_span(name, time.time_ns() - took_ns), result)
        self._measure(result, has_run=begun is not None, is_outermost=is_outermost)

    def _close(self, result: ExecutionResult) -> _Begun | None:
        begun = _begun.get()
        if begun is None or begun.observer is not self:
            return None
        if (begun.call_id, begun.tool_name) != (result.call_id, result.tool_name):
            return None
        _begun.set(begun.before)
        if begun.mark is not None:
            with suppress(ValueError):  # set elsewhere, so that there is nothing to undo here
                contexts.detach(begun.mark)
        return begun

    def _own_span(self, tool_name: str, start_ns: int) -> Span:
        attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool_name}
        name = f"execute_tool {tool_name}"
        return self._tracer.start_span(
            name, kind=SpanKind.INTERNAL, attributes=attributes, start_time=start_ns
        )

    def _end(self, span: Span, result: ExecutionResult) -> None:
        if span.is_recording():
            span.set_attributes(self._end_attributes(result))
            if not result.is_success:
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _end_attributes(self, result: ExecutionResult) -> Attributes:
        attributes = _outcome(result)
        if self._capture_content and result.is_success:
            from mcp_tools.observe.content import render_content

            attributes["gen_ai.tool.call.result"] = render_content(
                result.result if result.structured is None else result.structured
            )
        return attributes

    def _measure(self, result: ExecutionResult, *, has_run: bool, is_outermost: bool) -> None:
        is_real = has_run or names_a_tool(result)
        tool = self._tools.value(result.tool_name) if is_real else UNKNOWN
        attributes: Attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool}
        if not result.is_success:
            attributes["error.type"] = _error_type(result)
        seconds = result.duration_ms / 1000
        if has_run:
            self._execution.record(seconds, attributes)
        network = _NETWORK.get(result.transport)
        # A question is no end: the call goes on, or comes again, when a person has answered.
        if network is not None and is_outermost and result.confirmation is None:
            more = {"mcp.method.name": "tools/call", "network.transport": network}
            self._operation.record(seconds, attributes | more)

    def _failed(self) -> None:
        self.errors += 1
        if self.errors == 1:
            logger.exception("OpenTelemetry could not be told of a call; further ones are only counted")


def _observed(counts: Mapping[str, int]) -> list[metrics.Observation]:
    return [metrics.Observation(count, {"mcp_tools.what": what}) for what, count in counts.items()]


def _servers_span() -> Span | None:
    """Return the current span if it is the SDK's of a `tools/call`."""
    span = trace.get_current_span()
    attributes = getattr(span, "attributes", None) or {}
    return span if span.is_recording() and attributes.get("mcp.method.name") == "tools/call" else None


def _begin(started: CallStarted, capture_content: bool) -> Attributes:
    attributes: Attributes = {_CALL_ID: started.call_id, "gen_ai.tool.type": "function"}
    if started.tool.isolation is not None:
        attributes["mcp_tools.isolation"] = started.tool.isolation
    if capture_content:
        from mcp_tools.observe.content import render_content

        attributes["gen_ai.tool.call.arguments"] = render_content(started.parameters)
    return attributes


def _wire(result: ExecutionResult) -> Attributes:
    attributes: Attributes = {}
    if (network := _NETWORK.get(result.transport)) is not None:
        attributes["network.transport"] = network
    if result.session_id is not None:
        attributes["mcp.session.id"] = result.session_id
    return attributes


def _outcome(result: ExecutionResult) -> Attributes:
    attributes: Attributes = {_CALL_ID: result.call_id, "mcp_tools.status": result.status.value}
    if result.error_code is not None:
        attributes["error.type"] = _error_type(result)
        attributes["mcp_tools.error_code"] = result.error_code.value
    if result.ruling is not None:
        attributes["mcp_tools.decision"] = result.ruling.decision.name.lower()
    if result.channel is not None:
        attributes["mcp_tools.confirmation.channel"] = result.channel[:64]
    if (level := _sandbox_level(result)) is not None:
        attributes["mcp_tools.sandbox.level"] = level
    if result.joined:
        attributes["mcp_tools.joined"] = True
    used = result.usage
    if used is not None:
        numbers = {
            "mcp_tools.cost_usd": used.cost_usd,
            "mcp_tools.sandbox.cpu_s": used.sandbox_cpu_s,
            "gen_ai.usage.input_tokens": used.input_tokens,
            "gen_ai.usage.output_tokens": used.output_tokens,
        }
        attributes |= {name: number for name, number in numbers.items() if number}
    return attributes


def _error_type(result: ExecutionResult) -> str:
    """What the SDK says on the same span, so that span and metric agree."""
    over_mcp = result.transport in _NETWORK
    return "-32602" if over_mcp and result.error_code is ErrorCode.UNKNOWN_TOOL else "tool_error"


def _sandbox_level(result: ExecutionResult) -> str | None:
    level = result.structured.get("isolation") if isinstance(result.structured, dict) else None
    return level if isinstance(level, str) and _LEVEL.fullmatch(level) else None

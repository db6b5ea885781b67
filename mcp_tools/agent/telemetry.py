"""What OpenTelemetry is told of a model's turns: a span and its tokens for each, and a span around a run.

Tool calls have spans of their own, inside that of the run. Without a provider all this costs next to nothing.
Source: OpenTelemetry, semantic conventions for generative AI, spans and client metrics.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from mcp_tools.agent.types import AgentRun, Message, Model, ModelError, OnText, StopReason, Turn
from mcp_tools.types import Tool

_SCOPE: Final = "mcp_tools"
_NAME_CHARS: Final = 200
# Buckets of both metrics, as their conventions recommend.
_TOKENS: Final = tuple(4**power for power in range(14))
_SECONDS: Final = tuple(0.01 * 2**power for power in range(14))


class Instruments:
    """What is told, and to whom.

    Args:
        tracer_provider, meter_provider: None: those of the process, also if they are set later.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self.tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self.tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Of one answer of a model, by input and output.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self.duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="From when a model was asked until it had answered.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )


@cache
def instruments() -> Instruments:
    """Return those of the process."""
    return Instruments()


@asynccontextmanager
async def invoked(asked: Model) -> AsyncIterator[trace.Span]:
    """Hold a span for a run: the turns and calls inside belong to it."""
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": _provider(asked)}
    with instruments().tracer.start_as_current_span(
        "invoke_agent",
        kind=SpanKind.INTERNAL,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def ended(span: trace.Span, run: AgentRun) -> AgentRun:
    """Tell why a run ended, and return it."""
    span.set_attribute("mcp_tools.stop", run.stop.value)
    if run.stop is StopReason.FAILED:
        status = run.error.status if run.error is not None else None
        span.set_attribute("error.type", str(status or ModelError.__name__))
        span.set_status(Status(StatusCode.ERROR))
    return run


async def told(
    asked: Model,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    model: str,
    max_tokens: int,
    system: str | None,
    on_text: OnText | None,
) -> Turn:
    """Have a model answer once, as `Model.ask` does, and tell of it. No prompt and no text is told."""
    to = instruments()
    shared = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _provider(asked),
        "gen_ai.request.model": model[:_NAME_CHARS],
    }
    ended: dict[str, Any] = {}
    started_s = time.perf_counter()
    # What is raised can hold what a model said, and stays out.
    with to.tracer.start_as_current_span(
        f"chat {model[:_NAME_CHARS]}",
        kind=SpanKind.CLIENT,
        attributes={**shared, "gen_ai.request.max_tokens": max_tokens},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            turn = await asked.ask(
                messages, tools, model=model, max_tokens=max_tokens, system=system, on_text=on_text
            )
        except BaseException as error:
            status = error.status if isinstance(error, ModelError) else None
            ended = {"error.type": type(error).__name__ if status is None else str(status)}
            span.set_attributes(ended)
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            to.duration.record(time.perf_counter() - started_s, shared | ended)
        span.set_attribute("gen_ai.response.model", turn.model[:_NAME_CHARS])
        if turn.stop is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [turn.stop[:_NAME_CHARS]])
        if turn.usage is not None:
            counts = {"input": turn.usage.input_tokens, "output": turn.usage.output_tokens}
            for kind, count in counts.items():
                span.set_attribute(f"gen_ai.usage.{kind}_tokens", count)
                to.tokens.record(count, {**shared, "gen_ai.token.type": kind})
    return turn


def _provider(asked: Model) -> str:
    return str(asked.api).partition("-")[0]

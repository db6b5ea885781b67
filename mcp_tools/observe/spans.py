"""The queue between spans that ended and the thread that sends them: bounded, and it says what it dropped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

MAX_NAME_CHARS: Final = 200
MAX_BATCH: Final = 512
SAY_EVERY_S: Final = 60.0


class BoundedSpans(SpanProcessor):
    """Hands spans to a batching processor, at most so many at a time; the others are dropped and counted.

    Args:
        exporter: Where they go.
        max_waiting: Spans that wait or are being sent.
        clock: Monotonic seconds.
    """

    def __init__(
        self, exporter: SpanExporter, *, max_waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_waiting = max_waiting
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting = self._dropped = self._said = 0
        self._quiet_until = -1.0
        self._batches = BatchSpanProcessor(
            _Counted(exporter, self._left),
            max_queue_size=max_waiting,
            max_export_batch_size=min(MAX_BATCH, max_waiting),
        )

    @property
    def dropped(self) -> int:
        """Spans that were dropped so far: for want of room, or because the collector did not take them."""
        return self._dropped

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Cut the name, which holds what a client asked for."""
        if len(span.name) > MAX_NAME_CHARS:
            span.update_name(span.name[:MAX_NAME_CHARS])

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span, or drop it. Never waits."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            has_room = self._waiting < self._max_waiting
            self._waiting += has_room
            self._dropped += not has_room
        if has_room:
            self._batches.on_end(span)
        else:
            self._say()

    def shutdown(self) -> None:
        """Send what waits; as long as the exporter takes."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits now; as long as the exporter takes."""
        return self._batches.force_flush(timeout_millis)

    def say_at_end(self) -> None:
        """Count what still waits as dropped, and log the sum."""
        with self._lock:
            self._dropped += self._waiting
            self._waiting = 0
        self._quiet_until = -1.0
        self._say()

    def _left(self, count: int, *, has_arrived: bool) -> None:
        with self._lock:
            # What was given up at the end is counted already, even if it still arrives.
            count = min(count, self._waiting)
            self._waiting -= count
            self._dropped += 0 if has_arrived else count
        self._say()

    def _say(self) -> None:
        with self._lock:
            now = self._clock()
            if self._dropped == self._said or now < self._quiet_until:
                return
            self._quiet_until = now + SAY_EVERY_S
            new, self._said = self._dropped - self._said, self._dropped
        logger.warning(
            "spans of traces were dropped: %d, %d in all; the collector is away or slow, or refuses them",
            new,
            self._said,
        )


class _Counted(SpanExporter):
    """An exporter that tells how many spans left, and whether they arrived."""

    def __init__(self, exporter: SpanExporter, left: Callable[..., None]) -> None:
        self._exporter, self._left = exporter, left

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._left(len(spans), has_arrived=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

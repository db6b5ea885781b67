"""Ids of the current trace on log records, so that a line leads to its trace."""

from __future__ import annotations

import logging
import sys


def add_trace_ids(record: logging.LogRecord) -> bool:
    """Add `trace_id` and `span_id` to the `fields` of a record; for `logging.Handler.addFilter`.

    Returns:
        True: every record is kept. Without a current span, or OpenTelemetry loaded, it stays as it is.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return True
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        record.fields = {**getattr(record, "fields", {}), **ids}
    return True

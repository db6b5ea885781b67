"""One line of log for each finished call."""

from __future__ import annotations

import logging

from mcp_tools.types import ExecutionResult

logger = logging.getLogger("mcp_tools.calls")


def log_call(result: ExecutionResult) -> None:
    """Log one finished call; a hook. The record carries `fields`, for those who log as JSON."""
    level = logging.INFO if result.is_success else logging.WARNING
    fields = {
        "tool": result.tool_name[:100],
        "status": result.status.value,
        "error_code": result.error_code.value if result.error_code is not None else None,
        "duration_ms": round(result.duration_ms, 3),
        "call_id": result.call_id,
        "principal": result.principal,
        "transport": result.transport,
        "client": result.client,
        "channel": result.channel,
    }
    logger.log(
        level,
        "%s %s in %.1f ms (call %s, %s)",
        fields["tool"],
        result.status.value,
        result.duration_ms,
        result.call_id,
        result.principal,
        extra={"fields": fields},
    )

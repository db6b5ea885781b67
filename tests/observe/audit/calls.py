"""Calls to record, made without an executor, and a process that records them; `python -m` runs it."""

from __future__ import annotations

import sys
import time
from typing import Any

import anyio

from mcp_tools.observe.audit import AuditLog
from mcp_tools.types import (
    AuditUnavailable,
    CallStarted,
    Decision,
    ExecutionResult,
    ExecutionStatus,
    Ruling,
    Tool,
)

TOOL = Tool("write_file", "Writes.", {"type": "object"}, lambda: None)


def started(call_id: str, arguments: dict[str, Any] | None = None, **changes: Any) -> CallStarted:
    facts: dict[str, Any] = {
        "time_unix_ns": time.time_ns(),
        "monotonic_ns": time.monotonic_ns(),
        "tool": TOOL,
        "ruling": Ruling(decision=Decision.ALLOW, reason="no rule forbids it"),
        "principal": "local",
        "session_id": "session-1",
        "client": "client 1.0",
        "transport": "stdio",
    }
    return CallStarted(call_id=call_id, parameters=arguments or {}, **(facts | changes))


def ended(call_id: str, **changes: Any) -> ExecutionResult:
    facts: dict[str, Any] = {"status": ExecutionStatus.SUCCESS, "result": "done", "tool_name": TOOL.name}
    return ExecutionResult(call_id=call_id, **(facts | changes))


async def _record_forever(path: str, name: str, max_bytes: int) -> None:
    with AuditLog(path, max_bytes=max_bytes) as log:

        async def one(lane: int) -> None:
            for number in range(10**9):
                call_id = f"{name}-{lane}-{number}"
                try:
                    await log.begin(started(call_id, {"path": f"/tmp/{number}", "content": "x" * 100}))
                    print("began", call_id, flush=True)
                    await log.end(ended(call_id))
                    print("ended", call_id, flush=True)
                except AuditUnavailable as error:
                    print("refused", call_id, error, flush=True)
                    await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            for lane in range(4):
                group.start_soon(one, lane)


if __name__ == "__main__":
    anyio.run(_record_forever, sys.argv[1], sys.argv[2], int(sys.argv[3]))

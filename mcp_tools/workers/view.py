"""What a function in a worker sees of its call: a `CallContext` whose doors lead to the server.

Ids, progress, metering and the rules all work. What cannot leave the server does not come along: `extra`
is empty, `approval` and `client` objects are plain values, and `cancelled` is never set, because a
withdrawn call is not told to end: its process is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mcp_tools.types import CallContext, Decision, Meter, Subject, Usage

Send = Callable[[dict[str, Any]], None]
Ask = Callable[[dict[str, Any]], Any]

_CARRIED: Final = (
    "principal",
    "session_id",
    "client",
    "transport",
    "call_id",
    "asked",
    "approved_state",
    "confirmed",
    "idempotency_key",
)
_USAGE: Final = ("calls", "cost_usd", "sandbox_cpu_s", "input_tokens", "output_tokens")


def carried(context: CallContext) -> dict[str, Any]:
    """Return what goes to the worker."""
    fields = {name: getattr(context, name) for name in _CARRIED}
    return {**fields, "has_rules": context.screen is not None}


def context_in_worker(fields: dict[str, Any], send: Send, ask: Ask) -> CallContext:
    """Return the context that the function gets.

    Args:
        fields: What `carried` gave.
        send: Tells the server something.
        ask: Tells it something and returns its answer.
    """
    has_rules = fields.pop("has_rules")

    async def progress(progress: float, total: float | None = None, message: str | None = None) -> None:
        send({"kind": "progress", "progress": progress, "total": total, "message": message})

    def screen(subject: Subject) -> Decision:
        spellings = [subject] if isinstance(subject, str) else list(subject)
        return Decision(ask({"kind": "screen", "subject": spellings, "is_one": isinstance(subject, str)}))

    return _WorkerContext(
        **fields, on_progress=progress, screen=screen if has_rules else None, meter=_ReportingMeter(send)
    )


class _WorkerContext(CallContext):
    """A synchronous function runs in the worker's main thread, so there is no loop to hand progress to."""

    __slots__ = ()

    def report_progress_from_thread(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        if self.on_progress is not None:
            try:
                self.on_progress(progress, total, message).send(None)
            except StopIteration:
                return


class _ReportingMeter(Meter):
    """Reports at once: what was spent counts also when the call is ended."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def add(self, usage: Usage) -> None:
        super().add(usage)
        self._send({"kind": "usage", **{name: getattr(usage, name) for name in _USAGE}})


# --- the server's side ------------------------------------------------------------------------


async def relay(message: dict[str, Any], context: CallContext) -> dict[str, Any] | None:
    """Do what a function asks of its context. Returns the answer that it waits for, or None.

    What does not make sense is dropped: a worker's words are data, whoever wrote them.
    """
    match message:
        case {"kind": "progress", "progress": int() | float() as progress}:
            total, text = message.get("total"), message.get("message")
            await context.report_progress(
                progress,
                total if isinstance(total, int | float) else None,
                text if isinstance(text, str) else None,
            )
        case {"kind": "usage"}:
            context.meter.add(_usage(message))
        case {"kind": "screen", "subject": [*spellings], "is_one": bool(is_one)}:
            named = tuple(str(each) for each in spellings)
            subject: Subject = named[0] if is_one and named else named
            decision = Decision.ALLOW if context.screen is None else context.screen(subject)
            return {"decision": int(decision)}
    return None


def _usage(message: dict[str, Any]) -> Usage:
    return Usage.bounded(
        message.get("calls"),
        message.get("cost_usd"),
        message.get("sandbox_cpu_s"),
        message.get("input_tokens"),
        message.get("output_tokens"),
    )

"""One call on its way through the executor, and the context it is given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from mcp_tools.calling import CancelWatch
from mcp_tools.output.plain import safe_str
from mcp_tools.registry import RegisteredTool
from mcp_tools.types import CallContext, ErrorCode, ExecutionResult, ExecutionStatus, Lease, Meter, Ruling

MAX_NAME_CHARS: Final = 200
"""Of a tool name in a record; real ones have at most 64, but what is asked for can be anything."""

STATUS: Final = {
    ErrorCode.UNKNOWN_TOOL: ExecutionStatus.ERROR,
    ErrorCode.INVALID_ARGUMENTS: ExecutionStatus.VALIDATION_ERROR,
    ErrorCode.DENIED: ExecutionStatus.PERMISSION_DENIED,
    ErrorCode.DECLINED: ExecutionStatus.PERMISSION_DENIED,
    ErrorCode.CONFIRMATION_REQUIRED: ExecutionStatus.PERMISSION_DENIED,
    ErrorCode.CONFIRMATION_INVALID: ExecutionStatus.PERMISSION_DENIED,
    ErrorCode.TIMED_OUT: ExecutionStatus.TIMEOUT,
    ErrorCode.TOOL_ERROR: ExecutionStatus.ERROR,
    ErrorCode.TOOL_EXCEPTION: ExecutionStatus.ERROR,
    ErrorCode.INTERNAL_ERROR: ExecutionStatus.ERROR,
    ErrorCode.CANCELLED: ExecutionStatus.CANCELLED,
    ErrorCode.RATE_LIMITED: ExecutionStatus.RATE_LIMITED,
    ErrorCode.UNAVAILABLE: ExecutionStatus.ERROR,
}


@dataclass(slots=True, eq=False)
class InFlight:
    """One call on its way through the pipeline; nothing of it outlives `execute`."""

    tool_name: Any  # a str, unless the caller got it wrong
    sent: Any
    context: CallContext
    clock: Callable[[], float]
    started_at: float = field(init=False)
    entry: RegisteredTool | None = None
    arguments: dict[str, Any] | None = None  # once validated
    ruling: Ruling | None = None  # once decided
    channel: str | None = None
    watch: CancelWatch = field(default_factory=CancelWatch)
    confirmation_id: str | None = None  # of the question that it asked or answered
    lease: Lease | None = None  # of its limits, until it is settled
    effect: bytes | None = None  # the name under which others may join it, while that is open
    has_run: bool = False  # whether the tool's function was called
    holds_slot_of: object = None  # the executor, while one of its places is taken

    def __post_init__(self) -> None:
        self.started_at = self.clock()

    @property
    def found(self) -> RegisteredTool:
        assert self.entry is not None
        return self.entry

    @property
    def valid(self) -> dict[str, Any]:
        assert self.arguments is not None
        return self.arguments

    @property
    def decided(self) -> Ruling:
        assert self.ruling is not None
        return self.ruling

    @property
    def is_read_only(self) -> bool:
        """Whether it can change nothing: its tool says so, or it never got to run one."""
        return not self.has_run or self.found.tool.annotations.read_only_hint

    def elapsed_ms(self) -> float:
        return (self.clock() - self.started_at) * 1000

    def end(self, code: ErrorCode, message: str) -> ExecutionResult:
        """Return what became of a call that did not succeed."""
        return self._result(STATUS[code], error=message, error_code=code)

    def succeed(self, value: Any, structured: Any) -> ExecutionResult:
        """Return what became of a call whose tool returned `value`."""
        return self._result(ExecutionStatus.SUCCESS, result=value, structured=structured)

    def _result(self, status: ExecutionStatus, **fields: Any) -> ExecutionResult:
        context = self.context
        return ExecutionResult(
            status=status,
            duration_ms=self.elapsed_ms(),
            tool_name=safe_str(self.tool_name)[:MAX_NAME_CHARS],
            parameters=self.recorded_arguments(),
            call_id=context.call_id,
            ruling=self.ruling,
            principal=context.principal,
            session_id=context.session_id,
            client=context.client,
            transport=context.transport,
            channel=self.channel,
            confirmation_id=self.confirmation_id,
            **fields,
        )

    def recorded_arguments(self) -> Mapping[str, Any]:
        if self.arguments is not None:
            return self.arguments
        return dict(self.sent) if isinstance(self.sent, Mapping) else {}


def as_context(context: CallContext | Mapping[str, Any] | None) -> CallContext:
    """Make the context of one call, without what only the executor may set."""
    if isinstance(context, CallContext):
        # Event and meter belong to one call: a context shared by several must not mix them up.
        return replace(
            context,
            cancelled=threading.Event(),
            meter=Meter(),
            asked=False,
            approved_state=None,
            screen=None,
        )
    given = dict(context or {})
    known = {name: given.pop(name) for name in _CONTEXT_FIELDS if name in given}
    extra = {**known.pop("extra", {}), **given}
    if type(known.get("confirmed", False)) is not bool:
        raise TypeError(f"context['confirmed'] is {known['confirmed']!r}; only True and False can be meant")
    return CallContext(**known, extra=extra)


# What an embedding program may set; the rest is the executor's.
_CONTEXT_FIELDS: Final = frozenset(field.name for field in fields(CallContext)) - {
    "asked",
    "approved_state",
    "screen",
    "cancelled",
    "meter",
}

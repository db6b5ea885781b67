"""One call on its way through the executor, and the context it is given."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from mcp_tools.calling import CancelWatch
from mcp_tools.registry import RegisteredTool
from mcp_tools.types import CallContext, Ruling


@dataclass(slots=True, eq=False)
class InFlight:
    """One call on its way through the pipeline; nothing of it outlives `execute`."""

    tool_name: Any  # a str, unless the caller got it wrong
    sent: Any
    context: CallContext
    started_at: float
    entry: RegisteredTool | None = None
    arguments: dict[str, Any] | None = None  # once validated
    ruling: Ruling | None = None  # once decided
    channel: str | None = None
    watch: CancelWatch = field(default_factory=CancelWatch)
    holds_slot_of: object = None  # the executor, while one of its places is taken

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

    def recorded_arguments(self) -> Mapping[str, Any]:
        if self.arguments is not None:
            return self.arguments
        return dict(self.sent) if isinstance(self.sent, Mapping) else {}


def as_context(context: CallContext | Mapping[str, Any] | None) -> CallContext:
    """Make the context of one call, without what only the executor may set."""
    if isinstance(context, CallContext):
        # The event belongs to one call: a context shared by several must not spread a cancellation.
        return replace(context, cancelled=threading.Event(), asked=False, approved_state=None, screen=None)
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
}

"""Who is calling, as the transport knows it.

A transport that serves several callers sets `current_caller` before it hands a message on; the SDK
carries the sender's context variables to the handler, so the handler reads it there. stdio serves
one caller, who started us, and leaves the default.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is responsible for a message and how it came in.

    Args:
        principal: A token's name, or `local`.
        transport: `stdio`, `sse` or `http`.
        session_id: The session the transport bound it to; None where there are no sessions.
    """

    principal: str = "local"
    transport: str = "stdio"
    session_id: str | None = None


current_caller: ContextVar[Caller] = ContextVar("mcp_tools_current_caller", default=Caller())  # noqa: B039

"""A bound on the requests of one principal that are being worked on.

In the handshake era a client may leave while its call goes on, so the number of connections bounds
nothing: without this, one that calls and leaves in a loop has the server work for it without end.
"""

from __future__ import annotations

from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from mcp_tools.server.http.limits import Shares
from mcp_tools.server.principal import current_caller

TOO_MANY_CALLS = -32000


class _CallBound:
    def __init__(self, each: int) -> None:
        self._shares = Shares(total=each * 1_000, each=each)
        self._each = each

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.request_id is None:
            return await call_next(ctx)
        principal = current_caller.get().principal
        if not self._shares.take(principal):
            raise MCPError(
                code=TOO_MANY_CALLS,
                message=f"{self._each} requests are in progress already; wait for one to end, then try again",
            )
        try:
            return await call_next(ctx)
        finally:
            self._shares.give_back(principal)


def bound_calls(server: Server[Any], *, each: int) -> None:
    """Let `server` refuse a request when its principal has `each` in progress already."""
    server.middleware.append(_CallBound(each))

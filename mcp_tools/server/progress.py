"""A tool's progress → `notifications/progress`, for clients that asked for it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final, TypeGuard

import anyio.lowlevel
from mcp.server.context import ServerRequestContext

from mcp_tools.output.plain import encodable

logger = logging.getLogger(__name__)

MIN_INTERVAL_S: Final = 0.05
MAX_MESSAGE_CHARS: Final = 1_000


class Progress:
    """Sends one call's progress. Values only ever rise, as MCP demands; nothing here can fail the call.

    Reports that come faster than 20 a second are dropped, except the one that reaches the total.
    """

    def __init__(
        self, ctx: ServerRequestContext[Any, Any], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ctx = ctx
        self._clock = clock
        self._last = -math.inf
        self._sent_at = -math.inf

    @property
    def is_wanted(self) -> bool:
        """Whether the client gave a progress token."""
        token = (self._ctx.meta or {}).get("progress_token")
        return isinstance(token, str | int) and not isinstance(token, bool)

    async def report(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Send a report, unless it does not rise or comes too soon."""
        # A tool that does nothing but report must still let others run.
        await anyio.lowlevel.checkpoint()
        if not _is_number(progress) or progress <= self._last:
            return
        if not _is_number(total):
            total = None
        now = self._clock()
        if now - self._sent_at < MIN_INTERVAL_S and progress != total:
            return
        self._last, self._sent_at = progress, now
        await self._send(progress, total, message)

    async def tick(self, message: str) -> None:
        """Say that we are still there, leaving nearly all of the scale to the tool."""
        self._last = 0.0 if self._last == -math.inf else self._last + 1e-6
        await self._send(self._last, None, message)

    async def _send(self, progress: float, total: float | None, message: object) -> None:
        text = None if message is None else encodable(str(message))[:MAX_MESSAGE_CHARS]
        try:
            # Does nothing where the client asked for no progress.
            await self._ctx.session.report_progress(progress, total, text)
        except Exception as error:
            logger.debug("progress was not sent: %s", type(error).__name__)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

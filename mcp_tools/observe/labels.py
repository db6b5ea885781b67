"""Values of metric labels, kept to a bounded number: each one is a time series for as long as we live."""

from __future__ import annotations

import threading
from typing import Final

from mcp_tools.types import ErrorCode, ExecutionResult

OTHER: Final = "(other)"
UNKNOWN: Final = "(unknown)"
NONE: Final = "(none)"
MAX_VALUE_CHARS: Final = 64

# How calls end only where there is a tool.
_PAST_THE_SEARCH: Final = frozenset(
    {ErrorCode.INVALID_ARGUMENTS, ErrorCode.TIMED_OUT, ErrorCode.TOOL_ERROR, ErrorCode.TOOL_EXCEPTION}
)


def names_a_tool(result: ExecutionResult) -> bool:
    """Whether a result shows that there is a tool of its name; one that was refused early may not."""
    return result.is_success or result.ruling is not None or result.error_code in _PAST_THE_SEARCH


class Labels:
    """Lets the first `limit` distinct values through and calls all others `(other)`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def value(self, text: str | None) -> str:
        """Return `text`, at most 64 characters of it, or `(other)`; `(none)` for None."""
        if text is None:
            return NONE
        text = text[:MAX_VALUE_CHARS]
        if text in self._known:
            return text
        with self._lock:
            if text not in self._known:
                if len(self._known) >= self._limit:
                    return OTHER
                self._known.add(text)
        return text

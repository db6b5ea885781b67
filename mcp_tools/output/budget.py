"""Results that fit: what is too large for its reader goes out in part, and the whole is kept."""

from __future__ import annotations

from collections.abc import Mapping

import anyio.to_thread

from mcp_tools.output.fitting import Fitting
from mcp_tools.output.room import (
    KNOWN_CLIENTS,
    MAX_CHARS,
    MAX_MEDIA_BYTES,
    MAX_TOKENS,
    Room,
    room_for,
)
from mcp_tools.output.store import OutputStore
from mcp_tools.types import CallContext, ExecutionResult, Tool, Usage

_QUICK_CHARS = 10_000
_QUICK_VALUES = 200


class OutputBudget:
    """Makes results fit; a `ResultFitter`.

    Args:
        max_chars, max_tokens, max_media_bytes: Of one result; see `Room`.
        store: Keeps what does not fit. None: it is lost, and the result says so.
        per_client: What is known of clients, by how their names begin. It can only make the room smaller.
        mask_secrets: What looks like a secret is masked, also in what is kept.
        links: Shortened results for MCP clients carry a link to the whole, for servers with `resources/read`.
    Raises:
        ValueError: A limit is too small for our own notes.
    """

    def __init__(
        self,
        *,
        max_chars: int = MAX_CHARS,
        max_tokens: int = MAX_TOKENS,
        max_media_bytes: int = MAX_MEDIA_BYTES,
        store: OutputStore | None = None,
        per_client: Mapping[str, Room] = KNOWN_CLIENTS,
        mask_secrets: bool = False,
        links: bool = True,
    ) -> None:
        self._room = Room(max_chars=max_chars, max_tokens=max_tokens, max_media_bytes=max_media_bytes)
        self._per_client = per_client
        self._store = store
        self._masks = mask_secrets
        self._links = links

    def room(self, context: CallContext) -> Room:
        """Return what one result for this caller may have."""
        return room_for(context.client, self._room, self._per_client)

    async def fit(self, result: ExecutionResult, tool: Tool, context: CallContext) -> ExecutionResult:
        """Return `result` as it is, or as much of it as fits.

        Texts keep head and tail; data loses rows, then the ends of long texts, then entries of objects, and
        fits the tool's output schema after that as before. Where that cannot be, the result is an error that
        says so. What was done is said in the result, and the whole is kept under `output_id`.

        Reports the estimated tokens of what goes out to `context.meter`. Cancelling abandons the work.
        """
        fitting = Fitting(
            result,
            tool,
            context,
            room=self.room(context),
            store=self._store,
            masks=self._masks,
            links=self._links,
        )
        if _is_quick(result.error if result.result is None else result.result):
            fitted, tokens = fitting.run()
        else:
            fitted, tokens = await anyio.to_thread.run_sync(fitting.run, abandon_on_cancel=True)
        context.meter.add(Usage(output_tokens=tokens))
        return fitted


def _is_quick(value: object) -> bool:
    """Whether the value is small enough for the event loop; unknown kinds are not."""
    chars, values = _QUICK_CHARS, _QUICK_VALUES
    waiting = [value]
    while waiting:
        item = waiting.pop()
        values -= 1
        kind = type(item)
        if kind is str:
            chars -= len(item)  # type: ignore[arg-type]
        elif kind is list or kind is dict:
            if len(item) > values:  # type: ignore[arg-type]
                return False
            waiting += item if kind is list else [*item, *item.values()]  # type: ignore
        elif item is not None and kind not in (int, float, bool):
            return False
        if chars < 0 or values < 0:
            return False
    return True

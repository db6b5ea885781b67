"""Kept outputs as MCP resources: what a shortened result links to, for whoever it was made for."""

from __future__ import annotations

from typing import Any, Final

import anyio.to_thread
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from mcp_tools.output.store import URI_PREFIX, NoSuchOutput, OutputStore
from mcp_tools.server.principal import current_caller

MAX_READ_CHARS: Final = 1_000_000
"""Of one answer; the rest of a longer output is read with `read_output`."""

_Context = ServerRequestContext[Any]


class KeptOutputs:
    """`resources/read` and `resources/list` over a store. Each principal sees what was made for it."""

    def __init__(self, store: OutputStore) -> None:
        self._store = store

    async def read(self, _ctx: _Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        """Return the text of an output."""
        uri = str(params.uri)
        output_id = uri.removeprefix(URI_PREFIX) if uri.startswith(URI_PREFIX) else ""
        principal = current_caller.get().principal

        def page() -> tuple[str, int]:
            total_chars = self._store.find(output_id, principal).total_chars
            return self._store.page(output_id, principal, 0, MAX_READ_CHARS), total_chars

        try:
            text, total_chars = await anyio.to_thread.run_sync(page, abandon_on_cancel=True)
        except NoSuchOutput:
            raise MCPError(
                types.INVALID_PARAMS,
                f"there is no resource {uri[:200]!r} for you; outputs are kept for a while only",
            ) from None
        if total_chars > len(text):
            how = f"go on with read_output, offset {len(text)}"
            text += f"\n[shortened: the whole is {total_chars:,} characters; {how}]"
        contents = types.TextResourceContents(uri=uri, mime_type="text/plain", text=text)
        return types.ReadResourceResult(contents=[contents], cache_scope="private")

    async def list(
        self, _ctx: _Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        """Return nothing: an output is known to whoever was sent its link, and lists would outlive it."""
        if params is not None and params.cursor is not None:
            raise MCPError(types.INVALID_PARAMS, "cursor: the list has one page only")
        return types.ListResourcesResult(resources=[])

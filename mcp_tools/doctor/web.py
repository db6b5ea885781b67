"""The web: which of the configured search providers answer."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from mcp_tools.doctor.model import Finding, State, Subject
from mcp_tools.doctor.search import check_providers
from mcp_tools.shipped import web_client, web_options


def search(subject: Subject) -> Sequence[Finding]:
    """Ask each configured search provider once. One that answers is enough, as the others stand in for it."""
    options = web_options(subject.settings)
    if options is None:
        return [Finding(name="web", state=State.OK, found="off: no search_web and no fetch_url")]

    async def ask() -> list[Finding]:
        web = web_client(options.search_reach)
        try:
            return await check_providers(options.search, web)
        finally:
            await web.aclose()

    return anyio.run(ask)

"""The web: which of the configured search providers answer."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from mcp_tools.doctor.model import Finding, State, Subject
from mcp_tools.doctor.search import check_providers
from mcp_tools.shipped import web_client, web_options

SECONDS = 8.0


def search(subject: Subject) -> Sequence[Finding]:
    """Ask each configured search provider once. One that answers is enough, as the others stand in for it."""
    options = web_options(subject.settings)
    if options is None:
        return [Finding(name="web", state=State.OK, found="off: no search_web and no fetch_url")]

    async def ask() -> list[Finding]:
        web = web_client(options.search_reach)
        try:
            return [
                Finding(name=each.name, state=State.OK, found=each.what_to_do)
                if each.ok
                else Finding(
                    name=each.name,
                    state=State.WARNING,
                    found="does not answer as a search engine should",
                    remedy=each.what_to_do,
                )
                for each in await check_providers(options.search, web, seconds=SECONDS)
            ]
        finally:
            await web.aclose()

    return anyio.run(ask)

"""Whether the configured search providers answer: each is asked once."""

from __future__ import annotations

from typing import Final

import anyio

from mcp_tools.builtin.search.options import SearchOptions
from mcp_tools.builtin.search.tool import providers
from mcp_tools.builtin.search.types import Failed, Kind, Provider
from mcp_tools.doctor.model import Finding, State
from mcp_tools.errors import ConfigError
from mcp_tools.web.types import Web

QUERY: Final = "python programming language"
SECONDS: Final = 8.0
_REMEDIES: Final = {
    Kind.BLOCKED: "search from another network, or add a provider with a URL or a key; see docs/search.md",
    Kind.RATE_LIMITED: "wait, ask it less often, or add another provider behind it",
    Kind.REJECTED: "look at its key, its plan and its settings",
    Kind.UNAVAILABLE: "look whether its host can be reached from here, or add another provider behind it",
}


async def check_providers(options: SearchOptions, web: Web, *, seconds: float = SECONDS) -> list[Finding]:
    """Ask each configured provider once, all of them at the same time. Costs a query where those cost.

    Args:
        seconds: For each; all of it ends soon after.
    Returns:
        One for each provider, in their order; where the options make no sense, one that says so.
    """
    try:
        options.check()
    except ConfigError as error:
        return [_warning("search", "nobody can be asked", str(error))]
    asked = providers(options, web)
    answers: dict[str, Finding] = {}

    async def ask(provider: Provider) -> None:
        answers[provider.name] = await _ask(provider, seconds)

    async with anyio.create_task_group() as tasks:
        for provider in asked:
            tasks.start_soon(ask, provider)
    return [answers[provider.name] for provider in asked]


async def _ask(provider: Provider, seconds: float) -> Finding:
    name = provider.name
    with anyio.move_on_after(seconds + 1):
        try:
            found = await provider.search(QUERY, 3, timeout_s=seconds)
        except Failed as failure:
            return _warning(name, str(failure), _REMEDIES[failure.kind])
        if not found.hits:
            return _warning(
                name, "answered, but found nothing for a common query", "search for something yourself"
            )
        return Finding(name=name, state=State.OK, found=f"answered with {len(found.hits)} results")
    return _warning(name, f"gave no answer within {seconds:g} s", _REMEDIES[Kind.UNAVAILABLE])


def _warning(name: str, found: str, remedy: str) -> Finding:
    return Finding(name=name, state=State.WARNING, found=found, remedy=remedy)

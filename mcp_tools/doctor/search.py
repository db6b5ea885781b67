"""Whether the configured search providers answer: each is asked once."""

from __future__ import annotations

from typing import Final, NamedTuple

import anyio

from mcp_tools.builtin.search.options import SearchOptions
from mcp_tools.builtin.search.tool import providers
from mcp_tools.builtin.search.types import Failed, Kind, Provider
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


class Checked(NamedTuple):
    """What a provider said: its name, whether it answered, and what so, with what to do where it did not."""

    name: str
    ok: bool
    what_to_do: str


async def check_providers(options: SearchOptions, web: Web, *, seconds: float = SECONDS) -> list[Checked]:
    """Ask each configured provider once, all of them at the same time. Costs a query where those cost.

    Args:
        seconds: For each; all of it ends soon after.
    Returns:
        One for each provider, in their order; where the options make no sense, one that says so.
    """
    try:
        options.check()
    except ConfigError as error:
        return [Checked("search", False, str(error))]
    asked = providers(options, web)
    answers: dict[str, Checked] = {}

    async def ask(provider: Provider) -> None:
        answers[provider.name] = await _ask(provider, seconds)

    async with anyio.create_task_group() as tasks:
        for provider in asked:
            tasks.start_soon(ask, provider)
    return [answers[provider.name] for provider in asked]


async def _ask(provider: Provider, seconds: float) -> Checked:
    name = provider.name
    with anyio.move_on_after(seconds + 1):
        try:
            found = await provider.search(QUERY, 3, timeout_s=seconds)
        except Failed as failure:
            return Checked(name, False, f"{failure}: {_REMEDIES[failure.kind]}")
        if not found.hits:
            return Checked(
                name, False, "answered, but found nothing for a common query: see whether it works"
            )
        return Checked(name, True, f"answered with {len(found.hits)} results")
    return Checked(name, False, f"gave no answer within {seconds:g} s: {_REMEDIES[Kind.UNAVAILABLE]}")

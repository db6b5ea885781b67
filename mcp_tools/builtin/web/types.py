"""How `fetch_url` behaves, and what it asks of robots.txt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mcp_tools.web.types import MayFollow


class RobotsRules(Protocol):
    """Says whether a site lets a page be fetched."""

    async def check(
        self, url: str, may_follow: MayFollow | None = None, *, is_redirect: bool = False
    ) -> None:
        """Raise `Refused` if it does not.

        Args:
            is_redirect: It is where another page of this call leads.
            may_follow: Asked before a redirect of the rules themselves is followed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """How `fetch_url` behaves.

    Args:
        confirms: It asks where no rule says otherwise.
        cache_s, cache_entries: How long pages are kept for their next parts, and how many of each principal.
    """

    confirms: bool = False
    cache_s: float = 300.0
    cache_entries: int = 8

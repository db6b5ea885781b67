"""What `search_web` is configured with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from mcp_tools.errors import ConfigError, key_problem
from mcp_tools.types import SEARCH_PROVIDERS

ENGINES: Final = ("duckduckgo", "brave", "mojeek", "startpage", "yahoo", "wikipedia")
"""Of ddgs, in the order in which they are asked; the last knows articles only."""
URLS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "brave": "https://api.search.brave.com/res/v1/web/search",
        "tavily": "https://api.tavily.com/search",
        "exa": "https://api.exa.ai/search",
        "kagi": "https://kagi.com/api/v0/search",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Who is asked, and how.

    Args:
        providers: Names, in the order in which they are asked until one answers.
        searxng_url: Of the owner's instance; a name and password in it are sent as Basic credentials.
            Its host must be among the `Reach.hosts` of the web where it is not public.
        brave_key, tavily_key, exa_key, kagi_key: For the providers of these names.
        prices_usd: By provider: what one query costs that it answers. Others cost nothing.
        urls: By provider: where its API is, if not where it usually is.
        engines: Of ddgs, in order.
        proxy: URL of a proxy for ddgs, which has connections of its own. None: none.
        timeout_s: For one provider.
        total_s: For all of them together; the tool's own limit is above it.
        cache_s: How long an answer is kept for the principal who asked. 0: not at all.
        cache_entries: How many answers are kept at most.
    """

    providers: tuple[str, ...] = ("ddgs",)
    searxng_url: str | None = field(default=None, repr=False)
    brave_key: str | None = field(default=None, repr=False)
    tavily_key: str | None = field(default=None, repr=False)
    exa_key: str | None = field(default=None, repr=False)
    kagi_key: str | None = field(default=None, repr=False)
    prices_usd: Mapping[str, float] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)
    engines: tuple[str, ...] = ENGINES
    proxy: str | None = field(default=None, repr=False)
    timeout_s: float = 8.0
    total_s: float = 13.0
    cache_s: float = 300.0
    cache_entries: int = 256

    def key(self, provider: str) -> str | None:
        """Return the key of a provider, if it has one."""
        keys = {
            "brave": self.brave_key,
            "tavily": self.tavily_key,
            "exa": self.exa_key,
            "kagi": self.kagi_key,
        }
        return keys.get(provider)

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: A provider is unknown or lacks its URL or key, or a number makes no sense.
        """
        if not self.providers or len(set(self.providers)) < len(self.providers):
            raise ConfigError("search_providers must name at least one provider, each of them once")
        for name in self.providers:
            if name not in SEARCH_PROVIDERS:
                raise ConfigError(f"search_providers: {name!r} is none of {', '.join(SEARCH_PROVIDERS)}")
            if name in URLS:
                self._check_key(name)
        if "searxng" in self.providers:
            _check_url(self.searxng_url)
        for name, price in self.prices_usd.items():
            if name not in SEARCH_PROVIDERS or not 0 <= price < math.inf:
                raise ConfigError(f"the price of a query at {name!r} must be a number of US dollars from 0")
        if unknown := [name for name in self.engines if name not in ENGINES]:
            raise ConfigError(f"ddgs engines: {', '.join(unknown)} is none of {', '.join(ENGINES)}")
        if not self.engines or not 0 < self.timeout_s <= self.total_s < math.inf:
            raise ConfigError("search: there must be an engine, and 0 < timeout_s <= total_s")

    def _check_key(self, name: str) -> None:
        key = self.key(name)
        if not key:
            raise ConfigError(
                f"search_providers names {name}, which needs a key: set {name}_key in your config file or "
                f"MCP_TOOLS_{name.upper()}_KEY, or leave {name} out"
            )
        if (wrong := key_problem(f"{name}_key", key)) is not None:
            raise ConfigError(wrong)


def _check_url(url: str | None) -> None:
    if not url:
        raise ConfigError(
            "search_providers names searxng, which needs the URL of your instance: set searxng_url"
        )
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or not url.isprintable() or " " in url:
        raise ConfigError("searxng_url must be an http or https URL, such as https://search.example.org")

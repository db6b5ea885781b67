"""The words of searching: what a provider is asked, what it finds, and how it can fail."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from mcp_tools.errors import McpToolsError

MAX_RESULTS: Final = 50
MAX_QUERY_CHARS: Final = 400
"""What the strictest of the paid providers takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One result, as the provider wrote it: nothing in it is trusted or cleaned yet.

    Args:
        title, url, snippet: Texts, possibly empty.
        date: When the page was published, in the provider's own writing.
        source: Who published it, or which engine found it.
    """

    title: str
    url: str
    snippet: str
    date: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A provider looked and said what there is.

    Args:
        hits: None of them means that it found nothing, which is an answer.
        by: The engine behind the provider, where it has several.
    """

    hits: tuple[Hit, ...]
    by: str | None = None


class Kind(StrEnum):
    """Why a provider did not answer."""

    BLOCKED = "blocked"
    RATE_LIMITED = "rate-limited"
    REJECTED = "rejected"
    UNAVAILABLE = "unavailable"


class Failed(McpToolsError):
    """A provider gave no answer.

    Args:
        kind: Blocked (it takes us for a robot), rate-limited, rejected (key, plan or settings: the owner's
            to change), or unavailable (down, too slow, unreadable).
        said: What happened, in words for a model and an owner; no key and no text of the provider's in it.
        retry_after_s: What the provider said. None: it did not.
        is_ours: We did not ask at all, so that there is nothing to back off from.
    """

    def __init__(
        self, kind: Kind, said: str, *, retry_after_s: float | None = None, is_ours: bool = False
    ) -> None:
        super().__init__(f"{kind}: {said}")
        self.kind = kind
        self.said = said
        self.retry_after_s = retry_after_s
        self.is_ours = is_ours


class Provider(Protocol):
    """One place to ask. Safe to share between tasks; used on asyncio and on trio."""

    @property
    def name(self) -> str:
        """As it is called in settings."""
        ...

    @property
    def interval_s(self) -> float:
        """How far apart two requests must be to be polite."""
        ...

    async def search(self, query: str, count: int, *, timeout_s: float) -> Found:
        """Ask once, without repeating anything.

        Args:
            query: One line, without control characters.
            count: How many results are wanted; there may be fewer or more.
            timeout_s: It ends by then.
        Raises:
            Failed: No answer came of it.
        """
        ...

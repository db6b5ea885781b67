"""The words of the web: what is asked of it, what comes back, and how it can fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from mcp_tools.errors import McpToolsError

MAX_REDIRECTS: Final = 5
MAX_BODY_BYTES: Final = 8 * 1024**2
DEADLINE_S: Final = 20.0


class WebError(McpToolsError):
    """A request came to nothing. The text says why, in words for a model; nothing of a body is in it.

    Args:
        message: What happened and whether trying again can help.
        retry_after_s: When it can. None: nobody said.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(WebError):
    """We did not ask: the URL, the address behind it or its robots.txt forbids it. So it will again."""


class Unreachable(WebError):
    """Nobody answered, or not in time, or in no way that can be read."""


class Astray(Unreachable):
    """It leads on and on: in a circle, or further than is followed."""


class Busy(Unreachable):
    """Nobody was asked: too much is under way here already. It says nothing of the site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Where requests may go, and how much of an answer is taken.

    Args:
        hosts: Names or addresses (`host` or `host:port`) that may be dialled although they are not public:
            an owner's own search engine, or a test's server on loopback. Everything else must be public.
        max_bytes: Of one body, after decompression.
        deadline_s: For a whole request: names, connections, redirects and body together.
        max_redirects: Followed at most; each target is checked as the first was.
        proxy: URL of a proxy that is used for everything. None: none, whatever the environment says. A proxy
            dials for us, so what stands behind a name is its to check; addresses in URLs are checked here.
    """

    hosts: frozenset[str] = frozenset()
    max_bytes: int = MAX_BODY_BYTES
    deadline_s: float = DEADLINE_S
    max_redirects: int = MAX_REDIRECTS
    proxy: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebResponse:
    """What came back.

    Args:
        url: Where it came from in the end, in ASCII (names in punycode), without its fragment.
        status: HTTP status; redirects that were followed are not seen here.
        headers: Names in lower case; of repeated ones the first.
        body: Decompressed, at most `max_bytes` of it.
        is_cut: There was more.
        redirects: The URLs that led here, the first one first; empty where it was there at once.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    is_cut: bool
    redirects: tuple[str, ...] = ()


MayFollow = Callable[[str], Awaitable[None]]


class Web(Protocol):
    """Asks the web. Safe to share between tasks; used on asyncio and on trio."""

    async def get(
        self,
        url: str,
        *,
        accept: str = "*/*",
        headers: Mapping[str, str] | None = None,
        may_follow: MayFollow | None = None,
    ) -> WebResponse:
        """Fetch a page. Carries no cookies, no credentials and no referrer.

        Any status is an answer; what was checked is dialled, for each redirect again.

        Args:
            may_follow: Asked before a redirect is followed, with its target; raises what `get` is to raise.
        Raises:
            Refused: The URL is none that may be asked.
            Unreachable: No answer came of it.
        """
        ...

    async def ask(
        self, method: str, url: str, *, json: Any = None, headers: Mapping[str, str] | None = None
    ) -> WebResponse:
        """Send a request to a service that the owner named: with its key, and without following redirects.

        Args:
            json: Sent as the body. None: there is none.
            headers: Sent as they are, secrets among them; never logged.
        Raises:
            Refused, Unreachable: As for `get`.
        """
        ...

    async def aclose(self) -> None:
        """Let go of all connections. Can be called again."""
        ...

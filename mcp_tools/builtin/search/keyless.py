"""`ddgs`: search engines that need no key, read from the pages they show to people.

The library's engines know how to ask and how to read. Its own front asks several at once, waits for all of
them, and says the same of a page without results as of one that takes us for a robot; so they are asked here,
one after the other, over a connection that keeps the status and has bounds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.request import getproxies_environment

import anyio

from mcp_tools.builtin.search.answers import refuse_status
from mcp_tools.builtin.search.options import SearchOptions
from mcp_tools.builtin.search.turns import LONGEST_ASKED_REST_S, Turns
from mcp_tools.builtin.search.types import Failed, Found, Hit, Kind
from mcp_tools.retry_after import retry_after_s

if TYPE_CHECKING:
    import primp

MAX_PAGE_BYTES: Final = 4 * 1024**2
MAX_THREADS: Final = 8
ENGINE_S: Final = 5.0
ARTICLES_ONLY: Final = frozenset({"wikipedia"})
"""That one has no article says nothing of the web."""
ROBOT: Final = ("captcha", "anomaly-modal", "anomaly.js", "unusual traffic", "are you a robot", "not a robot")
NOTHING: Final = (
    "no-results",
    "no results found",
    "no pages found",
    "no more results",
    "did not find results",
    "did not match any",
    "not many great matches",
    "couldn't find any results",
)
"""How the engines say that they found nothing. A page without results and without such words counts as
blocked: an engine that rewords its page is then called blocked, and nobody is told that there is nothing."""


class Page:
    """A page as the library's engines want it."""

    def __init__(self, status_code: int, content: bytes, encoding: str) -> None:
        self.status_code = status_code
        self.content = content
        try:
            self.text = content.decode(encoding, "replace")
        except LookupError:
            self.text = content.decode("utf-8", "replace")


class Connection:
    """Stands in for the library's HTTP client: bounded, without redirects, and it remembers what was said.

    Args:
        client: The library's own connection, with the browser that it resembles.
        until: When all of it must be over, by `clock`.
        is_over: Whether nobody waits any more.
    """

    def __init__(
        self,
        client: primp.Client,
        until: float,
        is_over: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # An engine sends its captcha by a redirect; and where one leads was checked by nobody.
        client.follow_redirects = False
        self.client = client
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.text = ""
        self._until = until
        self._is_over = is_over
        self._clock = clock

    def request(self, method: Any, url: str, **given: Any) -> Page:
        """Send a request and read its page.

        Raises:
            Failed: It came to nothing, or is too large.
        """
        import primp

        self._check()
        try:
            given["timeout"] = max(0.1, self._until - self._clock())
            response = self.client.request(method, url, stream=True, **given)
            self.status = response.status_code
            self.headers = {name.lower(): value for name, value in dict(response.headers).items()}
            body = b"".join(self._chunks(response))
        except primp.TimeoutError:
            raise Failed(Kind.UNAVAILABLE, "gave no whole page in time") from None
        except (primp.BodyError, primp.DecodeError):
            raise Failed(Kind.UNAVAILABLE, "its page is cut short or is packed wrongly") from None
        except primp.PrimpError as error:
            raise Failed(Kind.UNAVAILABLE, f"cannot be reached ({type(error).__name__})") from None
        page = Page(response.status_code, body, response.encoding or "utf-8")
        self.text = page.text
        return page

    def get(self, url: str, **given: Any) -> Page:
        """`request` with GET."""
        return self.request("GET", url, **given)

    def _chunks(self, response: Any) -> Iterator[bytes]:
        size = 0
        try:
            for chunk in response.iter_bytes():
                size += len(chunk)
                if size > MAX_PAGE_BYTES:
                    raise Failed(Kind.UNAVAILABLE, f"its page is larger than {MAX_PAGE_BYTES:,} bytes")
                self._check()
                yield chunk
        finally:
            response.close()

    def _check(self) -> None:
        if self._is_over() or self._clock() >= self._until:
            raise Failed(Kind.UNAVAILABLE, "gave no whole page in time")


class Keyless:
    """The provider `ddgs`.

    Its threads cannot be interrupted; they end by themselves at their deadline, and there are `MAX_THREADS`
    at most, those that nobody waits for among them.
    """

    name = "ddgs"
    interval_s = 1.0

    def __init__(self, options: SearchOptions) -> None:
        self._engines = options.engines
        self._proxy = options.proxy
        self._turns = {name: Turns(self.interval_s) for name in options.engines}
        self._free = threading.BoundedSemaphore(MAX_THREADS)

    async def search(self, query: str, count: int, *, timeout_s: float) -> Found:
        """Ask one engine after the other; see `Provider`."""
        if self._proxy is None and (name := _proxy_variable()):
            raise Failed(
                Kind.REJECTED,
                f"the variable {name} names a proxy, which its HTTP client would use unasked; the owner sets "
                "web_proxy to that proxy or removes the variable",
                is_ours=True,
            )
        until = time.monotonic() + timeout_s
        empty: Found | None = None
        failures: list[tuple[str, Failed]] = []
        for name in self._engines:
            left = until - time.monotonic()
            if left < 0.2:
                break
            try:
                await self._turns[name].take(left / 2)
                found = await self._ask(name, query, min(ENGINE_S, until - time.monotonic()))
            except Failed as failure:
                failure.retry_after_s = self._turns[name].failed(failure)
                failures.append((name, failure))
                continue
            self._turns[name].succeeded()
            if found.hits:
                return found
            if name not in ARTICLES_ONLY:
                if empty is not None:
                    return empty
                empty = found
        if empty is not None:
            return empty
        raise _together(failures)

    async def _ask(self, name: str, query: str, seconds: float) -> Found:
        over = threading.Event()

        def work() -> Found:
            # Taken in the thread: one that is cancelled before it began has nothing to give back.
            if not self._free.acquire(blocking=False):
                raise Failed(
                    Kind.UNAVAILABLE, "too many searches are under way", retry_after_s=ENGINE_S, is_ours=True
                )
            try:
                return _search(name, query, self._proxy, seconds, over.is_set)
            finally:
                self._free.release()

        # The thread's own deadline is the rule; this one is for a name server that does not answer.
        # The limiter is its own because the tools' threads must not wait for search engines.
        try:
            with anyio.move_on_after(seconds + 0.5):
                return await anyio.to_thread.run_sync(
                    work, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
                )
        finally:
            over.set()
        raise Failed(Kind.UNAVAILABLE, f"gave no whole page within {seconds:.3g} s")


def _search(name: str, query: str, proxy: str | None, seconds: float, is_over: Callable[[], bool]) -> Found:
    """Ask one engine, in a thread; the first one loads the library."""
    until = time.monotonic() + seconds
    from ddgs.engines import ENGINES

    kind = ENGINES["text"].get(name)
    if kind is None:
        raise Failed(Kind.REJECTED, "is not in the installed version of ddgs")
    # A new one for each search, so that no cookie joins two of them.
    engine: Any = kind(proxy=proxy, timeout=max(1, round(seconds)))
    connection = Connection(engine.http_client.client, until, is_over)
    engine.http_client = connection
    try:
        results = engine.search(query)
    except Failed:
        raise
    except Exception:
        # An engine stumbles over a page of another form: then the page tells more than the exception.
        results = None
    hits = tuple(
        Hit(title=result.title, url=result.href, snippet=result.body, source=name)
        for result in results or ()
        if result.href
    )
    if not hits:
        _refuse(connection)
        if not (name in ARTICLES_ONLY and results == []):
            _refuse_page(connection.text)
    return Found(hits=hits, by=name)


def _refuse(connection: Connection) -> None:
    """Raise what a status means, as pages for people use it."""
    status = connection.status or 0
    if 300 <= status < 400:
        raise Failed(Kind.BLOCKED, f"sends us elsewhere ({status}) instead of showing results")
    if status in (401, 403, 418):
        after = retry_after_s(connection.headers, most_s=LONGEST_ASKED_REST_S)
        raise Failed(Kind.BLOCKED, f"does not answer programs ({status})", retry_after_s=after)
    refuse_status(status, connection.headers)


def _refuse_page(text: str) -> None:
    """Raise unless a page without results says in its own words that there are none."""
    lowered = text.lower()
    if not lowered.strip():
        raise Failed(Kind.BLOCKED, "answered with an empty page")
    if any(mark in lowered for mark in ROBOT):
        raise Failed(Kind.BLOCKED, "asks whether we are a robot")
    if not any(words in lowered for words in NOTHING):
        raise Failed(Kind.BLOCKED, "answered with a page that holds no results and does not say so")


def _together(failures: list[tuple[str, Failed]]) -> Failed:
    """Make one failure of those of the engines: whoever can be asked first says when."""
    if not failures:
        return Failed(Kind.UNAVAILABLE, "there was no time left for it", is_ours=True)
    kinds = [failure.kind for _, failure in failures]
    order = (Kind.RATE_LIMITED, Kind.BLOCKED, Kind.UNAVAILABLE, Kind.REJECTED)
    kind = next(kind for kind in order if kind in kinds)
    waits = [failure.retry_after_s for _, failure in failures if failure.retry_after_s is not None]
    said = "; ".join(f"{name}: {failure.said}" for name, failure in failures)
    return Failed(kind, said, retry_after_s=min(waits, default=None), is_ours=True)


def _proxy_variable() -> str | None:
    """Return the variable that the library's HTTP client would take a proxy from, if there is one."""
    named = getproxies_environment()
    if named.get("no") == "*":
        return None
    names = (f"{scheme.upper()}_PROXY" for scheme in ("https", "http", "all") if named.get(scheme))
    return next(names, None)

"""What a site's robots.txt says to us, as RFC 9309 has it."""

from __future__ import annotations

import functools
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from mcp_tools.retry_after import retry_after_s
from mcp_tools.web import urls
from mcp_tools.web.pace import Pace
from mcp_tools.web.types import Astray, Busy, MayFollow, Refused, Unreachable, Web

if TYPE_CHECKING:
    from protego import Protego

MAX_ROBOTS_BYTES: Final = 500 * 1024
MAX_SITES: Final = 128
MAX_KEPT_BYTES: Final = 2 * 1024**2
FRESH_S: Final = 3600.0
FAILED_S: Final = 60.0
MAX_CRAWL_DELAY_S: Final = 30.0
MAX_WAIT_S: Final = 5.0
MAX_LINES: Final = 20_000
"""That concern us; whoever has more cannot be obeyed, and nothing is fetched from there."""
_USER_AGENT: Final = re.compile(r"user[-\s]*agent(?:\s*:|\s)(.*)", re.IGNORECASE)
_OF_THE_SITE: Final = re.compile(r"(?:sitemaps?|site-map|host)\b", re.IGNORECASE)
_QUICK_BYTES: Final = 20_000
_OK: Final = 200
_CLIENT_ERRORS: Final = range(400, 500)
_BUSY: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """What is known of an origin; neither rules nor a fault mean that everything is allowed."""

    until_s: float
    size_bytes: int = 0
    rules: Protego | None = None
    fault: str = ""


class Robots:
    """Asks robots.txt before a page is asked for; one answer serves for an hour.

    A file that is missing (4xx) allows everything. One that cannot be had (5xx, 429, no answer) allows
    nothing for a minute. `Crawl-delay` is kept as a distance between pages of up to 30 s: up to 5 s are
    waited for, more is refused with the time. At most 500 KiB of a file are read, and 128 sites or
    2 MiB of rules are remembered.

    Args:
        web: Fetches the files.
        user_agent: What stands before its first `/` is the name that rules are looked up by.
        clock: Seconds that never go back.
    """

    def __init__(self, web: Web, *, user_agent: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._web = web
        self._token = user_agent.partition("/")[0].strip()
        self._clock = clock
        self._sites: OrderedDict[str, _Site] = OrderedDict()
        self._under_way: dict[str, anyio.Event] = {}
        self._pace = Pace(clock=clock)

    async def check(
        self, url: str, may_follow: MayFollow | None = None, *, is_redirect: bool = False
    ) -> None:
        """Return if the site lets this page be fetched now.

        Args:
            is_redirect: It is where another page of this call leads, so it takes no turn of its own.
            may_follow: Asked before a redirect of robots.txt is followed. What it raises is raised, and says
                nothing of the site.
        Raises:
            Refused: It does not; `retry_after_s` says when it may, if it may later.
            Busy: It could not be asked now.
        """
        page = urls.parse(url)
        site = await self._site(page.origin, may_follow)
        if site.fault:
            wait_s = max(site.until_s - self._clock(), 1.0)
            raise Refused(
                f"the robots.txt of {page.netloc} {site.fault}, so its pages are not fetched for now; "
                f"try again in {wait_s:.0f} s",
                retry_after_s=wait_s,
            )
        if site.rules is None:
            return
        if site.size_bytes > _QUICK_BYTES:  # long rules against a long address take a while
            asked = functools.partial(site.rules.can_fetch, str(page), self._token)
            is_allowed = await anyio.to_thread.run_sync(asked)
        else:
            is_allowed = site.rules.can_fetch(str(page), self._token)
        if not is_allowed:
            raise Refused(
                f"the robots.txt of {page.netloc} does not allow programs to fetch this page; "
                "trying again will not help"
            )
        delay_s = min(site.rules.crawl_delay(self._token) or 0.0, MAX_CRAWL_DELAY_S)
        if delay_s > 0 and not is_redirect:
            wait_s = self._pace.claim(page.origin, delay_s, max_wait_s=MAX_WAIT_S)
            if wait_s > MAX_WAIT_S:
                raise Refused(
                    f"{page.netloc} asks programs for {delay_s:g} s between pages; "
                    f"try again in {wait_s:.0f} s",
                    retry_after_s=wait_s,
                )
            await anyio.sleep(wait_s)

    async def _site(self, origin: str, may_follow: MayFollow | None) -> _Site:
        while True:
            site = self._sites.get(origin)
            if site is not None and self._clock() < site.until_s:
                self._sites.move_to_end(origin)
                return site
            if (under_way := self._under_way.get(origin)) is None:
                break
            await under_way.wait()
        done = self._under_way[origin] = anyio.Event()
        try:
            site = await self._fetch(origin, may_follow)
            self._keep(origin, site)
            return site
        finally:
            del self._under_way[origin]
            done.set()

    async def _fetch(self, origin: str, may_follow: MayFollow | None) -> _Site:
        try:
            answer = await self._web.get(f"{origin}/robots.txt", accept="text/plain", may_follow=may_follow)
        except Busy:
            raise
        except Refused as error:
            place = urls.parse(origin).netloc
            raise Refused(f"the robots.txt of {place} may not be asked: {error}") from None
        except Astray:  # as if there were none (RFC 9309, 2.3.1.2), but not for long
            return _Site(until_s=self._clock() + FAILED_S)
        except Unreachable as error:
            return self._failed("cannot be reached", error.retry_after_s)
        if answer.status == _OK:
            from protego import Protego

            body = answer.body
            if answer.is_cut and len(body) < MAX_ROBOTS_BYTES:
                return self._failed("comes in too many small pieces to be read whole", None)
            if answer.is_cut or len(body) > MAX_ROBOTS_BYTES:
                body = body[:MAX_ROBOTS_BYTES].rpartition(b"\n")[0]  # half a rule is another one
            lines = _ours(body.decode("utf-8-sig", "replace"), self._token)
            if len(lines) > MAX_LINES:
                fault = f"has more than {MAX_LINES:,} lines for programs like this one"
                return _Site(until_s=self._clock() + FRESH_S, fault=fault)
            # Long files take a while to read, and others should not wait for it.
            rules = await anyio.to_thread.run_sync(Protego.parse, "\n".join(lines))
            return _Site(until_s=self._clock() + FRESH_S, size_bytes=sum(map(len, lines)), rules=rules)
        if answer.status in _CLIENT_ERRORS and answer.status != _BUSY:
            return _Site(until_s=self._clock() + FRESH_S)
        return self._failed(f"answered {answer.status}", retry_after_s(answer.headers))

    def _failed(self, fault: str, wait_s: float | None) -> _Site:
        return _Site(until_s=self._clock() + max(wait_s or 0.0, FAILED_S), fault=fault)

    def _keep(self, origin: str, site: _Site) -> None:
        self._sites.pop(origin, None)
        self._sites[origin] = site
        size_bytes = sum(known.size_bytes for known in self._sites.values())
        while len(self._sites) > MAX_SITES or (size_bytes > MAX_KEPT_BYTES and len(self._sites) > 1):
            _, forgotten = self._sites.popitem(last=False)
            size_bytes -= forgotten.size_bytes


def _ours(text: str, token: str) -> list[str]:
    """Return the lines of a robots.txt that are for this program or for all.

    The library makes a rule of each line for each program named above it: with all of them a hostile file is
    a bomb. Programs are named by their product tokens, whatever their case (RFC 9309, 2.2.1).
    """
    kept: list[str] = []
    named: set[str] = set()
    is_naming = False
    for line in text.splitlines():
        line = line.partition("#")[0].strip()  # noqa: PLW2901 - the line without its comment
        found = _USER_AGENT.match(line)
        if found is not None:
            named = named if is_naming else set()
            is_naming = True
            name = found.group(1).strip().partition("/")[0].strip().lower()
            if name == "*" or name.replace("*", "") == token.lower():
                named.add("*" if name == "*" else token)
        elif line and not _OF_THE_SITE.match(line):
            if is_naming:
                kept += [f"User-agent: {name}" for name in sorted(named)]
            is_naming = False
            if named:
                kept.append(line)
    if is_naming and token in named:  # a group without rules: everything is allowed
        kept += [f"User-agent: {token}", "Disallow:"]
    return kept

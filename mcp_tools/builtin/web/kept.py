"""Pages that are kept for their next parts, so that a part asks nobody anything."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mcp_tools.types import CallContext, Decision

if TYPE_CHECKING:
    from mcp_tools.builtin.web.readable import Readable

MAX_KEPT_CHARS: Final = 16_000_000
"""Of all pages together."""
_LEAST_CHARS: Final = 50_000  # what a page counts at least, so that there are not any number of small ones

Key = tuple[str, bool]
"""A URL in ASCII, and whether its source was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What came of a URL.

    Args:
        url: Where it came from in the end.
        redirects: What led there, the first one first.
        rulings: What the rules said of each of them and of `url`, when it was fetched.
    """

    url: str
    status: int
    content_type: str
    redirects: tuple[str, ...]
    rulings: tuple[Decision, ...]
    content: Readable


class KeptPages:
    """The latest pages of each principal. Where all of them are too much, whoever has most gives way.

    Args:
        seconds: How long one is kept. 0: none is.
        entries: How many of one principal at most.
        clock: Seconds that never go back.
    """

    def __init__(self, *, seconds: float, entries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._entries = entries
        self._clock = clock
        self._lock = threading.Lock()  # programs can have event loops in several threads
        self._kept: OrderedDict[tuple[str, Key], tuple[float, Page]] = OrderedDict()
        # By what lives as long as the call does, and is its own.
        self._held: weakref.WeakKeyDictionary[threading.Event, dict[Key, Page]] = weakref.WeakKeyDictionary()

    def hold(self, key: Key, context: CallContext) -> bool:
        """Say whether a page is kept for the caller. If so, this call has it, whatever goes in the meantime.

        Whoever asked nobody because a page is here must not come to fetch it.
        """
        with self._lock:
            page = self._get(key, context.principal)
            held = self._held.setdefault(context.cancelled, {})
            held.pop(key, None)
            if page is not None:
                held[key] = page
            return page is not None

    def get(self, key: Key, context: CallContext) -> Page | None:
        """Return what is kept for the caller, or else held for this call."""
        with self._lock:
            held = self._held.get(context.cancelled, {}).pop(key, None)
            return self._get(key, context.principal) or held

    def put(self, key: Key, context: CallContext, page: Page) -> None:
        """Keep a page for the caller."""
        if self._seconds <= 0 or self._entries <= 0:
            return
        now = self._clock()
        with self._lock:
            for place in [place for place, (until_s, _) in self._kept.items() if until_s <= now]:
                del self._kept[place]
            self._kept.pop((context.principal, key), None)
            self._kept[context.principal, key] = (now + self._seconds, page)
            pages = Counter(principal for principal, _ in self._kept)
            if pages[context.principal] > self._entries:
                self._forget_oldest_of(context.principal)
            while (chars := self._chars()).total() > MAX_KEPT_CHARS:
                self._forget_oldest_of(chars.most_common(1)[0][0])

    def clear(self) -> None:
        """Forget all of them, but what calls hold that run: who asked nobody must not come to fetch."""
        with self._lock:
            self._kept.clear()

    def _get(self, key: Key, principal: str) -> Page | None:
        until_s, page = self._kept.get((principal, key), (0.0, None))
        return page if self._clock() < until_s else None

    def _chars(self) -> Counter[str]:
        chars: Counter[str] = Counter()
        for (principal, _), (_, page) in self._kept.items():
            chars[principal] += max(len(page.content.text), _LEAST_CHARS)
        return chars

    def _forget_oldest_of(self, principal: str) -> None:
        del self._kept[next(place for place in self._kept if place[0] == principal)]

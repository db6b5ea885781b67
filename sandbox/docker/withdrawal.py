"""How callers withdraw their calls, and how nobody waits for more than they allow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Cancelled(BaseException):
    """The caller of a call withdrew."""


class Withdrawal:
    """How the caller of a call withdraws it, from another thread."""

    def __init__(self) -> None:
        self.asked = False
        self._tell: list[Callable[[], None]] = []

    def tell(self, what: Callable[[], None]) -> None:
        """Call this when the call is withdrawn; it must not block for long."""
        self._tell.append(what)
        if self.asked:
            what()

    def ask(self) -> None:
        self.asked = True
        for what in tuple(self._tell):
            what()

    def check(self) -> None:
        if self.asked:
            raise Cancelled


def bounded(work: Callable[[], _T], within_s: float) -> _T | None:
    """What `work` returns, or `None` if that takes too long; it goes on in a thread then."""
    found: list[_T] = []
    thread = threading.Thread(target=lambda: found.append(work()), name="docker-sandbox-ask", daemon=True)
    thread.start()
    thread.join(within_s)
    return found[0] if found else None

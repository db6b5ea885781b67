"""How a call waits for what others do, without a thread: it names a descriptor, its driver waits for it.

So threads and event loops, which wait differently, share everything else.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")


class Wait(NamedTuple):
    """Wait until `fd` is readable, `seconds` at most."""

    fd: int
    seconds: float


class Bell:
    """Wakes everybody who waits for a change of what calls share, in whatever thread or event loop."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may ring while its thread is in here
        self._ears: dict[int, object] = {}

    @contextmanager
    def listening(self, who: object = None) -> Iterator[int]:
        """A descriptor that is readable once the bell rang for all, or for `who`."""
        ear = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        with self._lock:
            self._ears[ear] = who
        try:
            yield ear
        finally:
            with self._lock:
                del self._ears[ear]
                os.close(ear)

    def ring(self, who: object = None) -> None:
        """Wake up all who wait, or only `who`."""
        with self._lock:
            for ear, listener in tuple(self._ears.items()):
                if who is None or listener is who:
                    os.eventfd_write(ear, 1)

    def until(
        self,
        attempt: Callable[[], _T | None],
        register: Callable[[select.epoll], None],
        patience_s: Callable[[], float],
        who: object = None,
    ) -> Generator[Wait, None, _T]:
        """Try `attempt` until it returns something: again after each ring and after what `register` adds.

        Args:
            attempt: Never blocks; what it raises ends the waiting.
            register: Adds to an epoll what may make the next attempt succeed.
            patience_s: How long to wait for that at most; may raise to give up.
            who: By what `ring` knows this caller.
        """
        found = attempt()
        if found is not None:
            return found
        with self.listening(who) as ear:  # before the next attempt, so that no ring is missed
            while (found := attempt()) is None:
                seconds = patience_s()
                with select.epoll() as epoll:
                    epoll.register(ear, select.EPOLLIN)
                    register(epoll)
                    yield Wait(epoll.fileno(), seconds)
                try:
                    os.eventfd_read(ear)
                except BlockingIOError:
                    continue
        return found

"""Answers that are kept for a little while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """The latest answers, by question. The oldest make room for new ones.

    Args:
        seconds: How long one is kept. 0: none is.
        entries: How many at most.
        clock: Seconds that never go back.
    """

    def __init__(self, *, seconds: float, entries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._entries = entries
        self._clock = clock
        self._kept: OrderedDict[Hashable, tuple[float, Value]] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        """Return what is kept for this question, if it is not too old."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        until, value = entry
        if self._clock() >= until:
            del self._kept[key]
            return None
        return value

    def put(self, key: Hashable, value: Value) -> None:
        """Keep an answer."""
        if self._seconds <= 0 or self._entries <= 0:
            return
        self._kept[key] = (self._clock() + self._seconds, value)
        self._kept.move_to_end(key)
        while len(self._kept) > self._entries:
            self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all of it."""
        self._kept.clear()

"""What a tool needs, made by its first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> None: ...


Made = TypeVar("Made", bound=_Closable)


class Late(Generic[Made]):
    """Something that is made when it is first asked for, so that a server's start need not load it.

    Args:
        make: Imports what it needs, and makes it.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._made: Made | None = None
        self._is_closed = False

    def get(self) -> Made:
        """Return it; what was made after the end is closed already."""
        if self._made is None:
            self._made = self._make()
            if self._is_closed:
                self._made.close()
        return self._made

    def close(self) -> None:
        """Close what was made. Can be called again."""
        self._is_closed = True
        if self._made is not None:
            self._made.close()

"""A file of totals that is opened when the first call has ended, so that a server starts without it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mcp_tools import outages
from mcp_tools.limits.threaded import Backend, ThreadedStore, Work
from mcp_tools.types import LimitsUnavailable

logger = logging.getLogger(__name__)


def open_later(path: str) -> ThreadedStore:
    """Return a store in a file, for a limiter that only adds up what calls used.

    Nobody waits for the file. While it fails, ends of calls are kept in memory, up to 10,000, and a warning
    says so once.

    Args:
        path: Absolute.
    """
    return ThreadedStore(_Later(path), name=path)


class _Later:
    """A backend that is loaded for the first work. Used by one thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._backend: Backend | None = None
        self._works = True

    def run(self, work: Sequence[Work]) -> list[Any]:
        try:
            answers = self._loaded().run(work)
        except LimitsUnavailable as error:
            if self._works:
                outages.note("limits")
                logger.warning("what calls use is kept in memory until it can be noted: %s", error)
            self._works = False
            raise
        self._works = True
        return answers

    def rest(self) -> None:
        if self._backend is not None:
            self._backend.rest()

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()

    def _loaded(self) -> Backend:
        if self._backend is None:
            try:
                from mcp_tools.limits.sqlite import sqlite_backend
            except ImportError as error:  # a Python that was built without it
                raise LimitsUnavailable(str(error)) from error
            self._backend = sqlite_backend(self._path)
        return self._backend

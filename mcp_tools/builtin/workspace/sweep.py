"""Removing temp files that a killed server left in the roots. Bounded; never touches a live one's."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mcp_tools.builtin.workspace.temporary import MIN_AGE_S, is_temporary_name, remove_if_abandoned

if TYPE_CHECKING:
    from mcp_tools.builtin.workspace.roots import Workspace

MAX_ENTRIES: Final = 1_000_000
MAX_SECONDS: Final = 60.0

PAUSE_S: Final = 0.002
"""After every 500 names, so that calls that are served meanwhile hardly notice."""


def sweep(
    workspace: Workspace,
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    min_age_s: float = MIN_AGE_S,
) -> int:
    """Remove the temp files of writers that are gone, in all roots.

    Looks at up to a million names, for up to a minute, nearest folders first; links are not followed.
    Returns:
        How many were removed.
    """
    removed = seen = 0
    deadline = time.monotonic() + MAX_SECONDS
    for root in workspace.roots:
        folders: deque[tuple[str, ...]] = deque([()])
        while folders:
            parts = folders.popleft()
            try:
                fd = workspace.opener(root.fd, parts, os.O_RDONLY | os.O_DIRECTORY, links=False)
            except OSError:
                continue
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        seen += 1
                        if seen > MAX_ENTRIES or time.monotonic() > deadline or is_cancelled():
                            return removed
                        if seen % 500 == 0:
                            time.sleep(PAUSE_S)
                        if entry.is_dir(follow_symlinks=False):
                            folders.append((*parts, entry.name))
                        elif is_temporary_name(entry.name):
                            removed += remove_if_abandoned(fd, entry.name, min_age_s=min_age_s)
            except OSError:
                continue
            finally:
                os.close(fd)
    return removed

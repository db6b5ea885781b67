"""Names that look like one that does not exist, so that a model need not guess."""

from __future__ import annotations

import difflib
import itertools
import os
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final

from mcp_tools.builtin.workspace.beneath import Opener, location_of
from mcp_tools.builtin.workspace.problems import shown

MAX_NAMES: Final = 2_000
MAX_SUGGESTED: Final = 3


def suggest(
    opener: Opener, root_fd: int, parts: Sequence[str], may_name: Callable[[str], bool] | None = None
) -> str:
    """Return "similar names there: …" for a missing path, or an empty string.

    Compatibility forms and case are ignored: `résumé.txt` exists in two spellings that look the same,
    and names of screenshots hold spaces no keyboard types.

    Args:
        may_name: Told a real path, says whether it may be named; None names all.
    """
    if not parts:
        return ""
    try:
        fd = opener(root_fd, parts[:-1], os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return ""
    try:
        with os.scandir(fd) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_NAMES)]
        folder = location_of(fd).rstrip("/")
    except OSError:
        return ""
    finally:
        os.close(fd)
    by_folded: dict[str, list[str]] = {}
    for name in names:
        by_folded.setdefault(_folded(name), []).append(name)
    close = difflib.get_close_matches(_folded(parts[-1]), by_folded, n=MAX_SUGGESTED, cutoff=0.75)
    found = [
        name
        for folded in close
        for name in by_folded[folded]
        if may_name is None or may_name(f"{folder}/{name}")
    ][:MAX_SUGGESTED]
    if not found:
        return ""
    spelled = ", ".join(
        shown(name) if name.isascii() else f"{shown(name)} (written {name.encode('unicode_escape').decode()})"
        for name in found
    )
    return f"similar names there: {spelled}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()

"""What policy patterns are matched against: real places, whatever spelling or link was used."""

from __future__ import annotations

import contextlib
import os

from mcp_tools.builtin.files.guard import joined
from mcp_tools.builtin.workspace import Workspace
from mcp_tools.builtin.workspace.beneath import O_PATH
from mcp_tools.builtin.workspace.threads import Work
from mcp_tools.errors import ToolError
from mcp_tools.types import Subject


async def real_places(workspace: Workspace, *paths: str, follow: bool = True) -> list[Subject]:
    """Return one subject per path: relative to the first root, where it lies there, and absolute.

    What does not exist yet is named below the deepest folder that does. A path that cannot be
    reached at all stands for itself: the tool will refuse it.
    """

    def look(_: Work) -> list[Subject]:
        return [_real_place(workspace, path, follow) for path in paths]

    return await workspace.threads.run(look)


def _real_place(workspace: Workspace, path: str, follow: bool) -> Subject:
    try:
        place = workspace.locate(path)
    except ToolError:
        return path
    # Also where a link leads to something that does not exist yet: a write would create it there.
    with contextlib.suppress(ToolError), workspace.target(path, follow=follow) as target:
        return workspace.spellings(target.root, target.real_path)
    kept, rest = place.parts, []
    if not follow and kept:
        kept, rest = kept[:-1], [kept[-1]]
    while True:
        with contextlib.suppress(OSError):
            fd = workspace.opener(place.root.fd, kept, O_PATH or os.O_RDONLY | os.O_NONBLOCK)
            try:
                _, real_path = workspace.real_location(place.root, fd)
            finally:
                os.close(fd)
            if rest:
                real_path = joined(real_path, rest[::-1])
            return workspace.spellings(place.root, real_path)
        if not kept:
            return path
        rest.append(kept[-1])
        kept = kept[:-1]

"""A tool's path argument → the names below a root. Pure: nothing here touches a disk."""

from __future__ import annotations

from typing import Final

from mcp_tools.builtin.workspace.problems import FileProblem
from mcp_tools.errors import ToolError

MAX_PATH_BYTES: Final = 4095  # PATH_MAX without its NUL: the kernel takes no more in one call


def check(path: str) -> None:
    """Refuse what can be no path at all.

    Raises:
        ToolError: Empty, too long, with NUL or half a character, a URI, or a `~`.
    """
    if not path.strip():
        raise ToolError("the path is empty; use '.' for the first allowed folder")
    if "\0" in path:
        raise FileProblem(path, "a path cannot hold NUL")
    try:
        length_bytes = len(path.encode())
    except UnicodeEncodeError:
        raise FileProblem(path, "holds half a character (a lone surrogate), which no name can") from None
    if length_bytes > MAX_PATH_BYTES:
        raise FileProblem(path, f"is {length_bytes} bytes long; at most {MAX_PATH_BYTES} are possible")
    if path.lower().startswith("file:"):
        raise FileProblem(path, "is a URI; send a plain path")
    if path == "~" or path.startswith("~/"):
        raise FileProblem(path, "'~' is not expanded here; send a path relative to an allowed folder")


def relative_parts(path: str) -> tuple[str, ...] | None:
    """Return the names of a relative path with `.` and `..` worked out, or None if it leaves."""
    parts: list[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            return None
    return tuple(parts)


def parts_below(path: str, folder: str) -> tuple[str, ...] | None:
    """Return the names of the absolute `path` below the absolute `folder`, or None if it is not below.

    Whole names are compared, so that `/data-evil` is not below `/data`.
    """
    below = relative_parts(path)
    own = relative_parts(folder)
    if below is None or own is None or below[: len(own)] != own:
        return None
    return below[len(own) :]


def parts_below_in_other_case(path: str, folder: str) -> tuple[str, tuple[str, ...]] | None:
    """Like `parts_below` with case ignored: the prefix as it was spelled, and the names below it."""
    below = relative_parts(path)
    own = relative_parts(folder)
    if below is None or own is None:
        return None
    prefix = below[: len(own)]
    if [part.casefold() for part in prefix] != [part.casefold() for part in own]:
        return None
    return "/" + "/".join(prefix), below[len(own) :]

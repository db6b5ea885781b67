"""What is asked about each name a call comes across: must a person say yes, do the rules permit it?"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from mcp_tools.builtin.workspace import Located, Root, Target, Workspace
from mcp_tools.builtin.workspace.problems import FileProblem, explain, shown
from mcp_tools.builtin.workspace.protected import why_protected
from mcp_tools.types import CallContext


def why_ask(real_path: str, asked: str) -> str | None:
    """Say why a change at this real path needs a person's yes even where writes are pre-approved."""
    name = why_protected(real_path.strip("/").split("/"))
    if name is None:
        return None
    where = "" if real_path.endswith(asked) else f" (in truth {shown(real_path)})"
    return f"{shown(asked)}{where} is protected: programs read and act on {shown(name)} by themselves"


def refuse_now(workspace: Workspace, targets: Sequence[Target], context: CallContext) -> None:
    """Refuse a target by where its opened folder really is now: the last look before a change.

    The call was decided by what the path led to then; a link may have been exchanged since.
    Raises:
        FileProblem: It is protected and nobody was asked, or a rule forbids it. Nothing was changed.
    """
    for target in targets:
        real_path = target.real_path_now()
        reason = None if context.asked else why_ask(real_path, target.asked)
        if reason is not None:
            raise FileProblem(
                target.asked,
                f"nothing was changed, because a person must be asked about this name: {reason}",
            )
        if context.screen is not None and not context.permits(workspace.spellings(target.root, real_path)):
            raise FileProblem(
                target.asked,
                f"nothing was changed, because a rule forbids where this leads ({shown(real_path)})",
            )


def permitted(workspace: Workspace, root: Root, context: CallContext) -> Callable[[str], bool] | None:
    """Return what says of a real path whether the rules let this call touch it; None where all may be."""
    if context.screen is None:
        return None
    return lambda real_path: context.permits(workspace.spellings(root, real_path))


def open_file(workspace: Workspace, place: Located, context: CallContext) -> int:
    """Open a regular file to read it; what the descriptor really leads to is judged once more.

    Raises:
        ToolError: As `Workspace.open_file`, or a rule forbids what is there by now.
    """
    fd = workspace.open_file(place, may_name=permitted(workspace, place.root, context))
    check_opened(workspace, place, fd, context)
    return fd


def check_opened(workspace: Workspace, place: Located, fd: int, context: CallContext) -> None:
    """Close what was opened and refuse, if a rule forbids where it really is.

    Raises:
        ToolError: It is forbidden, or left its root meanwhile; the descriptor is closed.
    """
    permits = permitted(workspace, place.root, context)
    if permits is None:
        return
    try:
        is_permitted = permits(workspace.real_location(place.root, fd)[1])
    except OSError as error:
        os.close(fd)
        raise explain(error, place.asked) from error
    if not is_permitted:
        os.close(fd)
        raise FileProblem(place.asked, "a rule forbids where this leads; nothing was read")


def permitted_below(
    workspace: Workspace, root: Root, real_path: str, context: CallContext
) -> Callable[[Sequence[str]], bool] | None:
    """Return what says of names below a folder whether the rules let this call touch them.

    None where no rule forbids anything.
    """
    if context.screen is None:
        return None
    folders = workspace.spellings(root, real_path)

    def permits(parts: Sequence[str]) -> bool:
        return context.permits(tuple(joined(folder, parts) for folder in folders))

    return permits


def joined(folder: str, parts: Sequence[str]) -> str:
    """Name what is below a folder that is called ".", or by its path."""
    below = "/".join(parts)
    return below if folder == "." else f"{folder.rstrip('/')}/{below}"

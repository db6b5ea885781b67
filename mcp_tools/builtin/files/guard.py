"""What every file tool that changes something asks first: is this a name a person must be asked about?"""

from __future__ import annotations

from collections.abc import Sequence

from mcp_tools.builtin.workspace import Target
from mcp_tools.builtin.workspace.problems import FileProblem, shown
from mcp_tools.builtin.workspace.protected import why_protected
from mcp_tools.types import CallContext


def why_ask(real_path: str, asked: str) -> str | None:
    """Say why a change at this real path needs a person's yes even where writes are pre-approved."""
    name = why_protected(real_path.strip("/").split("/"))
    if name is None:
        return None
    where = "" if real_path.endswith(asked) else f" (in truth {shown(real_path)})"
    return f"{shown(asked)}{where} is protected: programs read and act on {shown(name)} by themselves"


def refuse_unasked(targets: Sequence[Target], context: CallContext) -> None:
    """Refuse a protected target nobody was asked about, by where its opened folder really is now.

    The question was decided by what the path led to then; a link may have been exchanged since.
    Raises:
        FileProblem: Nothing was changed.
    """
    if context.asked:
        return
    for target in targets:
        reason = why_ask(target.real_path_now(), target.asked)
        if reason is not None:
            raise FileProblem(
                target.asked,
                f"nothing was changed, because a person must be asked about this name: {reason}",
            )

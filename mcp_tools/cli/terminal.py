"""What the command line shows and reads at a terminal."""

from __future__ import annotations

import contextlib
import select
import sys

from mcp_tools.confirmation.question import visible

_MESSAGE_CHARS = 200
_PASTE_CHARS = 1024**2
_BETWEEN_PASTED_S = 0.05


def for_display(text: str) -> str:
    """Return `text` so that a terminal prints it and does nothing else; line breaks and tabs stay."""
    return "\t".join(visible(part, keep_newlines=True) for part in text.split("\t"))


def progress(done: float, total: float | None, message: str | None) -> str:
    """Return one line of what a tool says of its progress."""
    count = f"{done:g}" if total is None else f"{done:g}/{total:g}"
    return for_display(f"[{count}] {' '.join((message or '').split())[:_MESSAGE_CHARS]}".rstrip())


def read_pasted(prompt: str) -> str:
    """Read a line at the terminal; the lines of a pasted text are one.

    Raises:
        EOFError: The input is over.
    """
    lines = [input(prompt)]
    size = len(lines[0])
    with contextlib.suppress(OSError, EOFError):  # OSError: where only sockets can be waited for
        while size < _PASTE_CHARS and select.select([sys.stdin], [], [], _BETWEEN_PASTED_S)[0]:
            lines.append(input())
            size += len(lines[-1])
    return "\n".join(lines)

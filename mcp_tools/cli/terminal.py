"""Asking a person at the terminal, with the same question that clients show."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time

from mcp_tools.confirmation.channels import Answer, Reply
from mcp_tools.confirmation.question import question_text, visible
from mcp_tools.types import Confirmation

CHANNEL: str = "terminal"
_MESSAGE_CHARS = 200
_QUIET_S = 0.3
_QUIET_WITHIN_S = 10.0
_PASTE_CHARS = 1024**2
_BETWEEN_PASTED_S = 0.05


def for_display(text: str) -> str:
    """Return `text` so that a terminal prints it and does nothing else; line breaks and tabs stay."""
    return "\t".join(visible(part, keep_newlines=True) for part in text.split("\t"))


def progress(done: float, total: float | None, message: str | None) -> str:
    """Return one line of what a tool says of its progress."""
    count = f"{done:g}" if total is None else f"{done:g}/{total:g}"
    return for_display(f"[{count}] {' '.join((message or '').split())[:_MESSAGE_CHARS]}".rstrip())


def can_ask() -> bool:
    """Whether a person can be asked: both what they read and where they type is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: Confirmation, *, asked_by: str, withdrawn: int | None = None) -> Answer:
    """Show the question on stderr and wait for `y` or `yes`, as long as a yes would hold.

    Blocks, so it is no `Channel`: Ctrl-C must end it, which an event loop would not let happen.

    Args:
        withdrawn: A descriptor that becomes readable when nobody waits for the answer any more; what is typed
            from then on is left to others.
    """
    if not _forget_typed():
        return Answer(Reply.DISMISSED, "the terminal's input did not pause for a question; nothing was done")
    print(f"\n{question_text(question, asked_by=asked_by)}\n", file=sys.stderr)
    print("Do it? [y/N] ", end="", file=sys.stderr, flush=True)
    watched = [sys.stdin] if withdrawn is None else [sys.stdin, withdrawn]
    ready, _, _ = select.select(watched, [], [], question.expires_in_s)
    if withdrawn in ready:
        return Answer(Reply.DISMISSED, "the question was withdrawn; nothing was done")
    if not ready:
        print(file=sys.stderr)
        return Answer(
            Reply.NO_ANSWER, f"nobody answered within {question.expires_in_s:g} s; nothing was done"
        )
    line = sys.stdin.readline()
    if not line:
        print(file=sys.stderr)
        return Answer(Reply.DISMISSED, "the question was closed without an answer; nothing was done")
    if line.strip().lower() in ("y", "yes"):
        return Answer(Reply.APPROVED)
    return Answer(Reply.DECLINED, "declined by the person who was asked; nothing was done")


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


def _forget_typed() -> bool:
    """Drop what was typed before a question was there, for it is no answer to it.

    Returns:
        False: it goes on and on, as a long paste does.
    """
    try:
        import termios
    except ImportError:  # not a POSIX system
        return True
    until = time.monotonic() + _QUIET_WITHIN_S
    with contextlib.suppress(OSError, termios.error):
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        # A terminal hands over a long paste piece by piece, and a slow line brings it with pauses.
        while select.select([sys.stdin], [], [], _QUIET_S)[0]:
            if time.monotonic() > until:
                return False
            if not os.read(sys.stdin.fileno(), _PASTE_CHARS):
                break  # its end, which the question itself will meet
            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
    return True

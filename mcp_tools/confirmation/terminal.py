"""Asking a person at the terminal, with the same question that clients show."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import anyio.to_thread

from mcp_tools.confirmation.channels import Answer, Reply
from mcp_tools.confirmation.question import question_text
from mcp_tools.types import Confirmation

CHANNEL: Final = "terminal"
_QUIET_S: Final = 0.3
_QUIET_WITHIN_S: Final = 10.0
_PIECE_BYTES: Final = 65_536
_PASTED_S: Final = 0.05
_TURN_LOOK_S: Final = 0.1
_WITHDRAWN: Final = Answer(Reply.DISMISSED, "the question was withdrawn; nothing was done")
_turn = threading.Lock()  # who asks


async def confirm_at_terminal(question: Confirmation, *, asked_by: str = "mcp-tools") -> bool:
    """Put a question to the person at this process's terminal: a `confirm` for batches and agents.

    Cancelling it withdraws the question; what is typed from then on is left to others.

    Args:
        asked_by: What asks, by a name that the person knows.
    Raises:
        RuntimeError: There is no terminal to ask at. Nothing was asked.
    """
    if not can_ask():
        raise RuntimeError("there is no terminal to ask at: stdin and stderr must both be one")
    withdrawn, waits = os.pipe()
    has_started = False

    def put() -> bool:
        nonlocal has_started
        has_started = True
        try:
            return ask(question, asked_by=asked_by, withdrawn=withdrawn).is_yes
        finally:
            os.close(withdrawn)

    # In a thread, so that everything else goes on; it must then read no line that is meant for others.
    try:
        return await anyio.to_thread.run_sync(put, abandon_on_cancel=True)
    finally:
        os.close(waits)
        if not has_started:
            os.close(withdrawn)


def can_ask() -> bool:
    """Whether a person can be asked: both what they read and where they type is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: Confirmation, *, asked_by: str, withdrawn: int | None = None) -> Answer:
    """Show the question on stderr and wait for `y` or `yes`, as long as a yes would hold.

    Blocks, so it is no `Channel`: Ctrl-C must end it, which an event loop would not let happen. Of several at
    the same time one is shown after the other: a yes must not be taken for another question's.

    Args:
        withdrawn: A descriptor that becomes readable when nobody waits for the answer any more; what is typed
            from then on is left to others.
    """
    until = time.monotonic() + question.expires_in_s
    while not _turn.acquire(timeout=_TURN_LOOK_S):
        if _is_ready(withdrawn):
            return _WITHDRAWN
        if time.monotonic() >= until:
            return _unanswered(question)
    try:
        return _ask(question, asked_by, withdrawn, until)
    finally:
        _turn.release()


def _ask(question: Confirmation, asked_by: str, withdrawn: int | None, until: float) -> Answer:
    watched = [sys.stdin] if withdrawn is None else [sys.stdin, withdrawn]
    if not _forget_typed(watched):
        return Answer(Reply.DISMISSED, "the terminal's input did not pause for a question; nothing was done")
    if _is_ready(withdrawn):
        return _WITHDRAWN
    print(f"\n{question_text(question, asked_by=asked_by)}\n", file=sys.stderr)
    print("Do it? [y/N] ", end="", file=sys.stderr, flush=True)
    ready, _, _ = select.select(watched, [], [], max(0.0, until - time.monotonic()))
    if withdrawn in ready:
        return _WITHDRAWN
    if not ready:
        print(file=sys.stderr)
        return _unanswered(question)
    line = sys.stdin.readline()
    if not line:
        print(file=sys.stderr)
        return Answer(Reply.DISMISSED, "the question was closed without an answer; nothing was done")
    if line.strip().lower() not in ("y", "yes"):
        return Answer(Reply.DECLINED, "declined by the person who was asked; nothing was done")
    if select.select([sys.stdin], [], [], _PASTED_S)[0]:
        _forget_typed(watched)
        return Answer(Reply.DECLINED, "several lines came at once, as if pasted; nothing was done")
    return Answer(Reply.APPROVED)


def _is_ready(descriptor: int | None) -> bool:
    return descriptor is not None and bool(select.select([descriptor], [], [], 0)[0])


def _unanswered(question: Confirmation) -> Answer:
    return Answer(Reply.NO_ANSWER, f"nobody answered within {question.expires_in_s:g} s; nothing was done")


def _forget_typed(watched: Sequence[Any]) -> bool:
    """Drop what was typed before a question was there, for it is no answer to it.

    Args:
        watched: Stdin, and what ends the wait besides.
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
        while select.select(watched, [], [], _QUIET_S)[0] == [sys.stdin]:
            if time.monotonic() > until:
                return False
            if not os.read(sys.stdin.fileno(), _PIECE_BYTES):
                break  # its end, which the question itself will meet
            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
    return True

"""stdio, on the event loop: no threads, nothing that blocks, and no more memory than the limits below.

The descriptors are never made non-blocking: that is a property of the pipe's open description, which
the process that started us may share. Instead we read when there is something to read, and write no
more at once than a pipe that has any room is bound to take.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import anyio
from mcp.server.lowlevel import Server

from mcp_tools.errors import ConfigError
from mcp_tools.server.traffic import Inbox, Limits, Outbox

if sys.platform != "win32":
    import fcntl

FLUSH_S: Final = 0.5
"""How long the last answers may take to leave once nothing more comes in."""

_serving = threading.Lock()


async def serve_stdio(
    server: Server[Any], *, shutdown: anyio.Event | None = None, limits: Limits | None = None
) -> None:
    """Serve the process that started us on stdin and stdout, until stdin ends. Needs asyncio.

    While it serves, descriptor 0 is the null device and descriptor 1 is stderr, so that what tools
    and their children print does not get between the messages; both are put back at the end.

    Args:
        server: The MCP server.
        shutdown: Set it to stop at once; calls in flight are cancelled.
        limits: Bounds on memory; None for the usual ones.
    Raises:
        ConfigError: stdin or stdout is closed, or the platform is native Windows.
        RuntimeError: Another call of this function is serving in this process.
    Cancelling it stops as `shutdown` does.
    """
    if sys.platform == "win32":
        raise ConfigError("stdio is not supported on native Windows yet; run the server in WSL2")
    limits = limits or Limits()
    with standard_streams() as streams:
        outbox = Outbox(streams.write_fd, limits)
        inbox = Inbox(streams.read_fd, outbox, limits)
        try:
            async with anyio.create_task_group() as group:
                if shutdown is not None:
                    group.start_soon(_cancel_when, shutdown, group.cancel_scope)
                await server.run(inbox, outbox, server.create_initialization_options())
                group.cancel_scope.cancel()
            with anyio.move_on_after(FLUSH_S):
                await outbox.flushed()
        finally:
            inbox.close()
            outbox.close()


async def _cancel_when(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


@dataclass(frozen=True, slots=True)
class Streams:
    """Our own descriptors of the wire; the numbers 0 and 1 lead elsewhere meanwhile."""

    read_fd: int
    write_fd: int


@contextmanager
def standard_streams() -> Iterator[Streams]:
    """Take descriptors 0 and 1 away from everybody else in this process and its children."""
    if not _serving.acquire(blocking=False):
        raise RuntimeError("stdin and stdout are being served already in this process")
    try:
        read_fd = _take(0, "stdin")
        try:
            write_fd = _take(1, "stdout")
        except BaseException:
            os.close(read_fd)
            raise
        try:
            _point(0, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            _point(1, _stray_output())
            yield Streams(read_fd, write_fd)
        finally:
            # What was printed meanwhile must not follow the last message.
            with suppress(Exception):
                sys.stdout.flush()
            os.dup2(read_fd, 0)
            os.dup2(write_fd, 1)
            os.close(read_fd)
            os.close(write_fd)
    finally:
        _serving.release()


def _take(fd: int, name: str) -> int:
    try:
        # Above the standard range, and not for children.
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as error:
        raise ConfigError(f"{name} is closed; a stdio server needs both stdin and stdout") from error


def _stray_output() -> int:
    # A Python that was started without stderr has None here, and number 2 may be any file by now.
    if sys.stderr is not None:
        with suppress(OSError):
            return fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _point(fd: int, target: int) -> None:
    os.dup2(target, fd)
    os.close(target)

"""Starting a server as a client would, for as long as it takes to say hello."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

HELLO_S: Final = 15.0
LEAVE_S: Final = 3.0
MAX_LINE_BYTES: Final = 1024**2
MAX_STDERR_BYTES: Final = 64 * 1024
MAX_STDERR_CHARS: Final = 500

# What a client hands to servers that it starts; everything else it keeps to itself.
_INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "XDG_CONFIG_HOME", "APPDATA", "LOCALAPPDATA",
    "USERPROFILE", "HOMEDRIVE", "HOMEPATH", "PROCESSOR_ARCHITECTURE", "PROGRAMFILES", "SYSTEMDRIVE",
    "SYSTEMROOT", "TEMP", "USERNAME",
)  # fmt: skip
_HELLO: Final = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "mcp-tools doctor", "version": "1"},
    },
}


class NotStarted(Exception):
    """It did not answer as a server does. The text says what it did instead, and may hold what it printed."""


def start(
    command: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    inherited: Mapping[str, str],
    folder: str,
) -> str:
    """Start a server, greet it, and end it again.

    Args:
        command: The whole path of the program.
        arguments: Its arguments.
        environment: What the client's settings add.
        inherited: This process's variables, of which a client hands on a few.
        folder: Where it starts.
    Returns:
        What it calls itself, with its version.
    Raises:
        NotStarted: It ended, kept silent for 15 s, or said something else.
    """
    env = {name: inherited[name] for name in _INHERITED if name in inherited} | dict(environment)
    try:
        process = subprocess.Popen(  # noqa: S603 - what the user's own client runs at each of its starts
            [command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=folder or None,
            start_new_session=True,
        )
    except OSError as error:
        raise NotStarted(error.strerror or "it cannot be executed") from error
    stderr: list[bytes] = []
    drain = threading.Thread(target=_keep_head, args=(process.stderr, stderr), daemon=True)
    drain.start()
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        _kill(process)

    # Reading a line cannot be bounded; the life of what writes it can.
    timer = threading.Timer(HELLO_S, give_up)
    timer.daemon = True
    timer.start()
    line = b""
    try:
        with contextlib.suppress(OSError):  # it may have said why and gone, before it was asked
            _write(process, _HELLO)
        line = process.stdout.readline(MAX_LINE_BYTES) if process.stdout else b""
    finally:
        timer.cancel()
        _end(process)
        drain.join(LEAVE_S)
    if name := _name_in(line):
        return name
    said = b"".join(stderr).decode(errors="replace").strip()[-MAX_STDERR_CHARS:] or "nothing on stderr"
    if line:
        raise NotStarted(f"its first line is no answer of an MCP server; it said: {said}")
    if is_late.is_set():
        raise NotStarted(f"it gave no answer within {HELLO_S:g} s; it said: {said}")
    raise NotStarted(f"it ended with exit code {process.returncode} and said: {said}")


def _write(process: subprocess.Popen[bytes], message: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def _name_in(line: bytes) -> str:
    try:
        server = json.loads(line)["result"]["serverInfo"]
        return f"{str(server['name'])[:80]} {str(server.get('version', ''))[:40]}".strip()
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


def _keep_head(stream: IO[bytes] | None, into: list[bytes]) -> None:
    """Read to the end, so that the writer never waits, and keep what a person would read."""
    kept = 0
    if stream is None:
        return
    with stream:
        while piece := stream.read1(65_536):  # type: ignore[attr-defined]
            if kept < MAX_STDERR_BYTES:
                into.append(piece[: MAX_STDERR_BYTES - kept])
                kept += len(piece)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it leave by itself, as at a client's end; then make it."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    deadline_s = time.monotonic() + LEAVE_S
    while not _has_ended(process) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    # Also where it left by itself: what it started may still be there. It is not reaped before, so the number
    # of its group is nobody else's.
    _kill(process)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
        else:
            process.kill()

"""One worker process as the server sees it: started, spoken to, and ended with everything under it."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from mcp_tools.workers.frames import LENGTH, MAX_MESSAGE_BYTES, framed_json
from mcp_tools.workers.results import FunctionRaised, WorkerFailed
from mcp_tools.workers.target import Target

logger = logging.getLogger(__name__)

END_S: Final = 5.0
"""How long a killed worker is waited for. Only a process that the kernel cannot end takes that long."""

_SHIM: Final = Path(__file__).with_name("shim.py")
_PACKAGES: Final = str(Path(__file__).parents[2])
_BOOT: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from mcp_tools.workers.inside import main; main()"
)
_PIECE_BYTES: Final = 256 * 1024
_PARSED_ON_LOOP_BYTES: Final = 256 * 1024


class Worker:
    """A worker and the shim above it. Used by one call at a time; `end_now` from any thread.

    Starting takes milliseconds and blocks; `ready` waits until the function is imported.
    """

    def __init__(self, target: Target, name: str) -> None:
        """Start the process.

        Raises:
            OSError: It cannot be started: no more descriptors, processes or memory.
        """
        self.name = name
        self.is_ready = False
        self.is_closed = False
        """Whether it was ended, and nothing of it is held any more."""
        self.since_s = time.monotonic()
        """When it was started, then when it began to wait for its next call."""
        self._buffer = bytearray()
        self._number = 0  # of the last call
        self._words = bytearray()  # of the shim, at its end
        self._control, control = socket.socketpair()
        self._calls, calls = socket.socketpair()
        self.output_fd, output = os.pipe()
        command = [sys.executable, *_interpreter_flags(), "-P", "-c", _BOOT, _PACKAGES]
        fds = (control.fileno(), calls.fileno())
        try:
            self._shim = subprocess.Popen(  # noqa: S603 - our own interpreter and script
                [
                    sys.executable,
                    *("-I", "-S", "-B", "-X", "utf8", str(_SHIM)),
                    *map(str, (*fds, os.getpid())),
                    *command,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=fds,
                start_new_session=True,
            )
        except BaseException:
            self._control.close()
            self._calls.close()
            os.close(self.output_fd)
            raise
        finally:
            control.close()
            calls.close()
            os.close(output)
        self._control.setblocking(False)
        self._calls.setblocking(False)
        setup = {"target": target.as_json(), "sys_path": sys.path, "argv": sys.argv}
        self._unsent = memoryview(framed_json(setup))

    @property
    def is_well(self) -> bool:
        """Whether it is there still, as far as is known."""
        try:
            self._control.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            pass
        except OSError:
            return False
        else:
            return False  # the shim says something only once it is all over
        try:
            return bool(self._calls.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    async def ready(self) -> None:
        """Wait until the function is imported. Cancelling leaves the worker as it is; wait again later.

        Raises:
            WorkerFailed: It cannot be, and why. The worker is of no use any more.
        """
        if self.is_ready:
            return
        await self._send_rest()
        message = await self._receive()
        match message:
            case {"kind": "ready"}:
                self.is_ready = True
            case {"kind": "failed", "type": str(kind), "text": str(text)}:
                error = WorkerFailed(f"its function cannot be imported in a worker: {kind}: {text}")
                raise error from FunctionRaised.of(kind, text, str((message or {}).get("traceback", "")))
            case _:
                raise WorkerFailed(f"its worker did not start{await self._epitaph()}")

    async def call(
        self, request: bytes, relay: Callable[[dict[str, Any]], Awaitable[dict[str, Any] | None]]
    ) -> dict[str, Any]:
        """Have the function called and wait for what becomes of it.

        Args:
            request: A framed message.
            relay: Given each message before the last; what it returns is sent back.
        Returns:
            The last message: `returned` or `raised`.
        Raises:
            WorkerFailed: The worker ended under the call.
        After a cancellation the worker is in the middle of something: end it.
        """
        self._number += 1
        number, self._unsent = self._number, memoryview(request)
        with suppress(OSError):  # it is gone, and what it said last is still to be read
            await self._send_rest()
        while (message := await self._receive()) is not None:
            if message.get("call") != number:
                continue  # of a thread that outlived its call
            if message.get("kind") in ("returned", "raised"):
                return message
            answer = await relay(message)
            if answer is not None:
                self._unsent = memoryview(framed_json(answer))
                await self._send_rest()
        raise WorkerFailed(f"its worker ended before it came to a result{await self._epitaph()}")

    async def end(self) -> bool:
        """Kill it with everything it started, and wait until nothing of that is left.

        Returns:
            False where something cannot be ended, after 5 s; it is logged.
        Shield it: a cancellation leaves the rest to the shim.
        """
        self.ask_to_end()
        with anyio.move_on_after(END_S) as scope:
            await self._last_words()
        return self._close(is_gone=not scope.cancelled_caught)

    def end_now(self, deadline: float) -> bool:
        """`end` without an event loop: blocks until `deadline`, on the monotonic clock."""
        self.ask_to_end()
        is_gone = False
        try:
            while not is_gone and (left_s := deadline - time.monotonic()) > 0:
                self._control.settimeout(left_s)
                piece = self._control.recv(4096)
                self._words += piece
                is_gone = not piece
        except TimeoutError:
            pass
        except OSError:
            is_gone = True
        return self._close(is_gone=is_gone)

    def ask_to_end(self) -> None:
        """Have it killed, without waiting."""
        try:
            self._control.send(b"end")
        except OSError:
            return  # the shim is gone, which it only is when everything else is

    def forget(self) -> None:
        """In a fork of the server: let go of what is the server's, without a word to it."""
        self._shim.returncode = 0
        self._control.close()
        self._calls.close()
        os.close(self.output_fd)

    def _close(self, *, is_gone: bool) -> bool:
        if is_gone:
            # The socket's end comes a moment before the process's: files are closed first.
            self._shim.wait()
            if not self._words:
                logger.error(
                    "the process above the worker of %s was killed; what the worker started may still run",
                    self.name,
                )
        else:
            logger.error(
                "the worker of %s cannot be ended: the kernel keeps a process of it; its shim is process %d",
                self.name,
                self._shim.pid,
            )
        self._control.close()
        self._calls.close()
        self.is_closed = True
        return is_gone

    async def _last_words(self) -> bytes:
        """What the shim says before it ends; returns once it has."""
        while True:
            try:
                piece = self._control.recv(4096)
            except BlockingIOError:
                await anyio.wait_readable(self._control)
                continue
            except OSError:
                piece = b""
            if not piece:
                return bytes(self._words)
            self._words += piece

    async def _epitaph(self) -> str:
        """How the worker ended, for an error's text."""
        with anyio.move_on_after(END_S):
            try:
                status = json.loads(await self._last_words())["status"]
            except (ValueError, KeyError, TypeError):
                return ""
            if isinstance(status, int):
                return f": it was killed by signal {-status}" if status < 0 else f": exit status {status}"
        return ""

    async def _send_rest(self) -> None:
        """Send what is left to send. May be cancelled and called again."""
        while self._unsent:
            try:
                self._unsent = self._unsent[self._calls.send(self._unsent[:_PIECE_BYTES]) :]
            except BlockingIOError:
                await anyio.wait_writable(self._calls)

    async def _receive(self) -> dict[str, Any] | None:
        """Return the next message, or None once the worker is gone. May be cancelled and called again.

        Raises:
            WorkerFailed: What came is no message of ours.
        """
        buffer = self._buffer
        while len(buffer) < LENGTH.size or len(buffer) < LENGTH.size + LENGTH.unpack_from(buffer)[0]:
            if len(buffer) >= LENGTH.size and LENGTH.unpack_from(buffer)[0] > MAX_MESSAGE_BYTES:
                raise WorkerFailed("what came from its worker is no message of ours")
            try:
                piece = self._calls.recv(_PIECE_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._calls)
                continue
            except OSError:
                piece = b""
            if not piece:
                return None
            buffer += piece
        size_bytes = LENGTH.unpack_from(buffer)[0]
        payload = bytes(memoryview(buffer)[LENGTH.size : LENGTH.size + size_bytes])
        del buffer[: LENGTH.size + size_bytes]
        try:
            if size_bytes <= _PARSED_ON_LOOP_BYTES:
                message = json.loads(payload)
            else:
                message = await anyio.to_thread.run_sync(json.loads, payload)
        except (ValueError, RecursionError) as error:
            raise WorkerFailed("what came from its worker is no message of ours") from error
        return message if isinstance(message, dict) else {}


def _interpreter_flags() -> list[str]:
    """What the server's own interpreter was told, as far as it changes what code does."""
    flags = sys.flags
    given = [
        *(["-I"] if flags.isolated else []),
        *(["-E"] if flags.ignore_environment and not flags.isolated else []),
        *(["-s"] if flags.no_user_site and not flags.isolated else []),
        *(["-B"] if flags.dont_write_bytecode else []),
        *(["-" + "O" * flags.optimize] if flags.optimize else []),
        *(["-X", "dev"] if flags.dev_mode else []),
        *[f"-W{option}" for option in sys.warnoptions],
    ]
    return [*given, "-X", f"utf8={flags.utf8_mode}"]

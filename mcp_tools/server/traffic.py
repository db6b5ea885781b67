"""The two directions of a stdio connection, with the bounds that keep either from filling memory.

A request over the limit waits as raw bytes until an earlier one is answered, while responses, pings and
cancellations go past it: a call that waits for a person must not keep that person's answer out. A
client that does not read is not read from, once what waits for it has grown large.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import anyio
from mcp.shared.dispatcher import as_request_id, coerce_request_id
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp_types import INTERNAL_ERROR, INVALID_REQUEST, ErrorData
from mcp_types.jsonrpc import (
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
)

from mcp_tools.server.guard import MAX_MESSAGE_BYTES, Accept, Drop, Reply, check_message, too_long

BUSY: Final = -32000
"""From the range that JSON-RPC leaves to implementations."""

HANG_UP_INTERVAL_S: Final = 0.25
"""How often we look whether the client is still there while we do not read from it."""

_READ_BYTES: Final = 256 * 1024
# POSIX: a pipe that is ready takes this much without blocking.
_WRITE_BYTES: Final = getattr(select, "PIPE_BUF", 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one stdio connection.

    Args:
        message_bytes: Of one message; a longer line is skipped and answered.
        requests: Unanswered requests that are worked on at once.
        request_bytes: Of those requests together; one alone may be as long as a message may.
        waiting_bytes: Of further requests that wait; above it they are refused as too many.
        unread_bytes: Of answers that the client has not read; above it no new request is begun, and
            above twice as much nothing is read.
        drain_s: Seconds that calls in flight have to end after stdin did.
    """

    message_bytes: int = MAX_MESSAGE_BYTES
    requests: int = 256
    request_bytes: int = 64 * 1024 * 1024
    waiting_bytes: int = 32 * 1024 * 1024
    unread_bytes: int = 4 * 1024 * 1024
    drain_s: float = 0.25


class Lines:
    """Bytes as they come → lines. One that is too long becomes None and is skipped up to its end."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._begun = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Take some bytes; return the lines they complete."""
        *ended, rest = data.split(b"\n")
        lines: list[bytes | None] = []
        for piece in ended:
            if self._skipping:
                self._skipping = False
            elif self._fits(piece):
                lines.append(bytes(self._begun) + piece if self._begun else piece)
            else:
                lines.append(None)
            self._begun.clear()
        if not self._skipping:
            if self._fits(rest):
                self._begun += rest
            else:
                # Said at once: the end of such a line may never come.
                lines.append(None)
                self._begun.clear()
                self._skipping = True
        return lines

    def rest(self) -> bytes:
        """Return what came after the last line break."""
        return bytes(self._begun)

    def _fits(self, piece: bytes) -> bool:
        return len(self._begun) + len(piece) <= self._max_bytes


class Outbox:
    """Where the SDK writes: its `WriteStream`. Messages leave whole and in order."""

    def __init__(self, fd: int, limits: Limits) -> None:
        self._fd = fd
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._written_of_first = 0
        self._is_waiting = False
        self._is_open = True
        self._is_broken = False
        self._is_ending = False
        self._room = asyncio.Event()
        self._room.set()
        self._emptied = asyncio.Event()
        self._ready = select.poll()
        self._ready.register(fd, select.POLLOUT)
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            # A socket says how much it takes only when asked per call.
            self._socket = socket.socket(fileno=os.dup(fd))
        self.on_answer: Callable[[RequestId], None] = lambda _request_id: None
        self.on_change: Callable[[], None] = lambda: None

    @property
    def is_broken(self) -> bool:
        """Whether the client has closed its end."""
        return self._is_broken

    @property
    def queued_bytes(self) -> int:
        """What the client has not taken yet."""
        return self._queued_bytes

    async def send(self, item: SessionMessage, /) -> None:
        """Queue a message; wait while the client leaves too much unread."""
        if not self._is_open:
            raise anyio.ClosedResourceError
        if self._is_broken:
            raise anyio.BrokenResourceError
        message = item.message
        self.put(message)
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
            self.on_answer(message.id)
        if self._queued_bytes > self._limits.unread_bytes and not self._is_ending:
            await self._room.wait()

    def end(self) -> None:
        """Let nobody wait any more: the connection is over, and what is left leaves if it can."""
        self._is_ending = True
        self._room.set()

    def put(self, message: JSONRPCMessage) -> None:
        """Queue a message without waiting."""
        if self._is_broken:
            return
        data = encode(message)
        self._queue.append(data)
        self._queued_bytes += len(data)
        if not self._is_waiting:
            self._flush()
        if self._queued_bytes > self._limits.unread_bytes and not self._is_ending:
            self._room.clear()

    async def flushed(self) -> None:
        """Wait until everything has been written, or the client is gone."""
        while self._queue and not self._is_broken:
            self._emptied.clear()
            await self._emptied.wait()

    def close(self) -> None:
        """Stop watching the descriptor; what is still queued is lost."""
        self._is_open = False
        self._stop_waiting()
        if self._socket is not None:
            self._socket.close()

    async def aclose(self) -> None:
        """Take no more messages; those that are queued still leave."""
        self._is_open = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _flush(self) -> None:
        try:
            while self._queue:
                if not self._ready.poll(0) or not self._write_some():
                    self._start_waiting()
                    break
            else:
                self._stop_waiting()
        except OSError:
            # EPIPE, or what else there is: nobody reads any more.
            self._queue.clear()
            self._queued_bytes = 0
            self._is_broken = True
            self._stop_waiting()
            self.on_change()
        if not self._queue:
            self._emptied.set()
        if not self._room.is_set() and self._queued_bytes <= self._limits.unread_bytes // 2:
            self._room.set()
            self.on_change()

    def _write_some(self) -> bool:
        first = self._queue[0]
        chunk = memoryview(first)[self._written_of_first : self._written_of_first + _WRITE_BYTES]
        if self._socket is None:
            written = os.write(self._fd, chunk)
        else:
            try:
                written = self._socket.send(chunk, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
        self._queued_bytes -= written
        self._written_of_first += written
        if self._written_of_first == len(first):
            self._queue.popleft()
            self._written_of_first = 0
        return True

    def _start_waiting(self) -> None:
        if not self._is_waiting:
            self._is_waiting = True
            self._loop.add_writer(self._fd, self._flush)

    def _stop_waiting(self) -> None:
        if self._is_waiting:
            self._is_waiting = False
            self._loop.remove_writer(self._fd)


class Inbox:
    """Where the SDK reads: its `ReadStream`. Every message has passed the guard."""

    def __init__(self, fd: int, outbox: Outbox, limits: Limits) -> None:
        self._fd = fd
        self._outbox = outbox
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._splitter = Lines(limits.message_bytes)
        self._lines: deque[bytes | None] = deque()
        self._waiting: dict[RequestId, bytes] = {}
        self._waiting_bytes = 0
        self._in_flight: dict[RequestId, int] = {}  # → how long the request was
        self._in_flight_bytes = 0
        self._wake = asyncio.Event()
        self._is_open = True
        self._ended_at: float | None = None
        # Files are always ready, and epoll does not take them.
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._reading: Callable[[], Any] | None = None  # stops it
        self._hung_up = select.poll()
        self._hung_up.register(fd, getattr(select, "POLLRDHUP", 0))
        outbox.on_answer = self._answered
        outbox.on_change = self._wake.set

    async def receive(self) -> SessionMessage:
        """Return the next message for the SDK."""
        while self._is_open:
            message = self._next()
            if message is not None:
                return message
            self._wake.clear()
            self._read_or_not()
            if self._outbox.is_broken:
                break
            if self._ended_at is not None:
                left_s = self._ended_at + self._limits.drain_s - time.monotonic()
                if left_s <= 0 or not (self._in_flight or self._waiting):
                    break
                with anyio.move_on_after(left_s):
                    await self._wake.wait()
            elif self._reading is not None:
                await self._wake.wait()
            elif self._hung_up.poll(0):
                # Nobody can send any more, and what was sent before is not worth the wait.
                break
            else:
                with anyio.move_on_after(HANG_UP_INTERVAL_S):
                    await self._wake.wait()
        self._outbox.end()
        raise anyio.EndOfStream

    def close(self) -> None:
        """Stop reading."""
        self._is_open = False
        self._stop_reading()
        self._outbox.end()
        self._wake.set()

    async def aclose(self) -> None:
        """Stop reading; the SDK's name for it."""
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    # --- messages -----------------------------------------------------------------------------

    def _next(self) -> SessionMessage | None:
        if self._waiting and self._has_room():
            raw = self._waiting.pop(next(iter(self._waiting)))
            self._waiting_bytes -= len(raw)
            verdict = check_message(raw, max_bytes=self._limits.message_bytes)
            assert isinstance(verdict, Accept)
            assert isinstance(verdict.message, JSONRPCRequest)
            return self._begin(verdict.message, len(raw))
        while self._lines:
            raw_line = self._lines.popleft()
            if raw_line is None:
                self._outbox.put(too_long(self._limits.message_bytes).error)
                continue
            verdict = check_message(raw_line, max_bytes=self._limits.message_bytes)
            match verdict:
                case Reply():
                    self._outbox.put(verdict.error)
                case Accept(message=JSONRPCRequest() as request):
                    if self._may_begin(request, raw_line):
                        return self._begin(request, len(raw_line))
                case Accept(message=message):
                    if not self._withdraws_waiting(message):
                        return SessionMessage(message)
                case Drop():
                    pass
        return None

    def _may_begin(self, request: JSONRPCRequest, raw: bytes) -> bool:
        key = coerce_request_id(request.id)
        if key in self._in_flight or key in self._waiting:
            self._refuse(request.id, INVALID_REQUEST, "id: a request with this id is not answered yet")
            return False
        if not self._waiting and self._has_room():
            return True
        if request.method == "ping" and self._is_read():
            return True  # whether we live must not wait for what calls wait for
        if self._waiting_bytes + len(raw) > self._limits.waiting_bytes:
            self._refuse(request.id, BUSY, "too many requests are waiting; send it again after some answers")
            return False
        self._waiting[key] = raw
        self._waiting_bytes += len(raw)
        return False

    def _begin(self, request: JSONRPCRequest, size: int) -> SessionMessage:
        key = coerce_request_id(request.id)
        self._in_flight[key] = size
        self._in_flight_bytes += size

        async def unanswered() -> None:
            self._answered(key)

        return SessionMessage(request, ServerMessageMetadata(on_request_unanswered=unanswered))

    def _withdraws_waiting(self, message: JSONRPCMessage) -> bool:
        if not isinstance(message, JSONRPCNotification) or message.method != "notifications/cancelled":
            return False
        request_id = as_request_id((message.params or {}).get("requestId"))
        raw = None if request_id is None else self._waiting.pop(coerce_request_id(request_id), None)
        if raw is None:
            return False
        self._waiting_bytes -= len(raw)
        return True

    def _has_room(self) -> bool:
        is_little = self._in_flight_bytes < self._limits.request_bytes
        return self._is_read() and is_little and len(self._in_flight) < self._limits.requests

    def _is_read(self) -> bool:
        return self._outbox.queued_bytes <= self._limits.unread_bytes

    def _answered(self, request_id: RequestId) -> None:
        self._in_flight_bytes -= self._in_flight.pop(coerce_request_id(request_id), 0)
        if self._waiting or self._ended_at is not None:
            self._wake.set()

    def _refuse(self, request_id: RequestId, code: int, why: str) -> None:
        error = ErrorData(code=code, message=why)
        self._outbox.put(JSONRPCError(jsonrpc="2.0", id=request_id, error=error))

    # --- bytes --------------------------------------------------------------------------------

    def _read_or_not(self) -> None:
        unread = self._outbox.queued_bytes
        is_full = self._waiting_bytes >= self._limits.waiting_bytes and unread > self._limits.unread_bytes
        if self._ended_at is not None or is_full or unread > 2 * self._limits.unread_bytes:
            self._stop_reading()
        elif self._reading is None:
            self._start_reading()

    def _start_reading(self) -> None:
        if not self._is_file:
            try:
                self._loop.add_reader(self._fd, self._read)
            except PermissionError:
                self._is_file = True  # a device such as /dev/null
            else:
                self._reading = partial(self._loop.remove_reader, self._fd)
                return
        self._reading = self._loop.call_soon(self._read).cancel

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading()
            self._reading = None

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            # Somebody else may have made the description non-blocking.
            data = None
        except OSError:
            data = b""  # the terminal hung up
        if data == b"":
            self._stop_reading()
            self._ended_at = time.monotonic()
            self._lines.append(self._splitter.rest())
        elif data:
            self._lines.extend(self._splitter.feed(data))
        # One portion at a time: the next is read when the SDK has taken these messages.
        self._stop_reading()
        self._wake.set()


def encode(message: JSONRPCMessage) -> bytes:
    """Render a message as one line. Never raises: what cannot be encoded becomes an error."""
    try:
        text = message.model_dump_json(by_alias=True, exclude_unset=True)
    except Exception:
        if not isinstance(message, JSONRPCResponse | JSONRPCError):
            raise
        error = ErrorData(code=INTERNAL_ERROR, message="the answer could not be encoded")
        text = JSONRPCError(jsonrpc="2.0", id=message.id, error=error).model_dump_json(exclude_unset=True)
    return text.encode() + b"\n"

"""One HTTP/1.1 connection: uvicorn's h11 protocol, with the deadlines and bounds it does not have.

uvicorn waits for ever for the end of the headers, for a client that takes no answer, and reads on and on
for the sake of a body that was refused. The app sees none of this: it is called after the headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, cast

import h11
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from mcp_tools.errors import ConfigError
from mcp_tools.server.http.joining import JoiningTransport
from mcp_tools.server.http.limits import HttpLimits

_wire_logger = logging.getLogger("mcp_tools.server.http.wire")
# Strangers cause warnings about malformed requests; the log must not be theirs to fill.
_wire_logger.setLevel(logging.ERROR)

_HEADERS: Final = (
    b"content-type: text/plain; charset=utf-8\r\n"
    b"cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n"
)


def _raw_answer(status: bytes, text: bytes) -> bytes:
    length = str(len(text)).encode()
    return b"HTTP/1.1 " + status + b"\r\n" + _HEADERS + b"content-length: " + length + b"\r\n\r\n" + text


_FULL: Final = _raw_answer(b"503 Service Unavailable", b"too many connections")
_MALFORMED: Final = _raw_answer(b"400 Bad Request", b"not a well-formed HTTP/1.1 request")
_LATE: Final = _raw_answer(b"408 Request Timeout", b"the request did not arrive in time")


_STATE_KEY: Final = "mcp_tools.connection"
_OVERRIDDEN: Final = (
    "connection_made",
    "data_received",
    "connection_lost",
    "pause_writing",
    "resume_writing",
    "on_response_complete",
    "send_400_response",
    "shutdown",
    "_unset_keepalive_if_required",
)


class _Wait(Enum):
    """What a connection's running deadline is for."""

    NOTHING = "nothing that we time here"
    HEADERS = "the rest of the request headers"
    BODY = "the rest of the request body"
    DRAIN = "the rest of a body that was refused"
    LEAVING = "the client to read a last answer and hang up"


class Crowd:
    """The connections of one server that have not asked for anything yet, oldest first."""

    def __init__(self) -> None:
        self._undecided: dict[BoundedConnection, None] = {}

    def join(self, connection: BoundedConnection) -> None:
        """Add one that begins to wait for its request."""
        self._undecided[connection] = None

    def leave(self, connection: BoundedConnection) -> None:
        """Remove one that waits no more; nothing happens if it is not there."""
        self._undecided.pop(connection, None)

    def make_room(self) -> bool:
        """End the one that has waited longest; False where nobody waits.

        A client that means it asks as soon as it is connected, so who only holds a place gives it up
        first, and cannot keep others out.
        """
        for connection in self._undecided:
            connection.transport.abort()
            self.leave(connection)
            return True
        return False


class BoundedConnection(H11Protocol):
    """A connection that cannot be held open by sending, or reading, too slowly or too much.

    Args:
        config, state: uvicorn's.
        crowd: Shared by all connections of one server.
        limits: `header_s`, `body_s`, `drain_s`, `drain_bytes`, `stalled_s` and `connections` apply here.
    """

    def __init__(self, config: Config, state: ServerState, crowd: Crowd, limits: HttpLimits) -> None:
        # The only way from uvicorn's scope back to the connection is the state it copies into each.
        super().__init__(config, state, {_STATE_KEY: self})
        self.on_lost: Callable[[], None] | None = None
        """Called when the client leaves; for the one request that is being answered."""
        # Not uvicorn's loggers, which belong to the whole process and to programs around us.
        self.logger = _wire_logger
        self.access_log = False
        self._crowd = crowd
        self._limits = limits
        self._wait = _Wait.NOTHING
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._drained_bytes = 0

    # --- What asyncio calls -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", JoiningTransport(transport, self.loop)))
        _notice_dead_peers(transport, self._limits.stalled_s)
        if len(self.connections) > self._limits.connections and not self._crowd.make_room():
            # Closed at once: waiting for the client to read it would hold what there is too much of.
            self._wait = _Wait.LEAVING
            self.transport.write(_FULL)
            self.transport.close()
        else:
            self._wait_for(_Wait.HEADERS)

    def data_received(self, data: bytes) -> None:
        if self._wait is _Wait.LEAVING:
            self._count_drained(data)
            return
        if self._wait is _Wait.DRAIN:
            self._count_drained(data)
        super().data_received(data)
        self._look(data_is_pending=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_for(_Wait.NOTHING)
        self._stop_stall_timer()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self._limits.stalled_s, self._abort)

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    # --- What uvicorn calls -------------------------------------------------------------------

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look(data_is_pending=False)

    def send_400_response(self, msg: str) -> None:
        self._give_up(_MALFORMED)

    def shutdown(self) -> None:
        with contextlib.suppress(h11.LocalProtocolError):
            super().shutdown()

    # --- Deadlines ----------------------------------------------------------------------------

    def _look(self, *, data_is_pending: bool) -> None:
        """Choose what to wait for, from where the request and the answer are."""
        if self.transport.is_closing() or self._wait is _Wait.LEAVING:
            return
        theirs = self.conn.their_state
        if theirs is h11.IDLE and data_is_pending:
            self._wait_for(_Wait.HEADERS)
        elif theirs is h11.SEND_BODY:
            self._wait_for(_Wait.DRAIN if self.cycle.response_complete else _Wait.BODY)
        else:
            # Idle connections are timed by uvicorn's keep-alive.
            self._wait_for(_Wait.NOTHING)

    def _wait_for(self, wait: _Wait) -> None:
        if wait is self._wait:
            return
        if self._wait is _Wait.HEADERS:
            self._crowd.leave(self)
        self._wait = wait
        self._drained_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        match wait:
            case _Wait.HEADERS:
                self._crowd.join(self)
                self._deadline = self.loop.call_later(self._limits.header_s, self._give_up, _LATE)
            case _Wait.BODY:
                self._deadline = self.loop.call_later(self._limits.body_s, self._give_up, _LATE)
            case _Wait.DRAIN | _Wait.LEAVING:
                self._deadline = self.loop.call_later(self._limits.drain_s, self._abort)
            case _Wait.NOTHING:
                pass

    def _give_up(self, answer: bytes) -> None:
        """Answer in the app's place, and see to it that the app does not answer as well."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                # A second answer in the middle of the first would be read as part of it.
                self._abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._leave(answer)

    def _leave(self, answer: bytes) -> None:
        """Send a last answer and close, but not so abruptly that the answer is lost with a reset."""
        self.transport.write(answer)
        try:
            self.transport.write_eof()
        except OSError:  # the client left just now
            self._abort()
            return
        self._unset_keepalive_if_required()
        self._wait_for(_Wait.LEAVING)

    def _count_drained(self, data: bytes) -> None:
        self._drained_bytes += len(data)
        if self._drained_bytes > self._limits.drain_bytes:
            self._abort()

    def _abort(self) -> None:
        self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


def connection_of(scope: Mapping[str, Any]) -> BoundedConnection | None:
    """Return the connection that a request came in on; None under another ASGI server."""
    connection = scope.get("state", {}).get(_STATE_KEY)
    return connection if isinstance(connection, BoundedConnection) else None


def check_uvicorn() -> None:
    """Refuse a uvicorn whose connections do not work as `BoundedConnection` expects.

    What is overridden here but never called there would be a bound that silently holds nothing.

    Raises:
        ConfigError: A method is missing.
    """
    missing = [name for name in _OVERRIDDEN if not hasattr(H11Protocol, name)]
    if missing:
        lacks = ", ".join(missing)
        raise ConfigError(f"uvicorn {uvicorn.__version__} cannot be used (no {lacks}); install uvicorn 0.54")


def _notice_dead_peers(transport: asyncio.BaseTransport, after_s: float) -> None:
    """Let the kernel end connections whose peer vanished without a word."""
    connection = cast("socket.socket | None", transport.get_extra_info("socket"))
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options: list[tuple[int, Any, int]] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(after_s * 1000)))
    for level, option, value in options:
        with contextlib.suppress(OSError):
            connection.setsockopt(level, option, value)

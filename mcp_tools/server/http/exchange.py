"""Reading a request body within bounds, and sending an answer with the headers every answer carries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from mcp_tools.server.http.limits import HttpLimits, Shares
from mcp_tools.server.http.requests import BUSY, TOO_LARGE, Answer, Header

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# `no-transform`: a proxy that compresses an event stream holds its events back.
_ALWAYS: Final = [(b"cache-control", b"no-store, no-transform"), (b"x-content-type-options", b"nosniff")]
_REPLACED: Final = frozenset(name for name, _ in _ALWAYS)


class ClientLeftError(Exception):
    """The client is gone; there is nobody to answer."""


class Exchange:
    """The answer to one request: an ASGI `send` that adds our headers and remembers how far it got."""

    __slots__ = ("_send", "complete", "started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = self._start(message)
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)

    def _start(self, message: Message) -> Message:
        self.started = True
        headers = [header for header in message.get("headers", ()) if header[0] not in _REPLACED]
        return {**message, "headers": headers + _ALWAYS}

    async def whole(self, status: int, media_type: bytes, body: bytes, *headers: Header) -> None:
        """Send an answer that is complete."""
        about = [(b"content-type", media_type), (b"content-length", str(len(body)).encode()), *headers]
        await self({"type": "http.response.start", "status": status, "headers": about})
        await self({"type": "http.response.body", "body": body})

    async def answer(self, answer: Answer) -> None:
        """Send a short answer."""
        await self.whole(answer.status, answer.media_type, answer.text.encode(), *answer.headers)

    async def finish(self) -> None:
        """End an answer that was begun."""
        if not self.complete:
            await self({"type": "http.response.body", "body": b"", "more_body": False})


class BodyShare:
    """What one request's body takes of the room that all bodies share."""

    __slots__ = ("_principal", "_shares", "_taken")

    def __init__(self, shares: Shares, principal: str) -> None:
        self._shares = shares
        self._principal = principal
        self._taken = 0

    def take(self, amount: int) -> bool:
        """Take room for so many more bytes; False where there is none."""
        if not self._shares.take(self._principal, amount):
            return False
        self._taken += amount
        return True

    def give_back(self) -> None:
        """Give back all that was taken."""
        if self._taken:
            self._shares.give_back(self._principal, self._taken)
            self._taken = 0


async def read_body(receive: Receive, *, limits: HttpLimits, share: BodyShare) -> bytes | Answer:
    """Read a whole body, or say why not; what is read is taken from `share`.

    Raises:
        ClientLeftError: The client went away before the body was complete, or was too slow about it.
    """
    body: bytes | bytearray = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > limits.body_bytes:
            return TOO_LARGE
        if chunk:
            if not share.take(len(chunk)):
                return BUSY
            if body:
                # Grown in place: copying it for each piece would let a trickle of pieces cost minutes.
                body = body if isinstance(body, bytearray) else bytearray(body)
                body += chunk
            else:
                body = chunk
        if not message.get("more_body", False):
            return bytes(body)

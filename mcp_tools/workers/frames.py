"""How server and worker frame what they tell each other: four bytes of length, then the message.

To the worker goes JSON once and then pickled calls, whose contents are the server's own. What comes from
a worker is JSON only and bounded: nothing that a function made is ever unpickled.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, Final

MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""Of one message either way: a call's arguments, a result."""

LENGTH: Final = struct.Struct("!I")


class MessageTooLarge(Exception):
    """A message is over `MAX_MESSAGE_BYTES`. It was not sent."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(
            f"{size_bytes:,} bytes are more than the {MAX_MESSAGE_BYTES:,} that one message holds"
        )


def framed(payload: bytes) -> bytes:
    """Return the message as it is sent.

    Raises:
        MessageTooLarge: It is.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(len(payload))
    return LENGTH.pack(len(payload)) + payload


def framed_json(message: dict[str, Any]) -> bytes:
    """Return JSON as it is sent.

    Raises:
        MessageTooLarge: It is.
    """
    return framed(
        json.dumps(message, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
    )


def receive(channel: socket.socket) -> bytes | None:
    """Wait for a message on a blocking socket; None when the other side is gone."""
    header = _exactly(channel, LENGTH.size)
    return None if header is None else _exactly(channel, LENGTH.unpack(header)[0])


def _exactly(channel: socket.socket, size_bytes: int) -> bytes | None:
    content = bytearray()
    while len(content) < size_bytes:
        piece = channel.recv(min(size_bytes - len(content), 1024 * 1024))
        if not piece:
            return None
        content += piece
    return bytes(content)

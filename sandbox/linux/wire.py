"""How the server, the zygote and its children talk: small JSON messages with descriptors, and framed reports.

Control and status sockets are `SOCK_SEQPACKET`: one message is one packet. A channel between the server and a
child is a stream: 4 bytes of length (little-endian), a JSON header of that length, then the blobs that the
header announces. What comes from a child is read with limits and never trusted; see call.py.
"""

from __future__ import annotations

import array
import json
import socket

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Message = dict[str, Any]

MAX_PACKET_BYTES = 128 * 1024  # a control message; below the smallest default socket buffer
MAX_FDS = 8
LENGTH_BYTES = 4


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Send one packet, with copies of `fds`.

    Raises:
        OSError: The other side is gone, or (on a non-blocking socket) its queue is full.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(message).encode()], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, flags: int = 0) -> tuple[Message | None, list[int]]:
    """Return the next packet and the descriptors that came with it; `(None, [])` at the end of the stream.

    Raises:
        BlockingIOError: There is none yet and the call may not wait.
        OSError: The connection broke.
    """
    room = socket.CMSG_SPACE(MAX_FDS * 4)
    data, control, _, _ = sock.recvmsg(MAX_PACKET_BYTES, room, flags | socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        return None, list(fds)
    return json.loads(data), list(fds)


def frame(header: Mapping[str, Any], blobs: list[bytes]) -> bytes:
    """A request or a report as it goes over a channel."""
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return b"".join([len(text).to_bytes(LENGTH_BYTES, "little"), text, *blobs])


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """`count` bytes from a blocking stream.

    Raises:
        EOFError: It ended before.
    """
    parts = []
    while count:
        part = sock.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

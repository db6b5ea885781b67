"""Fewer, larger writes for uvicorn."""

from __future__ import annotations

import asyncio


class JoiningTransport:
    """A transport that sends the head of an answer together with what follows at once.

    uvicorn writes head and body apart: two system calls, two packets, and two wake-ups of the client,
    for every call. What it uses of a transport is here, and nothing else.
    """

    __slots__ = ("_head", "_loop", "_transport", "abort", "get_extra_info", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            # An event stream has nothing to say yet, but its client waits for the head.
            self._loop.call_soon(self._send_head)
            return
        if data:
            self._transport.write(data)

    def _send_head(self) -> None:
        if self._head:
            self.write(b"")

    def write_eof(self) -> None:
        self._send_head()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        self._send_head()
        self._transport.close()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

"""What goes in and out of one call: its request to the process that runs it, output and report back."""

from __future__ import annotations

import os
import select
import socket

from sandbox.docker import frames

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from sandbox.docker.inside.link import Link, Loop
    from sandbox.linux.wire import Message

_READ_BYTES = 64 * 1024  # also the largest blob that the server gets
_READS_AT_ONCE = 16  # of one stream before the others get their turn
_FLOOD_FACTOR, _FLOOD_BYTES = 16, 16 * 1024**2


class Call:
    """The streams of one call, watched by `loop`. `close` must be called."""

    def __init__(
        self,
        loop: Loop,
        link: Link,
        message: Message,
        blobs: list[bytes],
        channel: socket.socket,
        streams: tuple[int, int],
        *,
        output_bytes: int,
        report_bytes: int,
    ) -> None:
        self.number: int = message["call"]
        self.dropped = [0, 0]
        self._loop, self._link, self._channel = loop, link, channel
        self._out, self._err = streams
        self._room = [output_bytes, output_bytes]
        self._report_room = report_bytes
        self._flood = max(_FLOOD_FACTOR * output_bytes, _FLOOD_BYTES)
        header = {key: message[key] for key in ("code", "files", "max_files", "max_bytes")}
        self._request = memoryview(frames.encode(header, blobs))
        channel.setblocking(False)
        for fd in streams:
            os.set_blocking(fd, False)
        self._is_watched = False
        self._open = {self._out, self._err, channel.fileno()}
        self.set_watched(True)

    @property
    def is_flood(self) -> bool:
        return max(self.dropped) > self._flood

    def set_watched(self, wanted: bool) -> None:
        """Take no more from the code while the server does not read what there is."""
        if wanted == self._is_watched:
            return
        self._is_watched = wanted
        for fd in list(self._open):
            if wanted:
                self._watch(fd)
            else:
                self._loop.forget(fd)

    def drain(self) -> None:
        """Take what is left: everything that could write has ended, or what it writes counts no more."""
        for index, fd in enumerate((self._out, self._err)):
            while fd in self._open and self._read(index, fd):
                pass
        while self._channel.fileno() in self._open and self._receive():
            pass

    def close(self) -> None:
        self.set_watched(False)
        self._open.clear()
        self._channel.close()
        for fd in (self._out, self._err):
            os.close(fd)

    def _watch(self, fd: int) -> None:
        if fd == self._channel.fileno():
            events = select.POLLIN | (select.POLLOUT if self._request else 0)
            self._loop.watch(fd, self._exchange, events)
        elif fd == self._out:
            self._loop.watch(fd, lambda: self._take(0, fd))
        else:
            self._loop.watch(fd, lambda: self._take(1, fd))

    def _exchange(self) -> None:
        if self._request:
            self._send()
        for _ in range(_READS_AT_ONCE):
            if self._link.is_full or not self._receive():
                break

    def _send(self) -> None:
        try:
            while self._request:
                self._request = self._request[self._channel.send(self._request, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError:
            self._request = memoryview(b"")  # it ended without reading
        try:
            self._channel.shutdown(socket.SHUT_WR)  # it waits for that, once it has reported
        except OSError:
            pass
        if self._is_watched:
            self._watch(self._channel.fileno())

    def _receive(self) -> bool:
        """Pass a part of the report on; false if there is nothing now."""
        try:
            data = self._channel.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._end(self._channel.fileno())
            return False
        data, self._report_room = data[: self._report_room], max(0, self._report_room - len(data))
        if data:
            self._link.send({"report": self.number}, [data])
        return True

    def _take(self, index: int, fd: int) -> None:
        for _ in range(_READS_AT_ONCE):
            if self._link.is_full or not self._read(index, fd):
                break

    def _read(self, index: int, fd: int) -> bool:
        """Pass output on, up to the limit; false if there is none now."""
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._end(fd)
            return False
        kept = data[: self._room[index]]
        self._room[index] -= len(kept)
        self.dropped[index] += len(data) - len(kept)
        if kept:
            self._link.send({"out": index + 1}, [kept])
        return True

    def _end(self, fd: int) -> None:
        self._open.discard(fd)
        self._loop.forget(fd)

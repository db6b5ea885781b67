"""The agent's event loop, and its connection to the server. Nothing here ever waits for the server."""

from __future__ import annotations

import os
import select

from sandbox.docker import frames

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandbox.linux.wire import Message

_READ_BYTES = 256 * 1024
_QUEUE_BYTES = 1024 * 1024  # beyond this nothing more is taken from the code until the server read some
# A megabyte of code, and 4,096 names of 255 letters: each letter six bytes where it is a control character.
_MAX_HEADER_BYTES = 16 * 1024 * 1024
_MAX_BLOB_BYTES = 32 * 1024 * 1024


class Loop:
    """Calls back when descriptors can be read or written."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, callback: Callable[[], None], events: int = select.POLLIN) -> None:
        self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def turn(self, seconds: float | None) -> None:
        """Wait for at most `seconds`, and call back for whatever is there."""
        for fd, _ in self._poll.poll(None if seconds is None else max(0.0, seconds) * 1000):
            if (callback := self._callbacks.get(fd)) is not None:
                callback()


class Link:
    """Frames from and to the server over two descriptors, which do not block from here on."""

    def __init__(self, loop: Loop, reader: int, writer: int) -> None:
        self.is_gone = False
        self._loop = loop
        self._reader_fd, self._writer_fd = reader, writer
        self._reader = frames.Reader(max_header_bytes=_MAX_HEADER_BYTES, max_blob_bytes=_MAX_BLOB_BYTES)
        self._queue: list[memoryview] = []
        self._queued_bytes = 0
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)

    @property
    def is_full(self) -> bool:
        return self._queued_bytes > _QUEUE_BYTES

    @property
    def is_flushed(self) -> bool:
        return not self._queue or self.is_gone

    def send(self, header: Message, blobs: Sequence[bytes] = ()) -> None:
        data = frames.encode(header, blobs)
        self._queue.append(memoryview(data))
        self._queued_bytes += len(data)
        if len(self._queue) == 1:
            self._flush()

    def received(self) -> Iterator[tuple[Message, list[bytes]]]:
        """The frames that are complete. Sets `is_gone` at the end of the stream."""
        try:
            data = os.read(self._reader_fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.is_gone = True
            return
        yield from self._reader.feed(data)

    def _flush(self) -> None:
        while self._queue and not self.is_gone:
            try:
                sent = os.write(self._writer_fd, self._queue[0])
            except BlockingIOError:
                self._loop.watch(self._writer_fd, self._flush, select.POLLOUT)
                return
            except OSError:
                self.is_gone = True
                break
            self._queued_bytes -= sent
            self._queue[0] = self._queue[0][sent:]
            if not self._queue[0]:
                del self._queue[0]
        self._loop.forget(self._writer_fd)

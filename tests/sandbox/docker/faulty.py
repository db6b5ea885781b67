"""A way to an engine on which requests get lost: what an engine that is sick looks like from here."""

from __future__ import annotations

import contextlib
import select
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator

HANG = b"hang"
Fault = Callable[[str, str], bytes | None]


def answer(status: str, body: str = '{"message": "no"}') -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


class Faulty:
    """Hands requests on to an engine, or answers them itself.

    Args:
        engine: Where the engine's socket is.
        fault: Given method and path: what to answer instead, `HANG` for nothing, `None` to hand it on.
    """

    def __init__(self, engine: str, fault: Fault) -> None:
        self.fault = fault
        self.asked: list[str] = []
        self._engine = engine.removeprefix("unix://")
        self._ends = threading.Event()
        self._threads: list[threading.Thread] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """Its own address."""
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/sock")
            listener.listen(64)
            accepting = threading.Thread(target=self._accept, args=(listener,))
            accepting.start()
            try:
                yield f"unix://{folder}/sock"
            finally:
                self._ends.set()
                listener.shutdown(socket.SHUT_RDWR)
                for each in (accepting, *self._threads):
                    each.join(5)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,))
                thread.start()
                self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := connection.recv(65536)):
                    return
                head += data
            method, target, *_ = head.split(b"\r\n")[0].decode().split(" ")
            path = target.partition("?")[0]
            self.asked.append(f"{method} {path}")
            said = self.fault(method, path)
            if said == HANG:
                self._until_it_goes(connection)
            elif said is not None:
                connection.sendall(said)
            else:
                if b"upgrade: tcp" not in head.lower():  # one request for each connection
                    head = head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
                    head = head.replace(b"\r\nConnection: keep-alive\r\n", b"\r\n")
                with socket.socket(socket.AF_UNIX) as engine:
                    engine.connect(self._engine)
                    engine.sendall(head)
                    self._relay(connection, engine)

    def _until_it_goes(self, connection: socket.socket) -> None:
        while not self._ends.is_set():
            if select.select([connection], [], [], 0.1)[0] and not connection.recv(65536):
                return

    def _relay(self, connection: socket.socket, engine: socket.socket) -> None:
        other = {connection: engine, engine: connection}
        while not self._ends.is_set():
            for each in select.select([connection, engine], [], [], 0.1)[0]:
                if data := each.recv(65536):
                    other[each].sendall(data)
                elif each is engine:
                    return
                else:
                    engine.shutdown(socket.SHUT_WR)
                    if not self._drain(engine, connection):
                        return

    def _drain(self, engine: socket.socket, connection: socket.socket) -> bool:
        """The client has said all; what the engine still says goes to it, until the end."""
        with contextlib.suppress(OSError):
            while not self._ends.is_set():
                if select.select([engine], [], [], 0.1)[0]:
                    if not (data := engine.recv(65536)):
                        break
                    connection.sendall(data)
        return False

"""A server on loopback that counts who came and answers with whatever bytes a test wants."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

Answer = Callable[[socket.socket, bytes], None]


class Listener:
    """Accepts on 127.0.0.1; `heads` are the requests it saw, `connections` how many came."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None) -> None:
        self._answer = answer
        self._tls = tls
        self.heads: list[bytes] = []
        self.connections = 0
        self.released = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._main = threading.Thread(target=self._accept, daemon=True)
        self._main.start()

    def url(self, path: str = "/", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        peer.settimeout(10)
        with contextlib.suppress(OSError), peer:
            if self._tls is not None:
                peer = self._tls.wrap_socket(peer, server_side=True)
            with peer:
                head = b""
                while b"\r\n\r\n" not in head:
                    data = peer.recv(65536)
                    if not data:
                        return
                    head += data
                self.heads.append(head)
                self._answer(peer, head)

    def close(self) -> None:
        self.released.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in (self._main, *self._threads):
            thread.join(5)


@contextlib.contextmanager
def listening(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Listener]:
    listener = Listener(answer, tls)
    try:
        yield listener
    finally:
        listener.close()


def says(body: bytes = b"here", *, status: str = "200 OK", **headers: str) -> Answer:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())

    def answer(peer: socket.socket, _: bytes) -> None:
        peer.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body)

    return answer

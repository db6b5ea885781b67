"""What the loopback servers of all model APIs have in common: a listener, and how answers are written."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

WAIT_S = 20.0


class Refused(Exception):
    """The API would answer with 400 and this text."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error of the API."""

    status: int
    kind: str = "api_error"
    message: str = "The server had an error while processing your request."
    headers: Mapping[str, str] = field(default_factory=dict)


class Exchange(BaseHTTPRequestHandler):
    """One request, and the ways to answer it."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def whole(
        self,
        body: Mapping[str, Any],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        cut_after: int | None = None,
    ) -> None:
        """Send JSON; with `cut_after`, so many bytes of it, and then nothing more."""
        data = json.dumps(body).encode()
        length = {"content-type": "application/json", "content-length": str(len(data))}
        self._start(status, {**length, **(headers or {})})
        self.wfile.write(data[:cut_after])
        self.close_connection = self.close_connection or cut_after is not None

    def begin_events(self) -> None:
        """Begin a stream of events."""
        self._start(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"})

    def event(self, data: Mapping[str, Any] | str, *, name: str | None = None) -> None:
        """Send one event."""
        said = data if isinstance(data, str) else json.dumps(data)
        sent = (f"event: {name}\n" if name else "").encode() + f"data: {said}\n\n".encode()
        self.wfile.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n")
        self.wfile.flush()

    def end_events(self) -> None:
        """End the stream as it should."""
        self.wfile.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        """End the connection in the middle."""
        self.close_connection = True

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"request-id": "req_1", **headers}.items():
            self.send_header(name, value)
        self.end_headers()


class ModelServer:
    """Listens on loopback while it is entered.

    A context manager. `requests` are the bodies that were well formed, `refused` why the others were not.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.lock = threading.Lock()
        owner = self

        class Handler(Exchange):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                # Whoever asked may have gone away meanwhile.
                with contextlib.suppress(OSError):
                    owner.handle(self, body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.root = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)

    def handle(self, exchange: Exchange, body: bytes) -> None:
        """Answer one request, in a thread of its own."""
        raise NotImplementedError


def split(whole: str, size: int = 7) -> list[str]:
    """Cut a text as it is streamed."""
    return [whole[i : i + size] for i in range(0, len(whole), size)]

"""The SDK's client with what it lacks: limits of each answer in time and size, and of what a fork copies."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import docker

MAX_ANSWER_BYTES = 16 * 1024**2
_READ_BYTES = 64 * 1024
_GRACE_S = 0.1  # an engine that sends nothing at all meets the socket's own limit first
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class BadAnswer(Exception):
    """An answer takes too long in all, or is too large; the text says which."""


def forget_connections() -> None:
    """In a fork of the server: close our copies of all connections to engines, also of those to containers.

    Containers live as long as somebody holds their connection, which is made before they are.
    """
    for each in list(_sockets):
        fd = socket.socket.detach(each)  # its `close` waits for files that threads of the server have
        if fd >= 0:
            os.close(fd)


def client_class(limit: threading.local) -> type[docker.APIClient]:
    """The class to make clients of; `limit.seconds` of a thread is how long each of its answers may take."""
    import docker

    class Client(docker.APIClient):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            try:
                super().__init__(**options)
            except BaseException:
                self.close()  # it has asked for a version already, and keeps that connection
                raise

        def get_adapter(self, url: str) -> Any:
            adapter = super().get_adapter(url)
            for name in ("get_connection", "get_connection_with_tls_context"):  # by the version of requests
                if name not in vars(adapter) and (found := getattr(adapter, name, None)) is not None:
                    setattr(adapter, name, _watching_pools(found, limit))
            return adapter

        def merge_environment_settings(
            self, url: str, proxies: Any, stream: Any, verify: Any, cert: Any
        ) -> Any:
            # Else the authorities that the environment names for the web would replace the engine's own.
            verify = self.verify if verify is None else verify
            return super().merge_environment_settings(url, proxies, stream, verify, cert)

        def request(self, method: str, url: str, **options: Any) -> Any:
            within_s = getattr(limit, "seconds", None)
            if within_s is not None or options.get("timeout") is None:  # none where it attaches or pulls
                options["timeout"] = within_s or self.timeout
            within_s = options["timeout"]
            adapter = getattr(self, "_custom_adapter", None)  # none over TCP
            if (path := getattr(adapter, "socket_path", None)) is not None:
                _knock(path, within_s)
            # What is asked of a log is not followed, and is read like any other answer.
            is_streamed = options.get("stream") and not url.endswith("/logs")
            is_upload = not isinstance(options.get("data"), str | None)
            options |= {"stream": True, "allow_redirects": False}
            watch = _Watch(within_s)
            try:
                if not is_upload:
                    watch.begin()
                limit.watch = watch
                response = super().request(method, url, **options)
                if not is_streamed or response.status_code >= 400:
                    watch.begin()
                    _read(response)
            except BadAnswer:
                raise
            except Exception:
                if not watch.is_over:
                    raise
            else:
                watch.end()
                if not watch.is_over:
                    return response
                response.close()
            finally:
                limit.watch = None
                watch.end()
            raise BadAnswer(f"its answer was not complete within {within_s:g} s")  # not because of `shutdown`

    return Client


class _Watch:
    """Ends the connection of a request that takes too long in all, however often something comes."""

    def __init__(self, within_s: float) -> None:
        self.is_over = False
        self.connection: Any = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(within_s + _GRACE_S, self._cut)
        self._timer.daemon = True
        self._has_begun = self._has_ended = False

    def begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._timer.start()

    def end(self) -> None:
        with self._lock:
            self._has_ended = True
        self._timer.cancel()

    def _cut(self) -> None:
        with self._lock:
            if self._has_ended:
                return
            self.is_over = True
            connection = self.connection
            for each in (getattr(connection, "taken", None), getattr(connection, "sock", None)):
                _cut(each)


def _cut(connection: Any) -> None:
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # below TLS, which another thread reads
    elif connection is not None:
        with contextlib.suppress(Exception):  # a pipe of Windows, or ssh
            connection.close()


def _watching_pools(get_pool: Callable[..., Any], limit: threading.local) -> Callable[..., Any]:
    def get(*arguments: Any, **options: Any) -> Any:
        pool = get_pool(*arguments, **options)
        if "_get_conn" not in vars(pool):
            pool._get_conn = _watching_connections(pool._get_conn, limit)
        return pool

    return get


def _watching_connections(get_connection: Callable[..., Any], limit: threading.local) -> Callable[..., Any]:
    def get(*arguments: Any, **options: Any) -> Any:
        connection = get_connection(*arguments, **options)
        if "connect" not in vars(connection):
            connection.connect = _watching_sockets(connection)
        if (watch := getattr(limit, "watch", None)) is not None:
            watch.connection = connection
        return connection

    return get


def _watching_sockets(watched: Any) -> Callable[[], None]:
    connect, found = type(watched).connect, weakref.ref(watched)  # no cycle: what is dropped closes at once

    def connecting() -> None:
        if (connection := found()) is None:
            return
        if (path := getattr(connection, "unix_socket", None)) is not None:
            _connect(connection, path)
        else:
            connect(connection)
        connection.taken = connection.sock  # the response takes it over from the connection
        if isinstance(connection.sock, socket.socket):
            _sockets.add(connection.sock)

    return connecting


def _connect(connection: Any, path: str) -> None:
    """As the SDK does it, which leaves the socket to the collector where an engine has just gone."""
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(connection.timeout)
        made.connect(path)
    except BaseException:
        made.close()
        raise
    connection.sock = made


def _read(response: Any) -> None:
    """Have the response keep its content, as if it was not streamed."""
    content, is_whole = bytearray(), False
    try:
        for piece in response.iter_content(_READ_BYTES):
            content += piece
            if len(content) > MAX_ANSWER_BYTES:
                break
        else:
            is_whole = True
    finally:
        if not is_whole or response.status_code >= 400:
            response.close()  # the SDK raises, and leaves the connection to the collector
    if not is_whole:
        raise BadAnswer(f"its answer is larger than {MAX_ANSWER_BYTES // 1024**2} MiB")
    response._content = bytes(content)


def _knock(path: str, within_s: float) -> None:
    """Connect and close: what the SDK opens for an engine that is not there, it leaves open."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(within_s)
        connection.connect(path)

"""Where Prometheus reads the metrics: a page beside the HTTP endpoints, or a small listener beside stdio.

The text is made and packed by `prometheus_client`, in the format the scraper asks for, and never on the
event loop that runs calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from prometheus_client import make_wsgi_app
from prometheus_client.registry import Collector

from mcp_tools.errors import ConfigError

logger = logging.getLogger(__name__)

PATH: Final = "/metrics"
MAX_CONNECTIONS: Final = 16
MAX_REQUEST_BYTES: Final = 16 * 1024
CONNECTION_S: Final = 10.0
"""From the connection to the last byte of the answer; then it is cut."""
_START_S: Final = 5.0

_REQUEST_LINE: Final = re.compile(r"([A-Z]{1,16}) (\S{1,8000}) HTTP/1\.[01]")

Asgi = Callable[[Any, Any, Any], Awaitable[None]]

# One text at a time: making it holds the interpreter, and many scrapers must not take all of it.
_turn: RunVar[anyio.CapacityLimiter] = RunVar("mcp_tools_scrape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One answer. `status` is such as `200 OK`; `headers` lack the length."""

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


def render(registry: Collector, *, accept: str = "", accept_encoding: str = "", query: str = "") -> Page:
    """Make the text of all metrics, as the headers ask for it. Takes some 20 ms for each 100 tools.

    Args:
        registry: What is collected.
        accept: OpenMetrics where it asks for that, the Prometheus text format otherwise.
        accept_encoding: Packed where it has `gzip`.
        query: `name[]=…` picks samples by their names.
    """
    status = ""
    headers: tuple[tuple[str, str], ...] = ()

    def start_response(said: str, given: list[tuple[str, str]]) -> None:
        nonlocal status, headers
        status, headers = said, tuple(given)

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": PATH,
        "QUERY_STRING": query,
        "HTTP_ACCEPT": accept,
        "HTTP_ACCEPT_ENCODING": accept_encoding,
    }
    body = b"".join(make_wsgi_app(registry)(environ, start_response))
    return Page(status=status, headers=headers, body=body)


def asgi_app(registry: Collector) -> Asgi:
    """Return an ASGI app that answers every request with the metrics.

    It looks at nothing but what format is wanted: paths, methods and tokens are checked by whatever it is
    mounted in.
    """

    async def answer(scope: Any, _receive: Any, send: Any) -> None:
        def header(name: bytes) -> str:
            return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)

        def work() -> Page:
            return render(
                registry,
                accept=header(b"accept"),
                accept_encoding=header(b"accept-encoding"),
                query=scope.get("query_string", b"").decode("latin-1"),
            )

        page = await anyio.to_thread.run_sync(work, limiter=_one_at_a_time())
        lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in page.headers]
        length = (b"content-length", str(len(page.body)).encode())
        status = int(page.status.partition(" ")[0])
        await send({"type": "http.response.start", "status": status, "headers": [*lines, length]})
        await send({"type": "http.response.body", "body": page.body})

    return answer


def _one_at_a_time() -> anyio.CapacityLimiter:
    try:
        return _turn.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(1)
        _turn.set(limiter)
        return limiter


def serve_metrics(
    registry: Collector, host: str = "127.0.0.1", port: int = 0, *, allow_remote: bool = False
) -> MetricsServer:
    """Answer `GET /metrics` from a thread of our own, until closed or until the process ends.

    Args:
        registry: What is collected, such as `PrometheusMetrics.registry`.
        host: A loopback address or name.
        port: 0 picks a free one.
        allow_remote: Any address will do. There are no tokens here, and tool names and their use are told
            to whoever can connect.
    Raises:
        ConfigError: The address is not a loopback one, not ours or taken. Nothing is served.
    At most 16 connections at once, one request each of at most 16 KiB, and 10 seconds for everything. On a
    loopback address only requests that name one are answered, so that no web page can read the metrics.
    """
    listener, is_local = _bind(host, port, allow_remote=allow_remote)
    return MetricsServer(registry, listener, only_loopback_names=is_local)


class MetricsServer:
    """A listener for scrapes. `url` is what a scraper is told; also a context manager."""

    def __init__(self, registry: Collector, listener: socket.socket, *, only_loopback_names: bool) -> None:
        self._registry = registry
        self._listener = listener
        self._only_loopback_names = only_loopback_names
        self._writers: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self.host, self.port = listener.getsockname()[:2]
        self.url = f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}{PATH}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        # A daemon: it holds nothing that a process must wait for.
        self._thread = threading.Thread(target=self._run, name="mcp_tools metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering, and wait up to 5 s until that is so. Can be called again."""
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_S)

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            logger.exception("metrics are no longer served at %s", self.url)
        finally:
            self._loop.close()
            self._listener.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._begin, sock=self._listener, limit=MAX_REQUEST_BYTES)
        await self._stop.wait()
        # Not closed yet: asyncio would leave connections open that were accepted and are not made yet.
        self._loop.remove_reader(self._listener)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.wait(others)
        server.close()
        await asyncio.sleep(0)  # what was aborted last is closed

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._writers[writer] = self._loop.create_task(self._connected(reader, writer))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECTION_S):
                page = await self._page(reader)
                lines = [f"HTTP/1.1 {page.status}", *(f"{name}: {value}" for name, value in page.headers)]
                lines += [f"Content-Length: {len(page.body)}", "Connection: close", "", ""]
                writer.write("\r\n".join(lines).encode("latin-1") + page.body)
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError):
            pass  # the scraper went away, or took too long
        except Exception:
            logger.exception("a scrape failed")
        finally:
            del self._writers[writer]
            writer.transport.abort()

    async def _page(self, reader: asyncio.StreamReader) -> Page:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _said("431 Request Header Fields Too Large", f"at most {MAX_REQUEST_BYTES} bytes")
        first, *rest = head.decode("latin-1").split("\r\n")
        line = _REQUEST_LINE.fullmatch(first)
        if line is None:
            return _said("400 Bad Request", "not an HTTP/1.1 request")
        headers = _headers(rest)
        if self._only_loopback_names and not _is_loopback_name(headers.get("host", "localhost")):
            return _said("421 Misdirected Request", "only loopback names are answered here")
        path, _, query = line[2].partition("?")
        if path != PATH:
            return _said("404 Not Found", f"the metrics are at {PATH}")
        if line[1] != "GET":
            return _said("405 Method Not Allowed", "only GET is answered", ("Allow", "GET"))
        accept, encoding = headers.get("accept", ""), headers.get("accept-encoding", "")
        return render(self._registry, accept=accept, accept_encoding=encoding, query=query)


def _headers(lines: list[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found[name.lower()] = f"{found[name.lower()]},{value}" if name.lower() in found else value.strip()
    return found


def _said(status: str, text: str, *headers: tuple[str, str]) -> Page:
    plain = ("Content-Type", "text/plain; charset=utf-8")
    return Page(status=status, headers=(plain, *headers), body=f"{text}\n".encode())


def _is_loopback_name(host: str) -> bool:
    name = re.sub(r":\d{1,5}$", "", host.lower()).removeprefix("[").removesuffix("]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int, *, allow_remote: bool) -> tuple[socket.socket, bool]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"metrics cannot be served on {host}:{port}: no such address ({error})") from error
    is_local = all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)
    if not is_local and not allow_remote:
        raise ConfigError(
            f"serving metrics on {host} would show them to anybody on the network; listen on 127.0.0.1, or "
            "use /metrics of the HTTP server, which asks for a token"
        )
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(MAX_CONNECTIONS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"metrics cannot be served on {host}:{port}: {error.strerror}") from error
    return listener, is_local

"""Listening: sockets, the server's life from bind to the last closed connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Any, Final

import anyio
from mcp.server.lowlevel import Server
from uvicorn.config import Config
from uvicorn.server import ServerState

from mcp_tools.errors import ConfigError
from mcp_tools.server.http.app import HttpApp, Page
from mcp_tools.server.http.connection import BoundedConnection, Crowd, check_uvicorn
from mcp_tools.server.http.hosts import HostCheck
from mcp_tools.server.http.limits import HttpLimits
from mcp_tools.server.http.tokens import TOKEN_VARIABLE, TokenTable

_BACKLOG: Final = 512
_ACCEPT_AT_ONCE: Final = 8
"""asyncio accepts so many before any of them is counted; small, or a burst takes every descriptor."""
_DESCRIPTORS_KEPT: Final = 48
_UNWIND_S: Final = 0.7
"""How long cancelled requests may take to clean up before their connections are cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a server can be reached.

    Args:
        host, port: The first address bound; the port is the real one where 0 was asked for.
        urls: What a client connects to: the one of streamable HTTP first, then the one of SSE.
        is_local: Whether only this machine can connect.
    """

    host: str
    port: int
    urls: tuple[str, ...]
    is_local: bool


async def serve_http(
    server: Server[Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    tokens: TokenTable | None = None,
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    with_sse: bool = True,
    with_streamable: bool = True,
    pages: Mapping[str, Page] | None = None,
    limits: HttpLimits | None = None,
    on_listening: Callable[[Listening], None] | None = None,
    shutdown: anyio.Event | None = None,
) -> None:
    """Serve MCP over HTTP until `shutdown` is set. Installs no signal handlers; needs asyncio.

    Args:
        server: The MCP server; give it to one call only.
        host: A name or address to listen on; every address it stands for is bound.
        port: 0 picks a free one.
        tokens: Who may call. Needed unless every address is a loopback one; there, None lets anybody
            who can connect call as `local`.
        allowed_hosts, allowed_origins: More Host names and web origins to answer; see `HostCheck`.
        with_sse: Serve `/sse` and `/messages/`, for old clients.
        with_streamable: Serve `/mcp`.
        pages: What else is served, behind the same checks; see `HttpApp`.
        limits: Bounds; None for the usual ones.
        on_listening: Told once connections are accepted. None prints the URLs on stderr.
        shutdown: Set it to stop: calls in flight have `limits.grace_s` to end, then are cancelled.
    Raises:
        ConfigError: Nothing was served: the address is taken or not ours, tokens are missing, or a
            host or origin is not acceptable.
    Cancelling stops as `shutdown` does, without the grace.
    """
    check_uvicorn()
    limits = _within_descriptors(limits or HttpLimits())
    hosts = HostCheck(allowed_hosts, allowed_origins)
    addresses = _resolve(host, port)
    is_local = all(_is_loopback(address) for _, address in addresses)
    if tokens is None and not is_local:
        raise ConfigError(
            f"listening on {host} would let anybody on the network call tools; give callers tokens with "
            f"--token-file or {TOKEN_VARIABLE}, or listen on 127.0.0.1"
        )
    with contextlib.ExitStack() as sockets:
        bound = _bind(addresses, host, port, sockets)
        app = HttpApp(
            server,
            hosts=hosts,
            tokens=tokens,
            limits=limits,
            with_sse=with_sse,
            with_streamable=with_streamable,
            pages=pages,
        )
        async with app.running(), _accepting(app, bound, limits):
            (on_listening or _announce)(_listening(host, bound, app, is_local))
            await (shutdown or anyio.Event()).wait()
            app.stop_accepting()
            with anyio.move_on_after(limits.grace_s):
                await app.until_calls_end()


@contextlib.asynccontextmanager
async def _accepting(app: HttpApp, bound: list[socket.socket], limits: HttpLimits) -> AsyncIterator[None]:
    """Accept connections while this is entered; on the way out, leave none open."""
    config = Config(
        app,
        http=BoundedConnection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        # What a proxy says of its client is not believed: nothing here depends on it.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, round(limits.keep_alive_s)),
        h11_max_incomplete_event_size=limits.header_bytes,
        # asyncio may start a request in the context of an earlier one; who calls must not leak.
        reset_contextvars=True,
    )
    config.load()
    state = ServerState()
    crowd = Crowd()
    loop = asyncio.get_running_loop()
    listeners: list[asyncio.Server] = []
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_keep_date, state)
            for listener in bound:
                listeners.append(
                    await loop.create_server(
                        lambda: BoundedConnection(config, state, crowd, limits),
                        sock=listener,
                        backlog=_ACCEPT_AT_ONCE,
                    )
                )
                listener.listen(_BACKLOG)
            yield
            group.cancel_scope.cancel()
    finally:
        for server in listeners:
            server.close()
        for connection in list(state.connections):
            connection.shutdown()
        app.cancel_requests()
        with anyio.move_on_after(_UNWIND_S, shield=True):
            while state.tasks:
                await asyncio.wait(set(state.tasks))
        for connection in list(state.connections):
            connection.transport.abort()


async def _keep_date(state: ServerState) -> None:
    while True:
        state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        await anyio.sleep(1)


def _within_descriptors(limits: HttpLimits) -> HttpLimits:
    """Leave a quarter of the process's descriptors for files, children and connections not yet counted."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return limits
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = max(8, min(soft * 3 // 4, soft - _DESCRIPTORS_KEPT))
    if soft == resource.RLIM_INFINITY or room >= limits.connections:
        return limits
    return replace(
        limits,
        connections=room,
        requests_each=min(limits.requests_each, room * 3 // 4),
        streams=min(limits.streams, room // 2),
        streams_each=min(limits.streams_each, room // 4),
    )


_Address = tuple[Any, ...]


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, _Address]]:
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} is not between 0 and 65535")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {host}: no such host or address ({error})") from error
    addresses: list[tuple[socket.AddressFamily, _Address]] = list(
        dict.fromkeys((family, address) for family, _, _, _, address in found)
    )
    # Two sockets that each pick a free port would differ.
    return addresses[:1] if port == 0 else addresses


def _is_loopback(address: _Address) -> bool:
    parsed = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed.is_loopback


def _bind(
    addresses: list[tuple[socket.AddressFamily, _Address]], host: str, port: int, stack: contextlib.ExitStack
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    for family, address in addresses:
        try:
            # With the protocol named, or asyncio leaves Nagle's algorithm on: 40 ms for each answer.
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            listener.setblocking(False)
            # Lets a restart take over connections in TIME_WAIT; a live listener still keeps us out.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            if bound and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # `localhost` names ::1 also where IPv6 is off
            raise ConfigError(_why_not(error, host, port)) from error
        bound.append(listener)
    return bound


def _why_not(error: OSError, host: str, port: int) -> str:
    where = f"cannot listen on {host}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{where}: the port is in use; stop what uses it, or choose another with --port"
        case errno.EACCES:
            return f"{where}: not permitted; ports below 1024 need privileges, choose another with --port"
        case errno.EADDRNOTAVAIL:
            return f"{where}: this machine does not have that address; choose another with --host"
        case _:
            return f"{where}: {error.strerror}"


def _listening(host: str, bound: list[socket.socket], app: HttpApp, is_local: bool) -> Listening:
    port: int = bound[0].getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    urls = tuple(f"http://{name}:{port}{path}" for path in app.entry_paths)
    return Listening(host=host, port=port, urls=urls, is_local=is_local)


def _announce(listening: Listening) -> None:
    print("mcp-tools: listening on " + " and ".join(listening.urls), file=sys.stderr, flush=True)
    if not listening.is_local:
        print(
            "mcp-tools: tokens and answers cross the network unencrypted; put a TLS proxy in front",
            file=sys.stderr,
            flush=True,
        )

"""The ASGI app: every check a request must pass, then the SDK's transports.

    framing ► Host ► Origin ► path ► method ► token ► shares ► media type ► session ► body ► guard ► SDK

Each step is cheaper, and trusts less, than the next. Nothing after "token" happens for a stranger.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import anyio
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server

from mcp_tools.server.http import requests as checks
from mcp_tools.server.http.calls import bound_calls
from mcp_tools.server.http.exchange import ClientLeftError, Exchange, Receive, Send
from mcp_tools.server.http.hosts import HostCheck
from mcp_tools.server.http.limits import HttpLimits, Shares
from mcp_tools.server.http.requests import Answer, Headers, Scope
from mcp_tools.server.http.routing import Bounds, Handler, Request
from mcp_tools.server.http.sse_routes import SSE_PATH, SseRoutes
from mcp_tools.server.http.streamable import MCP_PATH, StreamableRoutes
from mcp_tools.server.http.tokens import LOCAL_PRINCIPAL, TokenTable

logger = logging.getLogger(__name__)

Page = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI app, as far as it answers one request."""

_FINISH_S: Final = 0.1
"""How long the end of a stream may take, when the server stops and the client does not read."""

_WRONG_HOST: Final = Answer(
    421, "this server does not answer to that Host; its owner can allow it with --allowed-host"
)
_WRONG_ORIGIN: Final = Answer(
    403, "pages of that Origin may not call; the server's owner can allow it with --allowed-origin"
)


class HttpApp:
    """MCP over HTTP as an ASGI app: `/mcp` (streamable HTTP), `/sse` and `/messages/`.

    Enter `running()` around its use, or let an ASGI server with lifespan support do so. Once only.

    Args:
        server: The MCP server. Gets one more middleware, which bounds the calls of one principal.
        hosts: The Host and Origin headers that are answered.
        tokens: Who may call. None: anybody who can connect, as `local`.
        limits: Bounds.
        with_sse, with_streamable: Which transports are offered.
        pages: Path → an ASGI app that answers GET there, behind the same checks, such as `/metrics`.
        clock: Monotonic seconds, for sessions.
    """

    def __init__(
        self,
        server: Server[Any],
        *,
        hosts: HostCheck,
        tokens: TokenTable | None,
        limits: HttpLimits,
        with_sse: bool = True,
        with_streamable: bool = True,
        pages: Mapping[str, Page] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._hosts = hosts
        self._tokens = tokens
        self._limits = limits
        self._users = {name: _user(name) for name in (tokens.names if tokens is not None else ())}
        self._requests = Shares(total=limits.connections, each=limits.requests_each)
        bounds = Bounds(
            limits=limits,
            users=self._users,
            sessions=Shares(total=limits.sessions, each=limits.sessions_each),
            streams=Shares(total=limits.streams, each=limits.streams_each),
            bodies=Shares(total=limits.buffered_bytes, each=limits.buffered_bytes_each),
            clock=clock,
        )
        self._streamable = StreamableRoutes(server, bounds) if with_streamable else None
        self._sse = SseRoutes(server, bounds) if with_sse else None
        self._routes: dict[str, Mapping[str, Handler]] = {}
        for transport in (self._streamable, self._sse):
            if transport is not None:
                self._routes |= transport.routes
        for path, page in (pages or {}).items():
            self._routes[path] = {"GET": _page_handler(page)}
        # Tasks, and not cancel scopes of ours around them: a scope costs every call, this costs the end.
        self._in_progress: dict[asyncio.Task[Any], str] = {}
        self._stopping = False
        self._clock = clock
        self._quiet_until = 0.0
        self._unsaid = 0
        bound_calls(server, each=limits.calls_each)

    @property
    def entry_paths(self) -> tuple[str, ...]:
        """What clients connect to: `/mcp` first, where it is offered."""
        return tuple(path for path in (MCP_PATH, SSE_PATH) if path in self._routes)

    # --- Life ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve requests while this is entered; on the way out, end every request and session."""
        async with self._server.lifespan(self._server) as state, AsyncExitStack() as stack:
            for transport in (self._sse, self._streamable):
                if transport is not None:
                    await stack.enter_async_context(transport.running(state))
            stack.callback(self.cancel_requests)
            yield

    def stop_accepting(self) -> None:
        """Refuse requests from now on; those in progress go on."""
        self._stopping = True

    async def until_calls_end(self) -> None:
        """Wait until no call is in progress. Streams that only listen do not count."""
        # Polled, once in a server's life, so that no call pays for an event at its end.
        while self._has_calls():  # noqa: ASYNC110
            await anyio.sleep(0.02)

    def _has_calls(self) -> bool:
        return "POST" in self._in_progress.values() or (self._sse is not None and self._sse.calls_waiting > 0)

    def cancel_requests(self) -> None:
        """Cancel every request in progress, streams included; each still ends its answer."""
        self._stopping = True
        for task in self._in_progress:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            async with self.running():
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    # --- One request --------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(send)
        task = asyncio.current_task()
        assert task is not None
        self._in_progress[task] = scope["method"]
        try:
            answer = await self._admit(scope, receive, exchange)
            if answer is None and not exchange.started:
                answer = checks.FAULT
        except ClientLeftError:
            return
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
            answer = checks.STOPPING
        except Exception:
            logger.exception("a request failed: %s %r", scope["method"], scope["path"][:200])
            answer = checks.FAULT
        finally:
            del self._in_progress[task]
        if answer is not None:
            await self._answer(answer, scope, exchange)

    async def _answer(self, answer: Answer, scope: Scope, exchange: Exchange) -> None:
        if not exchange.started:
            if answer.status >= 400:
                self._note(answer, scope)
            await exchange.answer(answer)
        elif answer is checks.STOPPING:
            with anyio.move_on_after(_FINISH_S):
                await exchange.finish()
        # Otherwise a fault in mid-answer: left incomplete, so that the client sees that it broke.

    def _note(self, answer: Answer, scope: Scope) -> None:
        """Log a refusal, one a second at most: anybody can cause them, and the log is not theirs to fill."""
        if self._clock() < self._quiet_until:
            self._unsaid += 1
            return
        others = f" (and {self._unsaid} others before)" if self._unsaid else ""
        logger.info(
            "refused %s %r: %d %s%s",
            scope["method"],
            scope["path"][:200],
            answer.status,
            answer.text,
            others,
        )
        self._quiet_until = self._clock() + 1.0
        self._unsaid = 0

    async def _admit(self, scope: Scope, receive: Receive, exchange: Exchange) -> Answer | None:
        headers = Headers(scope["headers"], self._limits)
        if (refusal := checks.framing_refusal(scope, headers, self._limits)) is not None:
            return refusal
        local_address = scope.get("server")
        if not self._hosts.allows_host(headers.text(b"host"), local_address):
            return _WRONG_HOST
        if not self._hosts.allows_origin(headers.text(b"origin"), local_address, scope["scheme"]):
            return _WRONG_ORIGIN
        methods = self._routes.get(scope["path"].removeprefix(scope.get("root_path", "")))
        if methods is None:
            return checks.NOT_FOUND
        handler = methods.get(scope["method"])
        if handler is None:
            return checks.method_not_allowed(methods)
        principal = self._identify(headers)
        if principal is None:
            return checks.UNAUTHORIZED
        if self._stopping:
            return checks.STOPPING
        if not self._requests.take(principal):
            return checks.BUSY
        try:
            # The SDK binds sessions to this user; an outer app's idea of one must not reach it.
            scope = {**scope, "user": self._users.get(principal)}
            return await handler(Request(scope, headers, receive, exchange, principal))
        finally:
            self._requests.give_back(principal)

    def _identify(self, headers: Headers) -> str | None:
        if self._tokens is None:
            return LOCAL_PRINCIPAL
        token = checks.bearer_token(headers)
        return None if token is None else self._tokens.principal_of(token)


def _page_handler(page: Page) -> Handler:
    async def handler(request: Request) -> Answer | None:
        if checks.has_body(request.headers):
            return checks.BODY_UNWANTED
        await page(request.scope, request.receive, request.exchange)
        return None

    return handler


def _user(name: str) -> AuthenticatedUser:
    # Without the token itself, which is nobody's business past the check.
    return AuthenticatedUser(AccessToken(token="", client_id=name, scopes=[]))


def build_app(
    server: Server[Any],
    *,
    tokens: TokenTable | None = None,
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    with_sse: bool = True,
    with_streamable: bool = True,
    pages: Mapping[str, Page] | None = None,
    limits: HttpLimits | None = None,
) -> HttpApp:
    """Make the ASGI app, for tests and for serving inside another program.

    Args:
        server: The MCP server; give it to one app only.
        tokens: Who may call. None: anybody who can connect, as `local`; then listen on loopback only.
        allowed_hosts, allowed_origins: See `HostCheck`; loopback names are always answered.
        with_sse, with_streamable: Which transports are offered.
        pages: See `HttpApp`.
        limits: Bounds; None for the usual ones. Deadlines for headers and for clients that do not
            read belong to `serve_http`'s connections, not to the app.
    Raises:
        ConfigError: A host or origin is not acceptable.
    """
    return HttpApp(
        server,
        hosts=HostCheck(allowed_hosts, allowed_origins),
        tokens=tokens,
        limits=limits or HttpLimits(),
        with_sse=with_sse,
        with_streamable=with_streamable,
        pages=pages,
    )

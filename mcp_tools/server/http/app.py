"""The ASGI app: every check a request must pass, then the SDK's transports.

    framing ► Host ► Origin ► path ► method ► token ► shares ► session ► media type ► body ► guard ► SDK

Each step is cheaper, and trusts less, than the next. Nothing after "token" happens for a stranger.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import anyio
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types.jsonrpc import JSONRPCError, JSONRPCMessage
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from mcp_tools.server.http import requests as checks
from mcp_tools.server.http.calls import bound_calls
from mcp_tools.server.http.exchange import (
    BodyShare,
    ClientLeftError,
    Exchange,
    Message,
    Receive,
    Send,
    read_body,
    replay,
)
from mcp_tools.server.http.hosts import HostCheck
from mcp_tools.server.http.limits import HttpLimits, Shares
from mcp_tools.server.http.requests import Headers, Refusal, Scope
from mcp_tools.server.http.sessions import SessionLedger
from mcp_tools.server.http.sse import SseSessions
from mcp_tools.server.http.tokens import LOCAL_PRINCIPAL, TokenTable
from mcp_tools.server.principal import Caller, current_caller

logger = logging.getLogger(__name__)

MCP_PATH: Final = "/mcp"
SSE_PATH: Final = "/sse"
MESSAGES_PATH: Final = "/messages/"

_END_SESSIONS_S: Final = 0.5
_HANDSHAKE_VERSIONS: Final = frozenset(version.encode() for version in HANDSHAKE_PROTOCOL_VERSIONS)
_WRONG_HOST: Final = Refusal(421, "this server does not answer to that Host; its owner can allow it")
_WRONG_ORIGIN: Final = Refusal(403, "pages of that Origin may not call; the server's owner can allow it")


@dataclass(frozen=True, slots=True)
class _Request:
    """One request on its way through the checks."""

    scope: Scope
    headers: Headers
    receive: Receive
    exchange: Exchange
    principal: str

    @property
    def is_modern(self) -> bool:
        """Whether it belongs to the era without sessions. The SDK decides by the same header."""
        version = self.headers.get(b"mcp-protocol-version")
        return version is not None and version not in _HANDSHAKE_VERSIONS


_Handler = Callable[[_Request], Awaitable[Refusal | None]]


class HttpApp:
    """MCP over HTTP as an ASGI app: `/mcp` (streamable HTTP), `/sse` and `/messages/`.

    Enter `running()` around its use, or let an ASGI server with lifespan support do so. Once only.

    Args:
        server: The MCP server. Gets one more middleware, which bounds the calls of one principal.
        hosts: The Host and Origin headers that are answered.
        tokens: Who may call. None: anybody who can connect, as `local`.
        limits: Bounds.
        with_sse, with_streamable: Which transports are offered.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._hosts = hosts
        self._tokens = tokens
        self._limits = limits
        self._users = {name: _user(name) for name in tokens.names} if tokens is not None else {}
        self._requests = Shares(total=limits.connections, each=limits.requests_each)
        self._streams = Shares(total=limits.streams, each=limits.streams_each)
        self._bodies = Shares(total=limits.buffered_bytes, each=limits.buffered_bytes_each)
        sessions = Shares(total=limits.sessions, each=limits.sessions_each)
        self._ledger = SessionLedger(sessions, idle_s=limits.session_idle_s, clock=clock)
        self._manager = StreamableHTTPSessionManager(
            server,
            session_idle_timeout=limits.session_idle_s,
            max_request_body_size=limits.body_bytes,
            # The ledger is the bound; the SDK may still be ending sessions that it counts no more.
            max_sessions=2 * limits.sessions,
        )
        self._sse = SseSessions(server, limits=limits, messages_path=MESSAGES_PATH)
        self._sse_lifespan_state: Any = None
        self._routes: dict[str, dict[str, _Handler]] = {}
        if with_streamable:
            self._routes[MCP_PATH] = {
                "GET": self._get_mcp,
                "POST": self._post_mcp,
                "DELETE": self._delete_mcp,
            }
        if with_sse:
            self._routes[SSE_PATH] = {"GET": self._get_sse}
            self._routes[MESSAGES_PATH] = {"POST": self._post_message}
        # Tasks, and not cancel scopes of ours around them: a scope costs every call, this costs the end.
        self._in_progress: dict[asyncio.Task[Any], str] = {}
        self._stopping = False
        bound_calls(server, each=limits.calls_each)

    @property
    def entry_paths(self) -> tuple[str, ...]:
        """What clients connect to: `/mcp` first, where it is offered."""
        return tuple(path for path in (MCP_PATH, SSE_PATH) if path in self._routes)

    # --- Life ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve requests while this is entered; on the way out, end every request and session."""
        async with AsyncExitStack() as stack:
            if SSE_PATH in self._routes:
                lifespan = self._server.lifespan(self._server)
                self._sse_lifespan_state = await stack.enter_async_context(lifespan)
            if MCP_PATH in self._routes:
                await stack.enter_async_context(self._manager.run())
            try:
                yield
            finally:
                self.cancel_requests()
                with anyio.move_on_after(_END_SESSIONS_S, shield=True):
                    await self._end_sessions()

    async def _end_sessions(self) -> None:
        """End each session as its client would. Cancelled instead, it waits a second for a dead wire."""
        for session_id, principal in self._ledger.all():
            headers = [(b"mcp-session-id", session_id.encode("latin-1"))]
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": "DELETE",
                "path": MCP_PATH,
                "query_string": b"",
                "headers": headers,
                "user": self._users.get(principal),
            }
            await self._manager.handle_request(scope, _nothing_more, _to_nobody)

    def stop_accepting(self) -> None:
        """Refuse requests from now on; those in progress go on."""
        self._stopping = True

    async def until_calls_end(self) -> None:
        """Wait until no call is in progress. Streams that only listen do not count."""
        while self._sse.calls_waiting or "POST" in self._in_progress.values():  # noqa: ASYNC110
            # Asked for once in a server's life, so calls do not pay for an event at their end.
            await anyio.sleep(0.02)

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
            refusal = await self._admit(scope, receive, exchange)
            if refusal is None and not exchange.started:
                refusal = checks.FAULT
        except ClientLeftError:
            return
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
            refusal = checks.STOPPING
        except Exception:
            logger.exception("a request failed: %s %r", scope["method"], scope["path"][:200])
            refusal = checks.FAULT
        finally:
            del self._in_progress[task]
        if refusal is not None:
            if not exchange.started:
                await exchange.refuse(refusal)
            elif refusal is checks.STOPPING:
                await exchange.finish()
            # Otherwise a fault in mid-answer: left incomplete, so that the client sees that it broke.

    async def _admit(self, scope: Scope, receive: Receive, exchange: Exchange) -> Refusal | None:
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
            return await handler(_Request(scope, headers, receive, exchange, principal))
        finally:
            self._requests.give_back(principal)

    def _identify(self, headers: Headers) -> str | None:
        if self._tokens is None:
            return LOCAL_PRINCIPAL
        token = checks.bearer_token(headers)
        return None if token is None else self._tokens.principal_of(token)

    # --- Streamable HTTP ----------------------------------------------------------------------

    async def _post_mcp(self, request: _Request) -> Refusal | None:
        if (refusal := checks.media_refusal(request.headers, self._limits)) is not None:
            return refusal
        if request.is_modern:
            if request.headers.get(b"mcp-method") == b"subscriptions/listen":
                return await self._as_stream(request, self._post_body)
            return await self._post_body(request)
        if request.headers.get(b"mcp-session-id") is None:
            return await self._open_session(request)
        return await self._in_session(request, self._post_body)

    async def _get_mcp(self, request: _Request) -> Refusal | None:
        if checks.has_body(request.headers):
            return checks.BODY_UNWANTED
        if request.is_modern:
            return checks.method_not_allowed(("POST",))
        return await self._in_session(request, self._listen)

    async def _delete_mcp(self, request: _Request) -> Refusal | None:
        if checks.has_body(request.headers):
            return checks.BODY_UNWANTED
        if request.is_modern:
            return checks.method_not_allowed(("POST",))
        request.exchange.no_content = True
        return await self._in_session(request, self._pass_on)

    async def _open_session(self, request: _Request) -> Refusal | None:
        if not self._ledger.reserve(request.principal):
            return checks.TOO_MANY_SESSIONS
        opened = False

        def note(status: int, session_id: str | None) -> None:
            # Written down before the client learns the id, so that its next request finds it.
            nonlocal opened
            if session_id is not None and status < 400:
                self._ledger.open(session_id, request.principal)
                opened = True

        request.exchange.on_start = note
        try:
            return await self._post_body(request)
        finally:
            if not opened:
                self._ledger.forgo(request.principal)

    async def _in_session(self, request: _Request, handler: _Handler) -> Refusal | None:
        session_id = request.headers.text(b"mcp-session-id")
        if session_id is None:
            return checks.NEEDS_SESSION
        if not self._ledger.enter(session_id, request.principal):
            return checks.NO_SESSION

        def note(status: int, _: str | None) -> None:
            # The SDK knows it no more (it crashed, or this was its DELETE).
            if status == 404 or (status < 400 and request.scope["method"] == "DELETE"):
                self._ledger.close(session_id)

        request.exchange.on_start = note
        try:
            return await handler(request)
        finally:
            self._ledger.leave(session_id)

    async def _listen(self, request: _Request) -> Refusal | None:
        if request.headers.get(b"last-event-id") is not None:
            # No event is kept to be sent again, and the SDK would then not answer at all.
            scope = request.scope
            headers = [header for header in scope["headers"] if header[0] != b"last-event-id"]
            request = replace(request, scope={**scope, "headers": headers})
        return await self._as_stream(request, self._pass_on)

    async def _post_body(self, request: _Request) -> Refusal | None:
        return await self._with_message(request, self._hand_on)

    async def _hand_on(self, request: _Request, message: JSONRPCMessage, body: bytes) -> Refusal | None:
        if isinstance(message, JSONRPCError):
            # The guard made it from a malformed response, so that whoever waits for it is told.
            body = message.model_dump_json(by_alias=True, exclude_unset=True).encode()
        return await self._pass_on(request, body)

    async def _pass_on(self, request: _Request, body: bytes = b"") -> Refusal | None:
        session_id = None if request.is_modern else request.headers.text(b"mcp-session-id")
        with _Calling(request, transport="http", session_id=session_id):
            await self._manager.handle_request(request.scope, replay(body, request.receive), request.exchange)
        return None

    # --- SSE ----------------------------------------------------------------------------------

    async def _get_sse(self, request: _Request) -> Refusal | None:
        if checks.has_body(request.headers):
            return checks.BODY_UNWANTED
        return await self._as_stream(request, self._serve_sse)

    async def _serve_sse(self, request: _Request) -> Refusal | None:
        if not self._ledger.reserve(request.principal):
            return checks.TOO_MANY_SESSIONS
        session_id = self._sse.new_session_id()
        key = _sse_key(session_id)
        self._ledger.open(key, request.principal)
        # Held until the stream ends: SSE sessions notice by themselves when they are idle.
        self._ledger.enter(key, request.principal)
        try:
            with _Calling(request, transport="sse", session_id=session_id):
                await self._sse.serve_stream(
                    session_id, request.scope, request.receive, request.exchange, self._sse_lifespan_state
                )
        finally:
            self._ledger.close(key)
        return None

    async def _post_message(self, request: _Request) -> Refusal | None:
        if (refusal := checks.media_refusal(request.headers, self._limits)) is not None:
            return refusal
        session_id = self._sse.session_of(request.scope["query_string"])
        if session_id is None or not self._ledger.enter(_sse_key(session_id), request.principal):
            return checks.NO_SESSION
        try:
            return await self._with_message(request, self._post_to_stream)
        finally:
            self._ledger.leave(_sse_key(session_id))

    async def _post_to_stream(self, request: _Request, message: JSONRPCMessage, _: bytes) -> Refusal:
        session_id = self._sse.session_of(request.scope["query_string"]) or ""
        with _Calling(request, transport="sse", session_id=session_id):
            return await self._sse.take_message(session_id, message, request.scope)

    # --- Both ---------------------------------------------------------------------------------

    async def _with_message(
        self, request: _Request, use: Callable[[_Request, JSONRPCMessage, bytes], Awaitable[Refusal | None]]
    ) -> Refusal | None:
        """Read the body and have it used; its bytes count as taken until that is done."""
        taken = BodyShare(self._bodies, request.principal)
        try:
            body = await read_body(request.receive, limits=self._limits, share=taken)
            if isinstance(body, Refusal):
                return body
            message = checks.read_message(body)
            if isinstance(message, Refusal):
                return message
            return await use(request, message, body)
        finally:
            taken.give_back()

    async def _as_stream(self, request: _Request, handler: _Handler) -> Refusal | None:
        if not self._streams.take(request.principal):
            return checks.BUSY
        try:
            return await handler(request)
        finally:
            self._streams.give_back(request.principal)


async def _nothing_more() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _to_nobody(_: Message) -> None:
    pass


def _sse_key(session_id: str) -> str:
    """Name an SSE session in the ledger, so that its id is worth nothing on `/mcp`."""
    return f"sse:{session_id}"


def _user(name: str) -> AuthenticatedUser:
    # Without the token itself, which is nobody's business past the check.
    return AuthenticatedUser(AccessToken(token="", client_id=name, scopes=[]))


class _Calling:
    """Says who calls, for everything that runs because of this request; the SDK carries it along."""

    __slots__ = ("_caller", "_tokens", "_user")

    def __init__(self, request: _Request, *, transport: str, session_id: str | None) -> None:
        self._caller = Caller(principal=request.principal, transport=transport, session_id=session_id)
        self._user = request.scope["user"]

    def __enter__(self) -> None:
        self._tokens = (current_caller.set(self._caller), auth_context_var.set(self._user))

    def __exit__(self, *_: object) -> None:
        caller, user = self._tokens
        auth_context_var.reset(user)
        current_caller.reset(caller)


def build_app(
    server: Server[Any],
    *,
    tokens: TokenTable | None = None,
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    with_sse: bool = True,
    with_streamable: bool = True,
    limits: HttpLimits | None = None,
) -> HttpApp:
    """Make the ASGI app, for tests and for serving inside another program.

    Args:
        server: The MCP server; give it to one app only.
        tokens: Who may call. None: anybody who can connect, as `local`; then listen on loopback only.
        allowed_hosts, allowed_origins: See `HostCheck`; loopback names are always answered.
        with_sse, with_streamable: Which transports are offered.
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
    )

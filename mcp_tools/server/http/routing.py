"""What the routes of one app share: the request as far as it has come, and the bounds it meets next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp_types.jsonrpc import JSONRPCMessage
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from mcp_tools.server.http import requests as checks
from mcp_tools.server.http.exchange import BodyShare, Exchange, Receive, read_body
from mcp_tools.server.http.limits import HttpLimits, Shares
from mcp_tools.server.http.requests import Answer, Headers, Scope
from mcp_tools.server.http.sessions import SessionLedger
from mcp_tools.server.principal import Caller, current_caller

_HANDSHAKE_VERSIONS: Final = frozenset(version.encode() for version in HANDSHAKE_PROTOCOL_VERSIONS)


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose caller is known and whose framing is sound."""

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

    @property
    def session_id(self) -> str:
        """The session it names; empty where it names none."""
        return self.headers.text(b"mcp-session-id") or ""


Handler = Callable[[Request], Awaitable[Answer | None]]
Routes = Mapping[str, Mapping[str, Handler]]
"""Path → method → handler. A handler answers through the exchange, or returns what to answer."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all requests of one app take from."""

    limits: HttpLimits
    users: Mapping[str, AuthenticatedUser]
    sessions: Shares
    streams: Shares
    bodies: Shares
    clock: Callable[[], float]

    def new_ledger(self, on_close: Callable[[str], None] | None = None) -> SessionLedger:
        """Make the ledger of one transport; together they hold no more sessions than there may be."""
        idle_s = self.limits.session_idle_s
        return SessionLedger(self.sessions, idle_s=idle_s, clock=self.clock, on_close=on_close)

    async def with_message(
        self, request: Request, use: Callable[[Request, JSONRPCMessage, bytes], Awaitable[Answer | None]]
    ) -> Answer | None:
        """Read the body and have its message used; its bytes count as taken until that is done."""
        taken = BodyShare(self.bodies, request.principal)
        try:
            body = await read_body(request.receive, limits=self.limits, share=taken)
            if isinstance(body, Answer):
                return body
            message = checks.read_message(body)
            if isinstance(message, Answer):
                return message
            return await use(request, message, body)
        finally:
            taken.give_back()

    async def as_stream(self, request: Request, handler: Handler) -> Answer | None:
        """Have an answer sent that lasts as long as its client stays."""
        if not self.streams.take(request.principal):
            return checks.BUSY
        try:
            return await handler(request)
        finally:
            self.streams.give_back(request.principal)


class Calling:
    """Says who calls, for everything that runs because of this request; the SDK carries it along."""

    __slots__ = ("_caller", "_tokens", "_user")

    def __init__(self, request: Request, *, transport: str, session_id: str | None) -> None:
        self._caller = Caller(principal=request.principal, transport=transport, session_id=session_id)
        self._user = request.scope["user"]

    def __enter__(self) -> None:
        self._tokens = (current_caller.set(self._caller), auth_context_var.set(self._user))

    def __exit__(self, *_: object) -> None:
        caller, user = self._tokens
        auth_context_var.reset(user)
        current_caller.reset(caller)

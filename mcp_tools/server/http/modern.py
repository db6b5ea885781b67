"""Requests of 2026-07-28: each POST stands alone, and closing its answer withdraws it.

The checks and the handling of a request are the SDK's. Its HTTP entry parses each body again and runs
three tasks for each request; here a request is handled in the task it came in, what its handler says goes
straight to the answer, and whether the client is still there is the connection's to tell.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import anyio
from mcp.server.connection import Connection
from mcp.server.lowlevel import Server
from mcp.server.runner import modern_error_data, serve_one
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    MCP_PROTOCOL_VERSION_HEADER,
    InboundLadderRejection,
    InboundModernRoute,
    classify_inbound_request,
    find_duplicated_routing_header,
    unsupported_protocol_version_rejection,
    validate_mcp_param_headers,
    x_mcp_header_map,
)
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import HEADER_MISMATCH, INVALID_REQUEST, ErrorData
from mcp_types.jsonrpc import (
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)
from starlette.datastructures import Headers
from starlette.requests import Request as StarletteRequest

from mcp_tools.server.http import events
from mcp_tools.server.http.exchange import ClientLeftError
from mcp_tools.server.http.leaving import WatchedClient
from mcp_tools.server.http.requests import JSON, Answer, rpc_error
from mcp_tools.server.http.routing import Request

_ACCEPTED = Answer(202, "")
_NOT_A_REQUEST = rpc_error(400, INVALID_REQUEST, "the body must be one request or notification")


class ModernRequests:
    """Answers POSTs of 2026-07-28.

    Args:
        server: What answers. Its `get_tool_input_schema` is needed where headers mirror arguments.
    """

    def __init__(self, server: Server[Any]) -> None:
        self._server = server
        self._mirrored: dict[str, tuple[Any, bool]] = {}  # tool → its schema, and whether headers mirror it

    async def post(self, message: JSONRPCMessage, request: Request, lifespan_state: Any) -> Answer | None:
        """Take one message and answer it, or return what to answer."""
        headers = Headers(raw=request.scope["headers"])
        if isinstance(message, JSONRPCNotification):
            # Nothing is defined that a client could notify us of here; the version is checked as ever.
            asked = headers.get(MCP_PROTOCOL_VERSION_HEADER, "")
            rejection = unsupported_protocol_version_rejection(asked)
            return _ACCEPTED if rejection is None else _rejected(rejection, None)
        if not isinstance(message, JSONRPCRequest):
            return _NOT_A_REQUEST
        route = self._route(message, headers)
        if isinstance(route, InboundLadderRejection):
            return _rejected(route, message.id)
        answer = await self._handle(message, route, headers, request, lifespan_state)
        body = answer.model_dump_json(by_alias=True, exclude_none=True).encode()
        exchange = request.exchange
        if exchange.started:
            await events.send_event(exchange, "message", body.decode())
            await exchange.finish()
        else:
            code = answer.error.code if isinstance(answer, JSONRPCError) else None
            await exchange.whole(200 if code is None else ERROR_CODE_HTTP_STATUS.get(code, 200), JSON, body)
        return None

    def _route(
        self, message: JSONRPCRequest, headers: Headers
    ) -> InboundModernRoute | InboundLadderRejection:
        """Hold the headers against the body, as proxies on the way have read them (B-37)."""
        doubled = find_duplicated_routing_header(headers.items())
        if doubled is not None:
            return InboundLadderRejection(HEADER_MISMATCH, f"{doubled} header appears more than once")
        params = message.params or {}
        route = classify_inbound_request({"method": message.method, "params": params}, headers=headers)
        if isinstance(route, InboundLadderRejection) or message.method != "tools/call":
            return route
        name, arguments = params.get("name"), params.get("arguments")
        lookup = self._server.get_tool_input_schema
        if lookup is None or not isinstance(name, str) or not isinstance(arguments, Mapping | None):
            return route
        schema = lookup(name)
        if schema is None or not self._is_mirrored(name, schema):
            return route
        return validate_mcp_param_headers(schema, arguments or {}, headers) or route

    def _is_mirrored(self, name: str, schema: Any) -> bool:
        """Whether headers repeat some of a tool's arguments; looked for once in each schema."""
        known = self._mirrored.get(name)
        if known is None or known[0] is not schema:
            known = self._mirrored[name] = (schema, bool(x_mcp_header_map(schema)))
        return known[1]

    async def _handle(
        self,
        message: JSONRPCRequest,
        route: InboundModernRoute,
        headers: Headers,
        request: Request,
        lifespan_state: Any,
    ) -> JSONRPCResponse | JSONRPCError:
        channel = _Channel(message, headers, request)
        connection = Connection.from_envelope(
            route.protocol_version, route.client_info, route.client_capabilities
        )
        pinger = _Pinger(channel)
        try:
            with anyio.CancelScope() as scope:
                async with WatchedClient(request, scope.cancel):
                    result = await serve_one(
                        self._server,
                        channel,
                        message.method,
                        message.params,
                        connection=connection,
                        lifespan_state=lifespan_state,
                    )
        except Exception as error:
            return JSONRPCError(jsonrpc="2.0", id=message.id, error=modern_error_data(error))
        finally:
            pinger.stop()
        if scope.cancelled_caught:
            raise ClientLeftError
        return JSONRPCResponse(jsonrpc="2.0", id=message.id, result=result)


class _Channel:
    """What a handler can say while it works on one request; the SDK's `DispatchContext`."""

    can_send_request = False

    def __init__(self, message: JSONRPCRequest, headers: Headers, request: Request) -> None:
        self.transport = TransportContext(kind="streamable-http", can_send_request=False, headers=headers)
        self.request_id = message.id
        self.message_metadata = ServerMessageMetadata(request_context=StarletteRequest(request.scope))
        self._progress_token = progress_token_from_params(message.params)
        self._exchange = request.exchange
        self._turn = asyncio.Lock()

    @property
    def cancel_requested(self) -> anyio.Event:
        return anyio.Event()  # never set: in this era a client withdraws by leaving

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> None:
        fields = {} if params is None else {"params": dict(params)}  # a null would be sent as one
        notification = JSONRPCNotification(jsonrpc="2.0", method=method, **fields)
        async with self._turn:
            await self._begin()
            await events.send(self._exchange, notification)

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if self._progress_token is not None:
            params = {"progressToken": self._progress_token, "progress": progress}
            params |= {} if total is None else {"total": total}
            await self.notify(
                "notifications/progress", params | ({} if message is None else {"message": message})
            )

    async def ping(self) -> None:
        """Keep a proxy from giving up on a handler that says nothing."""
        async with self._turn:
            await self._begin()
            await events.send_ping(self._exchange)

    async def _begin(self) -> None:
        if not self._exchange.started:
            await events.start(self._exchange)


class _Pinger:
    """Pings while a handler is silent for long; until then it is a timer and nothing else."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(events.PING_S, self._begin)

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._ping())

    async def _ping(self) -> None:
        while True:
            await self._channel.ping()
            await asyncio.sleep(events.PING_S)


def _rejected(rejection: InboundLadderRejection, request_id: str | int | None) -> Answer:
    error = ErrorData(code=rejection.code, message=rejection.message, data=rejection.data)
    body = JSONRPCError(jsonrpc="2.0", id=request_id, error=error).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    status = ERROR_CODE_HTTP_STATUS.get(rejection.code, 200)
    return Answer(status, json.dumps({**body, "id": request_id}), media_type=JSON)

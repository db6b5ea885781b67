"""MCP ↔ executor: one server object, used by every transport and by both eras of the protocol.

Every call goes through `ToolExecutor.execute`, also one for a tool that does not exist, so that it is
recorded. What the model can put right comes back as a tool error; only an unknown tool and a message
that is not a tool call at all are protocol errors.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

import anyio
import mcp_types as types
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from opentelemetry import trace

from mcp_tools import __version__
from mcp_tools.calling import CancelWatch
from mcp_tools.confirmation.channels import Answer, Reply
from mcp_tools.confirmation.question import visible
from mcp_tools.executor import ToolExecutor
from mcp_tools.output.plain import safe_str
from mcp_tools.server.changes import Audience, RegistryEvents, audience
from mcp_tools.server.content import error_result, wire_result, wire_tool
from mcp_tools.server.elicitation import (
    ANSWER_KEY,
    CHANNEL,
    Elicitation,
    judge,
    too_late,
    unusable,
)
from mcp_tools.server.meta import account, idempotency_key
from mcp_tools.server.principal import current_caller
from mcp_tools.server.progress import Progress
from mcp_tools.types import (
    DEFAULT_CONFIRM_TIMEOUT_S,
    Approval,
    CallContext,
    Confirmation,
    ErrorCode,
    ExecutionResult,
    ExecutionStatus,
    Tool,
)

if TYPE_CHECKING:
    from mcp_tools.output.store import OutputStore

logger = logging.getLogger(__name__)

MAX_QUESTIONS: Final = 3
"""Asked anew when the target changed while a person was thinking; then we give up."""
MAX_OPEN_QUESTIONS: Final = 32
"""Per principal and session; each call that waits for an answer holds a place among those in flight."""
RECORD_S: Final = 2.0
MAX_CLIENT_CHARS: Final = 100

_Context = ServerRequestContext[Any, Any]
_Asker = tuple[str, str | None]

_CODE: Final = {
    Reply.DECLINED: ErrorCode.DECLINED,
    Reply.DISMISSED: ErrorCode.DECLINED,
    Reply.UNUSABLE: ErrorCode.DECLINED,
    Reply.NO_ANSWER: ErrorCode.CONFIRMATION_INVALID,
    Reply.GONE: ErrorCode.CANCELLED,
    Reply.NOBODY: ErrorCode.DENIED,
}


class ToolServer(Server[Audience]):
    """The SDK's low-level server, which also says over HTTP that its list of tools can change."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """Describe us to a handshake client."""
        return super().create_initialization_options(
            notification_options or NotificationOptions(tools_changed=True),
            experimental_capabilities,
            extensions,
        )


def build_server(
    executor: ToolExecutor,
    *,
    name: str = "mcp-tools",
    version: str | None = None,
    instructions: str | None = None,
    confirm_timeout_s: float = DEFAULT_CONFIRM_TIMEOUT_S,
    telemetry: bool | None = None,
    outputs: OutputStore | None = None,
) -> ToolServer:
    """Make the one MCP server that any number of connections and transports share.

    Args:
        executor: The only way to a tool.
        name: What clients show; also the audience of sealed request states.
        version: None: ours.
        instructions: For the model, given once per connection.
        confirm_timeout_s: Seconds a person has to answer a question.
        telemetry: Emit the SDK's OpenTelemetry spans, which cost a tenth of a call. None: if this
            program has set up a tracer provider by now, so that somebody receives them.
        outputs: Kept outputs, which clients can read as resources. None: no resources are offered.
    Returns:
        A server to hand to `serve_stdio` or to an HTTP transport. It must be served on asyncio.
    """
    events = RegistryEvents(executor.registry)
    calls = _Calls(executor, confirm_timeout_s)

    def input_schema(tool_name: str) -> Mapping[str, Any] | None:
        tool = executor.registry.get(tool_name)
        return None if tool is None else tool.parameters

    @asynccontextmanager
    async def lifespan(_server: Server[Audience]) -> AsyncIterator[Audience]:
        async with audience(events) as listeners:
            yield listeners

    resources: dict[str, Any] = {}
    if outputs is not None:
        from mcp_tools.server.resources import KeptOutputs

        kept = KeptOutputs(outputs)
        resources = {"on_list_resources": kept.list, "on_read_resource": kept.read}
    server = ToolServer(
        name,
        version=version if version is not None else __version__,
        instructions=instructions,
        lifespan=lifespan,
        get_tool_input_schema=input_schema,
        on_list_tools=_Listing(executor),
        on_call_tool=calls,
        on_subscriptions_listen=ListenHandler(events),
        **resources,
    )
    if telemetry is None:
        telemetry = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    if not telemetry:
        server.middleware.clear()
    server.middleware.append(calls.check_shape)
    security = RequestStateSecurity.ephemeral(ttl=max(confirm_timeout_s, 1.0) + 60)
    # The SDK's own binding knows OAuth clients only; ours are named by whatever transport they use.
    security.bind_principal = lambda _ctx: current_caller.get().principal
    server.middleware.append(RequestStateBoundary(security, default_audience=name))
    return server


class _Listing:
    """`tools/list`: what may be called, in the order of registration."""

    def __init__(self, executor: ToolExecutor) -> None:
        self._executor = executor
        self._wire: dict[str, tuple[Tool, types.Tool]] = {}

    async def __call__(
        self, _ctx: _Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        if params is not None and params.cursor is not None:
            raise MCPError(types.INVALID_PARAMS, "cursor: the list has one page only")
        kept = self._wire
        self._wire = {}
        for tool in self._executor.visible_tools():
            known = kept.get(tool.name)
            is_same = known is not None and known[0] is tool
            self._wire[tool.name] = known if known is not None and is_same else (tool, wire_tool(tool))
        return types.ListToolsResult(tools=[wire for _, wire in self._wire.values()])


class _Calls:
    """`tools/call`: execute, ask where a person must be asked, execute again."""

    def __init__(self, executor: ToolExecutor, confirm_timeout_s: float) -> None:
        self._executor = executor
        self._confirm_timeout_s = confirm_timeout_s
        self._waiting: Counter[_Asker] = Counter()  # whose → calls that wait for an answer

    async def check_shape(self, ctx: _Context, call_next: CallNext) -> HandlerResult:
        """Middleware: what must be seen before the SDK looks at a message."""
        if ctx.method == "notifications/initialized" and ctx.request_id is None:
            ctx.lifespan_context.join(ctx)
        if ctx.method == "tools/call":
            if ctx.request_id is None:
                return None  # nobody could be answered, so nothing may be done
            is_modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
            if not is_modern and ctx.session.client_capabilities is None:
                # A bare `notifications/initialized` opens the SDK's own gate.
                raise MCPError(types.INVALID_REQUEST, "the connection is not initialized")
            # The SDK would refuse these in words that name nothing, and nobody would record them.
            params = ctx.params or {}
            tool_name, arguments = params.get("name"), params.get("arguments")
            if not isinstance(tool_name, str):
                message = "params: must be an object with the tool's name, a string"
                await self._refuse(ctx, safe_str(tool_name) if "name" in params else "", {}, message)
            if arguments is not None and not isinstance(arguments, dict):
                message = f"arguments must be an object, not {type(arguments).__name__}"
                await self._refuse(ctx, tool_name, {}, message)
            try:
                idempotency_key(ctx.meta)
            except ValueError as error:
                await self._refuse(ctx, tool_name, arguments, str(error))
        return await call_next(ctx)

    async def _refuse(
        self, ctx: _Context, tool_name: str, arguments: Mapping[str, Any] | None, message: str
    ) -> NoReturn:
        result = await self._executor.refuse(tool_name, arguments, _call_context(ctx, None), message)
        raise MCPError(types.INVALID_PARAMS, result.error or message)

    async def __call__(
        self, ctx: _Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        watch = CancelWatch()
        progress = Progress(ctx)
        context = _call_context(ctx, progress)
        context = replace(context, idempotency_key=idempotency_key(ctx.meta))
        call = _Call(self._executor, ctx, params, context, progress, self._confirm_timeout_s, self._waiting)
        try:
            return await call.run()
        except MCPError:
            raise
        except BaseException as error:
            if isinstance(error, anyio.get_cancelled_exc_class()) and watch.is_cancelled():
                raise
            # Here and not in the SDK, which would send the text of the exception to the client.
            logger.error(  # noqa: TRY400 - a traceback costs more than the call, and shows arguments
                "call %s failed inside the server: %s", context.call_id, type(error).__name__
            )
            logger.debug("call %s: traceback", context.call_id, exc_info=error)
            return error_result(
                f"Error (error): internal error; the server's log has it under call id {context.call_id}"
            )


class _Call:
    """One `tools/call` on its way; nothing of it outlives the request."""

    def __init__(
        self,
        executor: ToolExecutor,
        ctx: _Context,
        params: types.CallToolRequestParams,
        context: CallContext,
        progress: Progress,
        confirm_timeout_s: float,
        waiting: Counter[_Asker],
    ) -> None:
        self._waiting = waiting
        self._executor = executor
        self._params = params
        self._arguments = params.arguments or {}
        self._context = context
        self._is_modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
        self._confirm_timeout_s = confirm_timeout_s
        self._ctx = ctx
        self._progress = progress

    @cached_property
    def _channel(self) -> Elicitation:
        # The principal is known, the name is only what the client says: "Claude 1.0, as bob".
        name = self._context.client.replace('"', "'") if self._context.client else ""
        client = f'"{name}"' if name else "an unnamed client"
        return Elicitation(
            self._ctx,
            self._progress,
            timeout_s=self._confirm_timeout_s,
            asked_by=f"{self._context.principal}, through {client}",
        )

    async def run(self) -> types.CallToolResult | types.InputRequiredResult:
        params = self._params
        if self._is_modern and (params.request_state is not None or params.input_responses is not None):
            result = await self._resume(params.request_state, params.input_responses or {})
        else:
            result = await self._execute(None)
            if result.confirmation is not None and not self._is_modern:
                result = await self._ask(result)
        if result.confirmation is not None:
            refusal = self._channel.unreachable(result.confirmation)
            if refusal is None:
                return self._question(result.confirmation)
            result = await self._refuse(result, refusal)
        if result.error_code is ErrorCode.UNKNOWN_TOOL:
            raise MCPError(types.INVALID_PARAMS, result.error or "unknown tool")
        tool = self._executor.registry.get(params.name)
        wire = wire_result(result, None if tool is None else tool.output_schema)
        wire.meta = account(result)
        return wire

    async def _execute(self, confirmation_id: str | None) -> ExecutionResult:
        context = self._context
        if confirmation_id is not None:
            approval = Approval(confirmation_id=confirmation_id, channel=CHANNEL)
            key = context.idempotency_key
            if key is None and self._is_modern:
                # A client that heard no answer sends the same state again: that is the same effect.
                key = f"answer to {confirmation_id}"
            context = replace(context, approval=approval, idempotency_key=key)
        return await self._executor.execute(self._params.name, self._arguments, context)

    async def _ask(self, result: ExecutionResult) -> ExecutionResult:
        """Ask while the call waits. Returns a result without an open question."""
        asker = (self._context.principal, self._context.session_id)
        if self._waiting[asker] >= MAX_OPEN_QUESTIONS:
            why = f"{MAX_OPEN_QUESTIONS} questions wait for an answer already"
            return await self._refuse(
                result, Answer(Reply.NO_ANSWER, f"{why}; nothing was done. Retry later.")
            )
        self._waiting[asker] += 1
        try:
            return await self._ask_until_settled(result)
        finally:
            self._waiting[asker] -= 1
            if not self._waiting[asker]:
                del self._waiting[asker]

    async def _ask_until_settled(self, result: ExecutionResult) -> ExecutionResult:
        for _ in range(MAX_QUESTIONS):
            if result.confirmation is None:
                return result
            try:
                answer = await self._channel.ask(result.confirmation)
            except anyio.get_cancelled_exc_class():
                with anyio.move_on_after(RECORD_S, shield=True):
                    await self._executor.record_refusal(
                        result,
                        code=ErrorCode.CANCELLED,
                        message="the call was withdrawn while a person was asked",
                        channel=CHANNEL,
                    )
                raise
            if not answer.is_yes:
                return await self._refuse(result, answer)
            result = await self._execute(result.confirmation.id)
        if result.confirmation is None:
            return result
        why = f"what this call would do changed {MAX_QUESTIONS} times while a person was asked"
        return await self._refuse(result, Answer(Reply.NO_ANSWER, f"{why}; nothing was done"))

    # --- 2026-07-28: the question is the answer, and the call comes again with the reply ---------

    def _question(self, question: Confirmation) -> types.InputRequiredResult:
        deadline = time.monotonic() + min(self._confirm_timeout_s, question.expires_in_s)
        return types.InputRequiredResult(
            input_requests={ANSWER_KEY: self._channel.request(question)},
            # Sealed by the boundary, under a key of this process: nobody else can make or read it.
            request_state=f"{question.id} {deadline:.3f} {self._context.call_id}",
        )

    async def _resume(self, state: str | None, responses: types.InputResponses) -> ExecutionResult:
        confirmation_id = ""
        if state is None:
            answer = unusable("an answer came without the state of the question it belongs to")
        else:
            confirmation_id, deadline, call_id = state.split(" ")
            # Both rounds are one call, also in the records.
            self._context = replace(self._context, call_id=call_id)
            if time.monotonic() >= float(deadline):
                answer = too_late(self._confirm_timeout_s)
            else:
                answer = judge(responses.get(ANSWER_KEY))
        if answer.is_yes:
            return await self._execute(confirmation_id)
        self._executor.confirmations.discard(confirmation_id)
        context = self._context
        unanswered = ExecutionResult(
            status=ExecutionStatus.PERMISSION_DENIED,
            tool_name=safe_str(self._params.name),
            parameters=self._arguments,
            call_id=context.call_id,
            principal=context.principal,
            session_id=context.session_id,
            client=context.client,
            transport=context.transport,
        )
        return await self._refuse(unanswered, answer)

    async def _refuse(self, result: ExecutionResult, answer: Answer) -> ExecutionResult:
        channel = None if answer.reply is Reply.NOBODY else CHANNEL
        return await self._executor.record_refusal(
            result, code=_CODE[answer.reply], message=answer.message, channel=channel
        )


def _call_context(ctx: _Context, progress: Progress | None) -> CallContext:
    caller = current_caller.get()
    return CallContext(
        principal=caller.principal,
        session_id=caller.session_id,
        client=_client(ctx),
        transport=caller.transport,
        on_progress=None if progress is None else progress.report,
    )


def _client(ctx: _Context) -> str | None:
    params = ctx.session.client_params
    if params is None:
        return None
    info = params.client_info
    return _client_name(info.name[:MAX_CLIENT_CHARS], info.version[:MAX_CLIENT_CHARS])


@lru_cache(maxsize=128)
def _client_name(name: str, version: str) -> str:
    return visible(f"{name} {version}")[:MAX_CLIENT_CHARS]

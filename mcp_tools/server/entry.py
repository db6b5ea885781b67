"""`serve`: expose tools over MCP. Light to import; the SDK is loaded when serving starts."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from mcp_tools.errors import ConfigError
from mcp_tools.executor import ToolExecutor
from mcp_tools.registry import ToolRegistry
from mcp_tools.server.lifecycle import (
    Stop,
    Undertaker,
    end_children,
    follow_parent,
    follow_stdin,
    stop_on_signals,
)
from mcp_tools.types import DEFAULT_CONFIRM_TIMEOUT_S, REACHES_LOOPBACK

if TYPE_CHECKING:
    from mcp_tools.output.store import OutputStore
    from mcp_tools.system import ToolSystem

logger = logging.getLogger(__name__)

Transport = Literal["stdio", "sse", "http"]
TRANSPORTS: Final = ("stdio", "sse", "http")


async def serve(
    tools: ToolSystem | ToolExecutor | ToolRegistry,
    transport: Transport = "stdio",
    *,
    name: str = "mcp-tools",
    version: str | None = None,
    instructions: str | None = None,
    confirm_timeout_s: float = DEFAULT_CONFIRM_TIMEOUT_S,
    telemetry: bool | None = None,
    outputs: OutputStore | None = None,
    **options: Any,
) -> None:
    """Serve tools over MCP until the client goes away or we are told to stop. Needs asyncio.

    Args:
        tools: What to serve. A registry alone gets the default rules: tools that require
            confirmation ask.
        transport: `stdio` serves whoever started the process; `http` serves `/mcp` and, for older
            clients, `/sse`; `sse` serves `/sse` only.
        name, version, instructions: What clients are told about the server.
        confirm_timeout_s: Seconds a person has to answer a question.
        telemetry: Emit the SDK's OpenTelemetry spans. None: if a tracer provider has been set up.
        outputs: Whole results that were too large to send, for clients to read as resources. None: none.
        options: Of the HTTP transports; see `mcp_tools.server.http.serve_http`.
    Raises:
        ValueError: The transport is unknown.
        ConfigError: It cannot be served as asked; nothing was.
        RuntimeError: Another stdio server in this process holds the standard streams.
    SIGTERM, SIGINT and SIGHUP stop it cleanly and then have the effect they would have had without
    it. Cancelling it stops it too.
    """
    with stop_on_signals() as stop:
        await _serve(
            stop,
            tools,
            transport,
            name=name,
            version=version,
            instructions=instructions,
            confirm_timeout_s=confirm_timeout_s,
            telemetry=telemetry,
            outputs=outputs,
            **options,
        )
    if stop.signal is not None:
        signal.raise_signal(stop.signal)


def run(
    tools: ToolSystem | ToolExecutor | ToolRegistry,
    transport: Transport = "stdio",
    *,
    parent: int | None = None,
    on_end: Callable[[], None] | None = None,
    **options: Any,
) -> int:
    """Serve as this process's only purpose, and return its exit code.

    Args:
        tools, transport, options: As for `serve`.
        parent: Id of the process that started us, read early on: loading the SDK takes a while.
        on_end: Called when nothing is served any more, before children are ended: for what ends its own
            in a better way.
    Returns:
        0 when the client went away, the parent died, or SIGTERM or SIGHUP came; 130 after SIGINT.
        The process must end now: what does not within two seconds of being told is ended by force,
        with the children it has.
    Raises:
        What `serve` does, and ConfigError where stdin or stdout is closed; nothing was served.
    """
    if transport == "stdio":
        _check_streams()
    load(transport)
    undertaker = Undertaker()

    async def main() -> int:
        with stop_on_signals(on_stop=undertaker.arm) as stop:
            if transport == "stdio":
                # An HTTP server may be left running on purpose by a shell that ends.
                follow_parent(lambda: stop.now(None), parent)
                follow_stdin(undertaker.arm)
            await _serve(stop, tools, transport, **options)
        undertaker.arm()
        return undertaker.exit_code

    try:
        return asyncio.run(main())
    finally:
        try:
            if on_end is not None:
                on_end()
        except Exception:
            logger.exception("not everything could be closed")
        end_children()
        if transport == "stdio":
            # Whatever is printed from here on must not follow the last message.
            with suppress(OSError):
                os.dup2(2, 1)
            _let_go_of_streams()


def _check_streams() -> None:
    # Before anything is opened that would take the place of a closed one.
    for fd, name in ((0, "stdin"), (1, "stdout")):
        try:
            os.fstat(fd)
        except OSError as error:
            raise ConfigError(f"{name} is closed; a stdio server needs both stdin and stdout") from error


def _let_go_of_streams() -> None:
    """Keep Python from turning a stderr that cannot be written into an exit code of its own."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except Exception:
            setattr(sys, name, None)


def load(transport: Transport) -> None:
    """Import what serving needs, with the garbage collector off: it would only walk new modules."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        _load(transport)
    finally:
        if was_enabled:
            gc.enable()


def _load(transport: Transport) -> Callable[..., Any]:
    if transport not in TRANSPORTS:
        raise ValueError(f"unknown transport {transport!r}; use one of {', '.join(TRANSPORTS)}")

    import mcp_tools.server.handler  # noqa: F401 - needed in a moment, and loaded faster here

    if transport == "stdio":
        from mcp_tools.server.stdio import serve_stdio

        return serve_stdio
    from mcp_tools.server.http import serve_http

    return serve_http


async def _serve(
    stop: Stop,
    tools: ToolSystem | ToolExecutor | ToolRegistry,
    transport: Transport,
    *,
    name: str = "mcp-tools",
    version: str | None = None,
    instructions: str | None = None,
    confirm_timeout_s: float = DEFAULT_CONFIRM_TIMEOUT_S,
    telemetry: bool | None = None,
    outputs: OutputStore | None = None,
    **options: Any,
) -> None:
    transport_function = _load(transport)
    from mcp_tools.server.handler import build_server

    executor = executor_of(tools)
    if transport != "stdio" and options.get("tokens") is None:
        _check_no_tool_can_call_us(executor)
    # Or a person who was given longer would answer a question that has expired.
    executor.confirmations.ttl_s = max(executor.confirmations.ttl_s, confirm_timeout_s)
    server = build_server(
        executor,
        name=name,
        version=version,
        instructions=instructions,
        confirm_timeout_s=confirm_timeout_s,
        telemetry=telemetry,
        outputs=outputs,
    )
    if transport == "sse":
        options["with_streamable"] = False
    await transport_function(server, shutdown=stop.event, **options)


def _check_no_tool_can_call_us(executor: ToolExecutor) -> None:
    for tool in executor.visible_tools():
        if REACHES_LOOPBACK in tool.tags:
            raise ConfigError(
                f"{tool.name} lets the code that it runs reach this machine's own ports, and whoever reaches "
                "a listener without tokens can call every tool. Give callers tokens with --token-file or "
                "MCP_TOOLS_TOKEN, or turn off python_network (in a program: allow_network)"
            )


def executor_of(tools: ToolSystem | ToolExecutor | ToolRegistry) -> ToolExecutor:
    """Return what runs these tools."""
    if isinstance(tools, ToolExecutor):
        return tools
    if isinstance(tools, ToolRegistry):
        return ToolExecutor(tools)
    return tools.executor

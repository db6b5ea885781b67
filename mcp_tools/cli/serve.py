"""`mcp-tools serve`: the tools over MCP, until the client goes away or we are told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator

import anyio

from mcp_tools.app import App
from mcp_tools.cli import exits
from mcp_tools.cli.prepare import prepared, read_settings

NO_ROOTS = (
    "no folder is allowed, so file tools refuse everything. Allow one with --root DIR (repeatable), "
    "MCP_TOOLS_ROOTS, or roots = [...] in your config file."
)


def serve(arguments: argparse.Namespace) -> int:
    """Serve until the end; return the exit code."""
    settings = read_settings(arguments)
    # Loading the SDK makes a million objects and no garbage; collecting in between takes 5 % of the start.
    gc.disable()
    with contextlib.ExitStack() as stack:
        with _stdout_kept_clean():
            app = stack.enter_context(prepared(settings))
        if not settings.roots:
            print(f"mcp-tools: {NO_ROOTS}", file=sys.stderr)
        if settings.transport == "stdio":
            _serve_stdio(app)
        else:
            _serve_http(app)
    return exits.OK


def _serve_stdio(app: App) -> None:
    from mcp_tools.server.handler import build_server
    from mcp_tools.server.stdio import serve_stdio

    if sys.stdin is not None and sys.stdin.isatty():
        print(
            "mcp-tools: this speaks MCP on stdin and stdout, for a client to start; Ctrl-C ends it. "
            "`mcp-tools call` is for people.",
            file=sys.stderr,
        )
    server = build_server(app.executor, confirm_timeout_s=app.settings.confirm_timeout_s)
    _imports_are_done()
    anyio.run(serve_stdio, server)


def _serve_http(app: App) -> None:
    from mcp_tools.server.handler import build_server
    from mcp_tools.server.http import load_tokens, serve_http

    settings = app.settings
    given = {"MCP_TOOLS_TOKEN": settings.token} if settings.token is not None else {}
    tokens = load_tokens(settings.token_file, given)
    server = build_server(app.executor, confirm_timeout_s=settings.confirm_timeout_s)
    _imports_are_done()

    async def until_told() -> None:
        shutdown = anyio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, shutdown.set)
        await serve_http(
            server,
            host=settings.host,
            port=settings.port,
            tokens=tokens,
            allowed_hosts=settings.allowed_hosts,
            allowed_origins=settings.allowed_origins,
            with_streamable=settings.transport == "http",
            shutdown=shutdown,
        )

    anyio.run(until_told)


def _imports_are_done() -> None:
    gc.freeze()  # what is loaded now stays; looking through it again at each collection is a waste
    gc.enable()


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Send to stderr what imported tools print: stdout belongs to the protocol from its first byte."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
        sys.stdout.flush()
    finally:
        os.dup2(kept, 1)
        os.close(kept)

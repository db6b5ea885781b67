"""`mcp-tools serve`: the tools over MCP, until the client goes away or we are told to stop."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any, Final

from mcp_tools.app import App
from mcp_tools.cli.prepare import prepared, read_settings
from mcp_tools.config import Settings
from mcp_tools.config.process import skip_pydantic_plugins
from mcp_tools.errors import ConfigError
from mcp_tools.server.entry import load, run

NO_ROOTS: Final = (
    "no folder is allowed, so file tools refuse everything. Allow one with --root DIR (repeatable), "
    "MCP_TOOLS_ROOTS, or roots = [...] in your config file."
)
AT_A_TERMINAL: Final = (
    "this speaks MCP on stdin and stdout, for a client to start; Ctrl-C ends it. "
    "`mcp-tools call` is for people."
)


def serve(arguments: argparse.Namespace) -> int:
    """Serve until the end; return the exit code."""
    parent = os.getppid()
    settings = read_settings(arguments)
    for name in arguments.closed_streams:
        if settings.transport == "stdio" and name != "stderr":
            raise ConfigError(f"{name} is closed; MCP over stdio needs both stdin and stdout")
    skip_pydantic_plugins()
    # What is loaded from here on stays: collecting in between would take a twentieth of the start.
    gc.disable()
    with contextlib.ExitStack() as stack:
        with _stdout_kept_clean():
            app = stack.enter_context(prepared(settings))
        if not settings.roots:
            print(f"mcp-tools: {NO_ROOTS}", file=sys.stderr)
        if settings.transport == "stdio" and sys.stdin is not None and sys.stdin.isatty():
            print(f"mcp-tools: {AT_A_TERMINAL}", file=sys.stderr)
        load(settings.transport)
        options = _http_options(settings) if settings.transport != "stdio" else {}
        if settings.transport != "stdio" and settings.metrics_enabled:
            options["pages"] = app.production.pages()
        if settings.metrics_port is not None:
            stack.enter_context(_metrics_listener(app, settings.metrics_port))
        gc.freeze()
        gc.enable()
        return run(
            app.executor,
            settings.transport,
            parent=parent,
            on_end=app.close,
            confirm_timeout_s=settings.confirm_timeout_s,
            outputs=app.production.outputs,
            **options,
        )


def _metrics_listener(app: App, port: int) -> contextlib.AbstractContextManager[object]:
    from mcp_tools.observe.exposition import serve_metrics

    assert app.production.metrics is not None
    server = serve_metrics(app.production.metrics.registry, port=port)
    print(f"mcp-tools: metrics are at {server.url}", file=sys.stderr)
    return server


def _http_options(settings: Settings) -> dict[str, Any]:
    from mcp_tools.server.http import load_tokens

    given = {"MCP_TOOLS_TOKEN": settings.token} if settings.token is not None else {}
    return {
        "host": settings.host,
        "port": settings.port,
        "tokens": load_tokens(settings.token_file, given),
        "allowed_hosts": settings.allowed_hosts,
        "allowed_origins": settings.allowed_origins,
    }


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

"""An MCP server with traces and metrics, for tests: over stdio."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from mcp_tools import CallContext, ToolError, ToolSystem
from mcp_tools.observe.exposition import serve_metrics
from mcp_tools.observe.metrics import PrometheusMetrics
from mcp_tools.observe.otlp import setup_tracing
from mcp_tools.outages import counted
from mcp_tools.server import serve
from mcp_tools.types import Usage

logging.basicConfig(level=logging.WARNING)
telemetry = setup_tracing(os.environ, service_name="mcp-tools", service_version="1.2.3")
system: ToolSystem
metrics = PrometheusMetrics(
    tool_exists=lambda name: system.registry.get(name) is not None,
    abandoned_threads=lambda: 0,
    unavailable=counted,
    dropped_spans=(lambda: 0) if telemetry is None else telemetry.dropped_spans,
)
observers = [metrics] if telemetry is None else [metrics, telemetry.observer]
system = ToolSystem(observers=observers)


@system.register
async def echo(text: str) -> str:
    """Return the text."""
    return text


@system.register
async def spends(context: CallContext) -> str:
    """Report what it used."""
    context.meter.add(Usage(cost_usd=0.5, sandbox_cpu_s=1.5, input_tokens=10, output_tokens=20))
    return "spent"


@system.register
async def breaks() -> str:
    """Fail."""
    raise ToolError("try something else")


@system.register(requires_confirmation=True)
async def asks(path: str) -> str:
    """Ask a person first."""
    return path


@system.register
async def calls_another(context: CallContext) -> str:
    """Call echo."""
    return str((await system.execute("echo", {"text": "inner"}, context)).result)


if __name__ == "__main__":
    try:
        with serve_metrics(metrics.registry) as page:
            Path(os.environ["MCP_TOOLS_TEST_URLS"]).write_text(page.url)
            asyncio.run(serve(system, "stdio"))
    finally:
        if telemetry is not None:
            telemetry.close()
        print("ended", file=sys.stderr)

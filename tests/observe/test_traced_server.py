"""A real server over stdio with a real collector: its spans, its metrics, and collectors that are no help."""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.observe.collector import Collector

SERVER = str(Path(__file__).with_name("traced_server.py"))
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@asynccontextmanager
async def client_of(folder: Path, **environ: str) -> AsyncIterator[Client]:
    """Connect the SDK's client to the server, started with these variables."""
    env = {
        "PATH": os.environ["PATH"],
        "MCP_TOOLS_TEST_URLS": str(folder / "urls"),
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
        **environ,
    }
    parameters = StdioServerParameters(command=sys.executable, args=[SERVER], env=env)
    with anyio.fail_after(30), (folder / "stderr").open("w") as stderr:
        async with Client(stdio_client(parameters, errlog=stderr)) as client:
            yield client


async def test_the_sdks_span_is_enriched_and_not_doubled(tmp_path: Path) -> None:
    """And continues the trace of the client, which came in `_meta`."""
    with Collector() as collector:
        async with client_of(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as client:
            meta = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            await client.call_tool("spends", {}, meta=meta)  # type: ignore[arg-type]
            span = await anyio.to_thread.run_sync(collector.until_span, "tools/call spends")
        of_this_trace = [each["name"] for each in collector.spans if each["trace_id"] == TRACE]
    assert of_this_trace == ["tools/call spends"]
    assert span["parent_id"] == PARENT
    attributes = span["attributes"]
    assert {name: attributes[name] for name in sorted(attributes) if "id" not in name} == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "spends",
        "gen_ai.tool.type": "function",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 20,
        "mcp.method.name": "tools/call",
        "mcp.protocol.version": attributes["mcp.protocol.version"],
        "mcp_tools.cost_usd": 0.5,
        "mcp_tools.decision": "allow",
        "mcp_tools.sandbox.cpu_s": 1.5,
        "mcp_tools.status": "success",
        "network.transport": "pipe",
    }
    assert len(attributes["gen_ai.tool.call.id"]) == 16
    assert collector.resources[0]["service.name"] == "mcp-tools"
    assert collector.resources[0]["service.version"] == "1.2.3"


async def test_errors_and_calls_within_calls(tmp_path: Path) -> None:
    with Collector() as collector:
        async with client_of(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as client:
            assert (await client.call_tool("breaks", {})).is_error
            assert not (await client.call_tool("calls_another", {})).is_error
            outer = await anyio.to_thread.run_sync(collector.until_span, "tools/call calls_another")
            broken = await anyio.to_thread.run_sync(collector.until_span, "tools/call breaks")
        inner = collector.until_span("execute_tool echo")
    assert broken["attributes"]["error.type"] == "tool_error"
    assert broken["attributes"]["mcp_tools.error_code"] == "tool_error"
    assert "execute_tool breaks" not in [span["name"] for span in collector.spans]
    assert outer["attributes"]["gen_ai.tool.name"] == "calls_another"
    assert (inner["trace_id"], inner["parent_id"]) == (outer["trace_id"], outer["span_id"])


async def test_durations_arrive_at_the_collector_also_when_the_server_ends_at_once(tmp_path: Path) -> None:
    with Collector() as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_METRIC_EXPORT_INTERVAL": "600000"}
        async with client_of(tmp_path, **environ) as client:
            await client.call_tool("echo", {"text": "a"})
    (point,) = collector.metrics["mcp.server.operation.duration"]
    assert (point["count"], point["gen_ai.tool.name"], point["network.transport"]) == (1, "echo", "pipe")
    assert collector.metrics["gen_ai.execute_tool.duration"][0]["count"] == 1
    assert "tools/call echo" in [span["name"] for span in collector.spans]


async def test_names_and_values_that_a_client_makes_up_are_cut(tmp_path: Path) -> None:
    with Collector() as collector:
        async with client_of(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as client:
            with pytest.raises(Exception, match="there is no tool"):
                await client.call_tool("x" * 1_000_000, {})
            span = await anyio.to_thread.run_sync(collector.until_span, f"tools/call {'x' * 189}")
    assert max(len(str(value)) for value in span["attributes"].values()) <= 8_192
    assert span["attributes"]["error.type"] == "-32602"


async def test_without_a_setting_there_are_no_spans_and_the_sdk_is_not_loaded(tmp_path: Path) -> None:
    async with client_of(tmp_path) as client:
        assert not (await client.call_tool("echo", {"text": "a"})).is_error
        with urllib.request.urlopen((tmp_path / "urls").read_text(), timeout=5) as page:  # noqa: ASYNC210
            assert b'mcp_tools_calls_total{status="success",tool="echo"} 1.0' in page.read()


class _Mute:
    """Accepts connections and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> _Mute:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


async def _median_s(client: Client, calls: int) -> float:
    took = []
    for number in range(calls):
        begun = time.perf_counter()
        assert not (await client.call_tool("echo", {"text": str(number)})).is_error
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


async def test_a_collector_that_never_answers_slows_no_call_and_no_end(tmp_path: Path) -> None:
    calls = 1_000 if os.environ.get("MCP_TOOLS_LONG") else 300
    with Collector() as collector:
        async with client_of(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as client:
            answered_s = await _median_s(client, calls)
    with _Mute() as mute:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": mute.url, "OTEL_BSP_MAX_QUEUE_SIZE": "50"}
        async with client_of(tmp_path, **environ) as client:
            mute_s = await _median_s(client, calls)
            url = (tmp_path / "urls").read_text()
            with urllib.request.urlopen(url, timeout=5) as page:  # noqa: ASYNC210
                lines = page.read().decode().splitlines()
            begun = time.monotonic()
        ended_s = time.monotonic() - begun
    assert mute_s < answered_s * 3 + 0.005
    said = (tmp_path / "stderr").read_text()
    assert said.endswith("ended\n")  # by itself, and not by the client's force
    assert ended_s < 5
    (dropped,) = [line for line in lines if line.startswith("mcp_tools_dropped_spans_total")]
    assert float(dropped.split()[1]) >= calls - 50
    assert "spans of traces were dropped" in said
    assert said.count("spans of traces were dropped") <= 3
    assert "Traceback" not in said

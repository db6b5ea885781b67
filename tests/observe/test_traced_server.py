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
from typing import Any

import anyio
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError

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


class Session:
    """What a collector was told of one session, whose server ended at once after the last call."""

    def __init__(self, folder: Path) -> None:
        with Collector() as collector:
            anyio.run(self._talk, folder, collector.url)
        self.spans, self.metrics, self.resources = collector.spans, collector.metrics, collector.resources

    async def _talk(self, folder: Path, url: str) -> None:
        # Neither queue nor metrics are sent by their timers.
        environ = {"OTEL_METRIC_EXPORT_INTERVAL": "600000", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        async with client_of(folder, OTEL_EXPORTER_OTLP_ENDPOINT=url, **environ) as client:
            meta = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            await client.call_tool("spends", {}, meta=meta)  # type: ignore[arg-type]
            assert (await client.call_tool("breaks", {})).is_error
            assert not (await client.call_tool("calls_another", {})).is_error
            with pytest.raises(MCPError, match="there is no tool"):
                await client.call_tool("x" * 1_000_000, {})

    def span(self, name: str) -> dict[str, Any]:
        (found,) = [span for span in self.spans if span["name"] == name]
        return found


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(tmp_path_factory.mktemp("traced"))


def test_the_sdks_span_is_enriched_and_not_doubled(session: Session) -> None:
    """And continues the trace of the client, which came in `_meta`."""
    of_this_trace = [each["name"] for each in session.spans if each["trace_id"] == TRACE]
    assert of_this_trace == ["tools/call spends"]
    span = session.span("tools/call spends")
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
    resource = session.resources[0]
    assert (resource["service.name"], resource["service.version"]) == ("mcp-tools", "1.2.3")


def test_errors_and_calls_within_calls_have_their_places(session: Session) -> None:
    broken = session.span("tools/call breaks")["attributes"]
    assert (broken["error.type"], broken["mcp_tools.error_code"]) == ("tool_error", "tool_error")
    outer, inner = session.span("tools/call calls_another"), session.span("execute_tool echo")
    assert outer["attributes"]["gen_ai.tool.name"] == "calls_another"
    assert (inner["trace_id"], inner["parent_id"]) == (outer["trace_id"], outer["span_id"])
    assert [span["name"] for span in session.spans if span["scope"] == "mcp_tools"] == ["execute_tool echo"]


def test_durations_arrive_also_when_the_server_ends_at_once(session: Session) -> None:
    points = session.metrics["mcp.server.operation.duration"]
    assert {(point["gen_ai.tool.name"], point.get("error.type"), point["count"]) for point in points} == {
        ("spends", None, 1),
        ("breaks", "tool_error", 1),
        ("calls_another", None, 1),
        ("(unknown)", "-32602", 1),
    }
    assert {point["network.transport"] for point in points} == {"pipe"}
    assert len(session.metrics["gen_ai.execute_tool.duration"]) == 4


def test_names_and_values_that_a_client_makes_up_are_cut(session: Session) -> None:
    span = session.span(f"tools/call {'x' * 189}")
    assert max(len(str(value)) for value in span["attributes"].values()) <= 8_192
    assert span["attributes"]["error.type"] == "-32602"
    assert len(session.span("tools/call spends")["name"]) < 200


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
    calls = 1_000 if os.environ.get("MCP_TOOLS_LONG") else 100
    with Collector() as collector:
        async with client_of(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as client:
            answered_s = await _median_s(client, calls)
    with _Mute() as mute:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": mute.url, "OTEL_BSP_MAX_QUEUE_SIZE": "20"}
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
    assert float(dropped.split()[1]) >= calls - 20
    assert "spans of traces were dropped" in said
    assert said.count("spans of traces were dropped") <= 3
    assert "Traceback" not in said

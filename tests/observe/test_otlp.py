"""What the environment switches on; in processes of their own, since a provider is set once in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.observe.collector import Collector

PROGRAM = """
import json, logging, os, sys, threading
logging.basicConfig(level=logging.WARNING)
from mcp_tools.observe.otlp import setup_tracing
before = os.environ.pop("SET_UP_BEFORE", None)
if before:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    trace.set_tracer_provider(TracerProvider())
if os.environ.pop("NOT_INSTALLED", None):
    sys.modules["opentelemetry.exporter"] = None
telemetry = setup_tracing(os.environ, service_name="ours", service_version="1")
said = {"is_set_up": telemetry is not None, "sdk": "opentelemetry.sdk.trace" in sys.modules}
if telemetry is not None:
    said["notices"] = list(telemetry.notices)
    from opentelemetry import trace
    said["tracer"] = type(trace.get_tracer_provider()).__name__
    with trace.get_tracer("x").start_as_current_span("one"):
        pass
    telemetry.close()
    telemetry.close()
    said["dropped"] = telemetry.dropped_spans()
said["threads"] = [thread.name for thread in threading.enumerate() if "Otel" in thread.name]
print(json.dumps(said))
"""


def set_up(**environ: str) -> tuple[dict[str, Any], str]:
    """Run the program above, and return what it says and what it logged."""
    env = {"PATH": os.environ["PATH"], **environ}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, env=env, check=True
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
        },
    ],
    ids=["nothing", "only a name", "disabled", "none"],
)
def test_nothing_is_loaded_where_nothing_is_asked_for(environ: dict[str, str]) -> None:
    assert set_up(**environ) == ({"is_set_up": False, "sdk": False, "threads": []}, "")


@pytest.mark.parametrize("endpoint", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_an_endpoint_switches_it_on(endpoint: str) -> None:
    with Collector() as collector:
        url = collector.url if endpoint.endswith("OTLP_ENDPOINT") else f"{collector.url}/v1/traces"
        said, stderr = set_up(**{endpoint: url, "OTEL_SERVICE_NAME": "theirs"})
    assert (said["tracer"], said["dropped"], said["notices"], stderr) == ("TracerProvider", 0, [], "")
    assert [span["name"] for span in collector.spans] == ["one"]
    assert collector.resources[0]["service.name"] == "theirs"
    assert said["threads"] == []


def test_a_collector_that_is_not_there_is_said_in_few_lines() -> None:
    said, stderr = set_up(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_METRICS_EXPORTER="none")
    assert said["dropped"] == 1
    assert "spans of traces were dropped: 1, 1 in all" in stderr
    assert "Traceback" not in stderr
    assert stderr.count("\n") < 8


def test_a_collector_that_refuses_is_said() -> None:
    with Collector(status=400) as collector:
        said, stderr = set_up(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRICS_EXPORTER="none")
    assert said["dropped"] == 1
    assert "spans of traces were dropped: 1, 1 in all" in stderr


@pytest.mark.parametrize(
    ("environ", "notice"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER=console: only otlp and none"),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, "OTEL_METRICS_EXPORTER=prometheus: only otlp"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTLP over grpc is not known here, only http/protobuf"),
        ({"NOT_INSTALLED": "1"}, "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"),
    ],
    ids=["console", "prometheus", "grpc", "not installed"],
)
def test_what_cannot_be_done_is_said_and_stops_nothing(environ: dict[str, str], notice: str) -> None:
    said, _ = set_up(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **environ)
    assert notice in said["notices"][0]
    assert said["tracer"] == "ProxyTracerProvider"


def test_a_provider_of_the_programs_own_is_left_alone() -> None:
    said, _ = set_up(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", SET_UP_BEFORE="1")
    assert (said["tracer"], said["notices"], said["dropped"]) == ("TracerProvider", [], 0)
    assert said["threads"] == []

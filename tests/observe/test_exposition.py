"""Scrapes over real HTTP: beside the MCP endpoints, and from the small listener beside stdio."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import pytest

from mcp_tools.errors import ConfigError
from mcp_tools.observe import exposition
from mcp_tools.observe.exposition import MAX_CONNECTIONS, MetricsServer, render, serve_metrics
from mcp_tools.observe.metrics import PrometheusMetrics
from mcp_tools.types import ExecutionResult, ExecutionStatus, Usage
from tests.observe.conftest import MakeSystem

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def metrics() -> PrometheusMetrics:
    made = PrometheusMetrics(tool_exists=lambda _name: True)
    made.call_finished(ExecutionResult(status=ExecutionStatus.SUCCESS, tool_name="echo", call_id="1"))
    return made


@pytest.fixture
def server(metrics: PrometheusMetrics) -> Iterator[MetricsServer]:
    with serve_metrics(metrics.registry) as serving:
        yield serving


def get(url: str, **headers: str) -> tuple[http.client.HTTPMessage, bytes]:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): headers[name] for name in headers})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.headers, answer.read()


def exchange(server: MetricsServer, request: bytes) -> bytes:
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
    return answer


def test_a_scrape_gets_the_metrics_in_the_format_it_asks_for(server: MetricsServer) -> None:
    headers, body = get(server.url)
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'mcp_tools_calls_total{status="success",tool="echo"} 1.0' in body
    headers, body = get(server.url, accept=OPENMETRICS)
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


def test_a_scrape_is_packed_where_that_is_understood(server: MetricsServer) -> None:
    headers, body = get(server.url, accept_encoding="gzip")
    assert headers["content-encoding"] == "gzip"
    assert b"mcp_tools_calls_total" in gzip.decompress(body)
    assert len(body) < len(gzip.decompress(body)) / 2


def test_single_metrics_can_be_picked(server: MetricsServer) -> None:
    _, body = get(f"{server.url}?name[]=mcp_tools_calls_total")
    assert [line for line in body.splitlines() if not line.startswith(b"#")] == [
        b'mcp_tools_calls_total{status="success",tool="echo"} 1.0'
    ]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"421"),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n", b"421"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost:9\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.0\r\n\r\n", b"200"),
    ],
    ids=["path", "method", "host", "host with our name in it", "nonsense", "size", "good", "old"],
)
def test_what_is_not_a_scrape_is_refused(server: MetricsServer, request_bytes: bytes, status: bytes) -> None:
    try:
        answer = exchange(server, request_bytes)
    except ConnectionError:
        # Cut while we still sent: the answer may be lost on the way, and nothing was served.
        assert status == b"431"
        return
    assert answer.startswith(b"HTTP/1.1 " + status)


def test_a_stalled_connection_is_cut(metrics: PrometheusMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "CONNECTION_S", 0.3)
    with serve_metrics(metrics.registry) as server:
        with socket.create_connection((server.host, server.port), timeout=5) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n")
            begun = time.monotonic()
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
            assert time.monotonic() - begun < 3
        assert get(server.url)[1]


def test_many_stalled_scrapers_are_bounded_and_others_come_through_again(server: MetricsServer) -> None:
    stalled = [
        socket.create_connection((server.host, server.port), timeout=5) for _ in range(MAX_CONNECTIONS)
    ]
    try:
        stalled[-1].sendall(b"GET")
        with pytest.raises((OSError, http.client.HTTPException)):
            for _ in range(50):
                get(server.url)
    finally:
        for connection in stalled:
            connection.close()
    deadline = time.monotonic() + 5
    while True:
        try:
            assert get(server.url)[1]
            return
        except OSError:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_others_reach_needs_a_flag(metrics: PrometheusMetrics, host: str) -> None:
    with pytest.raises(ConfigError, match="anybody on the network"):
        serve_metrics(metrics.registry, host)
    with serve_metrics(metrics.registry, "0.0.0.0", allow_remote=True) as server:
        assert get(f"http://127.0.0.1:{server.port}/metrics", host="scraped.example")[1]


def test_a_taken_port_is_an_error_at_once(metrics: PrometheusMetrics, server: MetricsServer) -> None:
    with pytest.raises(ConfigError, match="in use"):
        serve_metrics(metrics.registry, port=server.port)
    with pytest.raises(ConfigError, match="no such address"):
        serve_metrics(metrics.registry, "no.such.host.invalid")


def test_closing_ends_the_thread_and_the_listener(metrics: PrometheusMetrics) -> None:
    before = threading.active_count()
    server = serve_metrics(metrics.registry)
    waiting = socket.create_connection((server.host, server.port), timeout=5)
    get(server.url)
    server.close()
    server.close()
    assert threading.active_count() == before
    with pytest.raises(OSError):
        socket.create_connection((server.host, server.port), timeout=1)
    waiting.close()


def test_a_process_ends_without_closing_it() -> None:
    code = (
        "from mcp_tools.observe.metrics import PrometheusMetrics\n"
        "from mcp_tools.observe.exposition import serve_metrics\n"
        "import socket\n"
        "server = serve_metrics(PrometheusMetrics().registry)\n"
        "held = socket.create_connection((server.host, server.port))\n"
        "print(server.port)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_slow_scraper_does_not_slow_calls(make_system: MakeSystem) -> None:
    """It reads nothing of a large page, twenty times over, while calls go on."""
    metrics = PrometheusMetrics(tool_exists=lambda _name: True)
    for number in range(100):
        name = f"tool-{number}"
        made = ExecutionResult(status=ExecutionStatus.SUCCESS, tool_name=name, usage=Usage(cost_usd=1.0))
        metrics.call_finished(made)
    system = make_system(observers=[metrics])

    async def calls() -> float:
        took = []
        for _ in range(200):
            begun = time.perf_counter()
            assert (await system.execute("echo", {"text": "a"})).is_success
            took.append(time.perf_counter() - begun)
            await anyio.lowlevel.checkpoint()
        return statistics.median(took)

    alone_s = await calls()
    with serve_metrics(metrics.registry) as server:
        scrapers = []
        for _ in range(MAX_CONNECTIONS):
            scraper = socket.socket()
            scraper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            scraper.connect((server.host, server.port))
            scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            scrapers.append(scraper)
        beside_s = await calls()
        for scraper in scrapers:
            scraper.close()
    assert beside_s < alone_s * 5 + 0.005


async def test_the_asgi_app_answers_as_the_listener_does(metrics: PrometheusMetrics) -> None:
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "headers": [(b"accept", OPENMETRICS.encode()), (b"accept-encoding", b"gzip")],
        "query_string": b"name[]=mcp_tools_calls_total",
    }
    with anyio.fail_after(5):
        await metrics.asgi_app()(scope, None, send)
    start, body = sent
    assert start["status"] == 200
    headers = dict(start["headers"])  # type: ignore[call-overload]
    assert headers[b"content-length"] == str(len(body["body"])).encode()  # type: ignore[arg-type]
    text = gzip.decompress(body["body"])  # type: ignore[arg-type]
    assert text.endswith(b'mcp_tools_calls_total{status="success",tool="echo"} 1.0\n# EOF\n')


def test_a_page_of_every_series_there_can_be_is_bounded() -> None:
    metrics = PrometheusMetrics(tool_exists=lambda _name: True)
    for number in range(1_000):
        for status in ExecutionStatus:
            made = ExecutionResult(status=status, tool_name=f"{number}{'x' * 90}", usage=Usage(cost_usd=1.0))
            metrics.call_finished(made)
    assert len(render(metrics.registry).body) < 2 * 1024**2

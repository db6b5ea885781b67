"""The dashboard names metrics and labels that a server really shows, and every metric has a place on it."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.shared.exceptions import MCPError
from prometheus_client.parser import text_string_to_metric_families

from mcp_tools.observe.exposition import render
from mcp_tools.observe.metrics import PrometheusMetrics
from mcp_tools.types import ErrorCode, ExecutionResult, ExecutionStatus
from tests.observe.test_traced_server import client_of

DASHBOARD = Path(__file__).resolve().parents[2] / "dashboards" / "grafana.json"
FUNCTIONS = {"sum", "rate", "increase", "count", "histogram_quantile", "by"}
FROM_PROMETHEUS = {"job", "instance"}
LEFT_OUT = {"process_virtual_memory_bytes", "process_start_time_seconds", "process_max_fds"}
_SELECTOR = re.compile(r"\b([a-z_]+)\{([^}]*)\}")
_BY = re.compile(r"\bby \(([^)]*)\)")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def expressions(of: dict[str, Any]) -> Iterator[str]:
    for panel in of["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))


def shown_by(text: str) -> dict[str, set[str]]:
    """Return the names of samples in a scrape, each with the labels it has."""
    shown: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            shown.setdefault(sample.name, set()).update(sample.labels)
    return shown


def unknown_in(expression: str, shown: dict[str, set[str]]) -> list[str]:
    """Return what an expression names and a scrape does not show: metrics, and labels of metrics."""
    wrong, labels = [], set(FROM_PROMETHEUS)
    for name, selector in _SELECTOR.findall(expression):
        if name not in shown:
            wrong.append(name)
        known = shown.get(name, set()) | FROM_PROMETHEUS
        labels |= known
        matched = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', selector)
        wrong += [f"{name}.{label}" for label in matched if label not in known]
    for group in _BY.findall(expression):
        wrong += [f"by {label}" for label in group.replace(" ", "").split(",") if label not in labels]
    rest = _BY.sub("", _SELECTOR.sub("", expression))
    wrong += [word for word in re.findall(r"(?<![$\w\[])[a-z_]{2,}", rest) if word not in FUNCTIONS]
    return wrong


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a real server over stdio shows, after a call of each kind."""

    async def talk() -> str:
        folder = tmp_path_factory.mktemp("scraped")
        async with client_of(folder) as client:
            for name in ("spends", "breaks"):
                await client.call_tool(name, {})
            await client.call_tool("echo", {"text": "a"})
            await client.call_tool("asks", {"path": "a"})
            with pytest.raises(MCPError):
                await client.call_tool("made up", {})
            with urllib.request.urlopen((folder / "urls").read_text(), timeout=5) as page:  # noqa: ASYNC210
                text: str = page.read().decode()
        return text

    return anyio.run(talk)


def test_a_real_server_shows_its_calls(scraped: str) -> None:
    assert 'mcp_tools_calls_total{status="success",tool="spends"} 1.0' in scraped
    assert 'mcp_tools_calls_total{status="error",tool="(unknown)"} 1.0' in scraped
    assert "made up" not in scraped


def test_every_expression_names_what_a_server_shows(scraped: str) -> None:
    # This one has nothing to count on a server without limits.
    shown = shown_by(scraped) | shown_by(_limited())
    for expression in expressions(dashboard()):
        assert unknown_in(expression, shown) == [], expression


def test_every_metric_has_a_place(scraped: str) -> None:
    used = {name for expression in expressions(dashboard()) for name, _ in _SELECTOR.findall(expression)}
    missing = {name for name in shown_by(scraped) if name not in used and name not in LEFT_OUT}
    assert missing == set()


@pytest.mark.parametrize(
    "expression",
    [
        'sum(rate(mcp_tools_call_total{tool=~"$tool"}[5m]))',
        'sum(rate(mcp_tools_calls_total{principal="x"}[5m]))',
        "sum by (principal) (rate(mcp_tools_calls_total{}[5m]))",
        "sum(mcp_tools_inflight)",
    ],
)
def test_a_wrong_expression_would_show(expression: str) -> None:
    metrics = PrometheusMetrics(tool_exists=lambda _name: True)
    metrics.call_finished(ExecutionResult(status=ExecutionStatus.SUCCESS, tool_name="echo"))
    assert unknown_in(expression, shown_by(render(metrics.registry).body.decode()))


def test_it_can_be_imported_as_it_is() -> None:
    found = dashboard()
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {variable["name"] for variable in found["templating"]["list"]} == {
        "datasource",
        "job",
        "instance",
        "tool",
    }
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def _limited() -> str:
    metrics = PrometheusMetrics(tool_exists=lambda _name: True)
    metrics.call_finished(
        ExecutionResult(
            status=ExecutionStatus.RATE_LIMITED, tool_name="echo", error_code=ErrorCode.RATE_LIMITED
        )
    )
    return render(metrics.registry).body.decode()

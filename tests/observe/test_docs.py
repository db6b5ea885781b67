"""docs/observability.md names every metric and attribute there is, and its snippets run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_tools.observe.exposition import render
from mcp_tools.observe.metrics import PrometheusMetrics
from mcp_tools.outages import counted

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "observability.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_every_metric_is_described_with_its_labels() -> None:
    metrics = PrometheusMetrics(abandoned_threads=lambda: 0, dropped_spans=lambda: 0, unavailable=counted)
    shown = re.findall(r"^# TYPE (mcp_tools_\w+)", render(metrics.registry).body.decode(), re.MULTILINE)
    rows = dict(re.findall(r"^\| `(mcp_tools_\w+)` \| (.*?) \|", TEXT, re.MULTILINE))
    assert set(rows) == set(shown)
    assert rows["mcp_tools_approvals_total"] == "`tool`, `decision`, `channel`"


def test_every_attribute_is_described() -> None:
    source = (ROOT / "mcp_tools" / "observe" / "tracing.py").read_text()
    set_by_us = set(re.findall(r'"((?:gen_ai|mcp|mcp_tools|network|error)\.[a-z_.]+)"', source))
    assert {name for name in set_by_us if f"`{name}`" not in TEXT} == {"mcp.method.name"}


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")

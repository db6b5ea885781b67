"""What calls used is kept where no limit is configured, and nothing depends on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from mcp_tools.config import Settings
from mcp_tools.errors import ConfigError
from mcp_tools.limits.memory import MemoryStore
from mcp_tools.observe.exposition import render
from mcp_tools.production import IN_MEMORY, Production, assemble
from mcp_tools.registry import ToolRegistry
from tests.limits.calls import run

ROOT = Path(__file__).resolve().parents[2]


def production(folder: Path, **settings: object) -> Production:
    chosen = Settings(audit_enabled=False, **settings)  # type: ignore[arg-type]
    return assemble(chosen, ToolRegistry(), {"XDG_STATE_HOME": str(folder)})


def made(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


def test_totals_outlive_a_server_without_limits(tmp_path: Path) -> None:
    for calls in (1, 2):
        with production(tmp_path) as parts:
            assert len(made(tmp_path)) == calls - 1
            anyio.run(run, parts.limiter)
    assert made(tmp_path) == ["mcp_tools/limits.sqlite3"]
    with production(tmp_path) as parts:
        (total,) = anyio.run(parts.limiter.totals, 1)
    assert (total.principal, total.tool, total.usage.calls) == ("ada", "search", 2)


def test_memory_is_a_choice_and_leaves_nothing(tmp_path: Path) -> None:
    with production(tmp_path, limits_store=IN_MEMORY) as parts:
        anyio.run(run, parts.limiter)
        assert isinstance(parts.limiter.store, MemoryStore)
    assert made(tmp_path) == []


def test_a_folder_that_cannot_be_used_is_said_and_stops_no_server_without_limits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mcp_tools").write_text("in the way")
    with production(tmp_path) as parts:
        anyio.run(run, parts.limiter)
        (total,) = anyio.run(parts.limiter.totals, 1)
    assert total.usage.calls == 1
    (said,) = caplog.messages
    assert "kept in memory only" in said
    with pytest.raises(ConfigError):
        production(tmp_path, limits=("*: 1 call / day",))


def test_a_server_starts_without_loading_sqlite(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from mcp_tools.config import Settings\n"
        "from mcp_tools.production import assemble\n"
        "from mcp_tools.registry import ToolRegistry\n"
        "with assemble(Settings(), ToolRegistry(), os.environ):\n"
        "    print('sqlite3' in sys.modules)\n"
    )
    environ = {"PATH": os.environ["PATH"], "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"


def test_failures_of_records_and_limits_are_a_metric_of_every_server(tmp_path: Path) -> None:
    with production(tmp_path, metrics_enabled=True) as parts:
        assert parts.metrics is not None
        text = render(parts.metrics.registry).body.decode()
    assert {line.split(" ")[0] for line in text.splitlines() if line.startswith("mcp_tools_unavailable")} == {
        'mcp_tools_unavailable_total{what="audit"}',
        'mcp_tools_unavailable_total{what="limits"}',
    }


def test_usage_shows_calls_of_a_command_without_limits(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def mcp_tools(*arguments: str) -> str:
        argv = [sys.executable, "-m", "mcp_tools", *arguments]
        done = subprocess.run(
            argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    tools = ("--tools", "tests.production.tools:registry", "--no-python")
    mcp_tools("call", "echo", "--arg", "text=hello", *tools)
    (used,) = json.loads(mcp_tools("usage", "--json"))
    assert (used["tool"], used["calls"]) == ("echo", 1)

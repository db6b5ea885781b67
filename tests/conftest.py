"""What holds for every test: no settings of the machine it runs on, and no silent skips in CI."""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import hypothesis
import pytest

pytest_plugins = ["tests.docker_engine"]
LONG = "MCP_TOOLS_LONG"
"""Set to 1, proofs of many repetitions are as long as what they are to show; otherwise they are short."""
ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.toml")


# How fast examples are drawn says something about the machine, not about us.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips",
        action="store_true",
        help=f"fail the run when a test is skipped for a reason that is not in {ALLOWED_SKIPS.name}",
    )
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/golden/ anew from what the tools say of themselves now",
    )


def pytest_configure(config: pytest.Config) -> None:
    # The settings of whoever runs the tests must not reach the servers that tests start.
    for name in [name for name in os.environ if name.startswith("MCP_TOOLS_")]:
        if name != LONG:
            del os.environ[name]
    # Nor their records be mixed with those of these.
    state = tempfile.TemporaryDirectory(prefix="mcp-tools-state-")
    config.add_cleanup(state.cleanup)
    os.environ["XDG_STATE_HOME"] = state.name
    if config.getoption("--no-skips"):
        entries = tomllib.loads(ALLOWED_SKIPS.read_text())["skip"]
        allowed = [entry["reason"] for entry in entries if not _can_be_provided(entry)]
        config.pluginmanager.register(_NoSkips(allowed), "no-skips")


def _can_be_provided(entry: dict[str, Any]) -> bool:
    """Whether this machine has what an allowed skip says may be lacking."""
    if "unless_capability" in entry:
        status = Path("/proc/self/status").read_text()
        effective = int(status.split("CapEff:")[1].split()[0], 16)
        return bool(effective >> entry["unless_capability"] & 1)
    return "unless_path" in entry and os.path.exists(entry["unless_path"])


class _NoSkips:
    def __init__(self, allowed: list[str]) -> None:
        self._allowed = allowed
        self._refused: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look_at(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look_at(report)

    def _look_at(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in self._allowed):
            self._refused.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._refused:
            terminalreporter.section("skipped, and --no-skips forbids it", red=True)
            terminalreporter.write_line(
                f"provide what is missing in .ci/run, or give the reason in tests/{ALLOWED_SKIPS.name}"
            )
            for line in self._refused:
                terminalreporter.write_line(line)

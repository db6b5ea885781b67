"""Tools that declare where they run, through the executor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from mcp_tools import ErrorCode, ExecutionStatus, RegistrationError, ToolSystem
from sandbox import detect
from tests.workers import functions, walled_functions
from tests.workers.conftest import left_over, settled


@pytest.fixture
def tools() -> Iterator[ToolSystem]:
    before = left_over()
    system = ToolSystem()
    yield system
    system.registry.close()
    assert settled(lambda: left_over() == before), (before, left_over())


async def test_a_timeout_ends_the_function_and_says_so(tools: ToolSystem, tmp_path: Path) -> None:
    tools.register(isolation="process", timeout=1.0)(functions.deaf)
    arguments = {"marker": str(tmp_path / "marker"), "seconds": 1.5}
    began_s = time.monotonic()
    result = await tools.execute("deaf", arguments)
    assert (result.status, result.error_code) == (ExecutionStatus.TIMEOUT, ErrorCode.TIMED_OUT)
    assert result.error == "deaf was stopped after 1 s"
    assert (tmp_path / "marker.begun").exists()
    await anyio.sleep(began_s + 2.2 - time.monotonic())
    assert not (tmp_path / "marker").exists()


async def test_results_errors_and_context(tools: ToolSystem) -> None:
    tools.register(isolation="process")(functions.show)
    tools.register(isolation="process")(functions.odd)
    tools.register(isolation="process", retries=0)(functions.sees)
    result = await tools.execute("show", {"point": {"x": 1, "y": 2}})
    assert result.is_success and result.structured == {"x": 2, "y": 1}
    result = await tools.execute("odd", {"what": "tool error"})
    assert (result.error_code, result.error, result.retry_after_s) == (
        ErrorCode.TOOL_ERROR,
        "not now",
        1.5,
    )
    result = await tools.execute("odd", {"what": "value error"})
    assert (result.error_code, result.error) == (ErrorCode.TOOL_EXCEPTION, "ValueError: bad \\udc80 text")
    result = await tools.execute("odd", {"what": "os exit"})
    assert result.error is not None and "exit status 3" in result.error
    result = await tools.execute("sees", {})
    assert result.is_success and result.usage is not None and result.usage.cost_usd == 0.25


async def test_a_tool_in_a_sandbox(tools: ToolSystem) -> None:
    if not detect().level:
        pytest.skip("needs a machine that gives a sandbox")
    tools.register(isolation="sandbox", timeout=20)(walled_functions.greet)
    result = await tools.execute("greet", {"name": "ann", "how": "loud"})
    assert result.result == {"text": "HELLO ANN"}
    assert result.usage is not None and result.usage.sandbox_cpu_s > 0


def test_what_cannot_be_isolated_is_not_registered(tools: ToolSystem) -> None:
    def local() -> None:
        """Only lives here."""

    with pytest.raises(RegistrationError, match="made anew by each call"):
        tools.register(isolation="process")(local)
    with pytest.raises(RegistrationError, match="wants a CallContext"):
        tools.register(isolation="sandbox")(functions.sees)
    assert len(tools.registry) == 0

"""A function in a sandbox: results, errors, and what it cannot do."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_tools.calling import Raised, Returned
from mcp_tools.errors import ToolError
from mcp_tools.types import CallContext, TextContent, ToolOutput
from mcp_tools.workers import IsolatedCallee, isolated
from mcp_tools.workers.results import WorkerFailed, WorkersClosed
from sandbox import SandboxConfig, detect
from tests.workers import walled_functions as functions
from tests.workers.conftest import left_over, settled

HERE = CallContext()
Walled = Callable[[Callable[..., Any]], IsolatedCallee]


@pytest.fixture(scope="module")
def walled() -> Iterator[Walled]:
    if not detect().level:
        pytest.skip("needs a machine that gives a sandbox")
    made: dict[Callable[..., Any], IsolatedCallee] = {}
    config = SandboxConfig(pool_size=2, max_memory_mb=128)

    def make(function: Callable[..., Any]) -> IsolatedCallee:
        if function not in made:
            made[function] = isolated(
                function,
                isolation="sandbox",
                context_parameter=None,
                name=function.__name__,
                sandbox_config=config,
            )
        return made[function]

    yield make
    for callee in made.values():
        callee.close()


async def test_results(walled: Walled, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mcp_tools.workers")
    callee = walled(functions.greet)
    assert callee.is_async
    assert await callee.call({"name": "ann"}, HERE) == Returned({"text": "hello ann"})
    assert await callee.call({"name": "ann", "how": "loud"}, HERE) == Returned({"text": "HELLO ANN"})
    assert "sandbox of greet: stdout: 'greeting\\n'" in caplog.text


async def test_each_call_is_without_state(walled: Walled) -> None:
    callee = walled(functions.remember)
    assert [await callee.call({"value": n}, HERE) for n in (1, 2)] == [Returned([1]), Returned([2])]


async def test_async_functions_run_there(walled: Walled) -> None:
    assert await walled(functions.later).call({"value": 1.5}, HERE) == Returned(1.5)


async def test_odd_results_and_errors(walled: Walled) -> None:
    callee = walled(functions.odd)
    assert await callee.call({"what": "output"}, HERE) == Returned(
        ToolOutput(content=[TextContent(text="t")], structured={"a": 1})
    )
    assert await callee.call({"what": "set"}, HERE) == Returned([1, 2])
    outcome = await callee.call({"what": "tool error"}, HERE)
    assert isinstance(outcome, Raised) and type(outcome.error) is ToolError
    assert (outcome.error.is_passing, outcome.error.retry_after_s) == (True, 1.5)
    outcome = await callee.call({"what": "value error"}, HERE)
    assert isinstance(outcome, Raised)
    assert (type(outcome.error).__name__, str(outcome.error)) == ("ValueError", "bad")


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("exit", WorkerFailed, "exited with status 3"),
        ("memory", Exception, "memory"),
        ("import", Exception, "No module named 'numpy'"),
    ],
)
async def test_what_cannot_run_says_why(walled: Walled, what: str, kind: type, text: str) -> None:
    outcome = await walled(functions.odd).call({"what": what}, HERE)
    assert isinstance(outcome, Raised) and isinstance(outcome.error, kind)
    assert text in str(outcome.error)


async def test_arguments_are_json(walled: Walled) -> None:
    outcome = await walled(functions.odd).call({"what": {1, 2}}, HERE)
    assert isinstance(outcome, Raised) and isinstance(outcome.error, TypeError)
    assert "JSON data only" in str(outcome.error)


async def test_there_is_no_network_and_none_of_our_files(walled: Walled, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    assert functions.read(str(tmp_path / "secret")) == "s3cret"
    outcome = await walled(functions.read).call({"path": str(tmp_path / "secret")}, HERE)
    assert isinstance(outcome, Raised) and type(outcome.error).__name__ in (
        "FileNotFoundError",
        "PermissionError",
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        functions.reach(port)
        outcome = await walled(functions.reach).call({"port": port}, HERE)
    assert isinstance(outcome, Raised) and type(outcome.error).__name__ == "PermissionError"


async def test_a_deadline_ends_it(tmp_path: Path) -> None:
    """Into a folder that it can write to, so that only its end keeps it from that."""
    config = SandboxConfig(pool_size=1, working_dir=str(tmp_path))
    callee = isolated(
        functions.write_late,
        isolation="sandbox",
        context_parameter=None,
        name="write_late",
        sandbox_config=config,
    )
    try:
        assert await callee.call({"path": "allowed", "seconds": 0}, HERE) == Returned(None)
        began_s = time.monotonic()
        with anyio.move_on_after(0.3) as scope:
            await callee.call({"path": "withdrawn", "seconds": 0.8}, HERE)
        assert scope.cancelled_caught
        assert time.monotonic() - began_s < 1.3
        await anyio.sleep(1)
        assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == ["allowed"]
    finally:
        callee.close()


async def test_a_sandbox_that_does_not_start_says_why() -> None:
    config = SandboxConfig(pool_size=1, preload=("module_that_nobody_finds",))
    callee = isolated(
        functions.greet, isolation="sandbox", context_parameter=None, name="greet", sandbox_config=config
    )
    try:
        outcome = await callee.call({"name": "ann"}, HERE)
    finally:
        callee.close()
    assert isinstance(outcome, Raised) and isinstance(outcome.error, ToolError)
    assert "greet cannot run here" in str(outcome.error)
    assert "module_that_nobody_finds" in str(outcome.error)


async def test_tools_share_a_sandbox_and_the_last_one_ends_it() -> None:
    before = left_over()
    config = SandboxConfig(pool_size=1)
    callees = [
        isolated(each, isolation="sandbox", context_parameter=None, name="it", sandbox_config=config)
        for each in (functions.greet, functions.later)
    ]
    assert left_over() == before
    callees[0].warm()
    assert await callees[1].call({"value": 1}, HERE) == Returned(1)
    callees[1].close()
    callees[1].close()
    assert isinstance(await callees[0].call({"name": "ann"}, HERE), Returned)
    callees[0].close()
    for callee, arguments in zip(callees, ({"name": "ann"}, {"value": 1}), strict=True):
        outcome = await callee.call(arguments, HERE)
        assert isinstance(outcome, Raised) and isinstance(outcome.error, WorkersClosed)
    assert settled(lambda: left_over() == before), (before, left_over())

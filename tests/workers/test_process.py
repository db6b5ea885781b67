"""A function in a worker process: what goes in, what comes out, and what it sees."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_tools.calling import Raised, Returned
from mcp_tools.errors import ToolError
from mcp_tools.types import CallContext, Decision, MediaContent, TextContent, ToolOutput, Usage
from mcp_tools.workers.limits import WorkerLimits
from mcp_tools.workers.results import WorkerFailed, WorkersClosed
from tests.workers import functions
from tests.workers.conftest import Make, descendants, exists, reached, settled

HERE = CallContext()


async def test_results_and_defaults(in_process: Make) -> None:
    callee = in_process(functions.add)
    assert callee.is_async
    assert await callee.call({"a": 1}, HERE) == Returned(2)
    assert await callee.call({"a": 1, "b": 5}, HERE) == Returned(6)


async def test_nothing_is_started_before_it_is_needed(in_process: Make) -> None:
    before = descendants()
    callee = in_process(functions.add)
    assert descendants() == before
    callee.warm()
    callee.warm()
    assert settled(lambda: len(descendants() - before) == 2)  # a shim and a worker
    assert await callee.call({"a": 1}, HERE) == Returned(2)
    assert len(descendants() - before) == 2


async def test_workers_keep_their_state_and_share_none(in_process: Make, tmp_path: Path) -> None:
    callee = in_process(functions.count)
    first, second = [await callee.call({}, HERE) for _ in range(2)]
    assert isinstance(first, Returned) and isinstance(second, Returned)
    assert [first.value[0], second.value[0]] == [1, 2]
    assert first.value[1] == second.value[1]
    assert functions.calls == 0

    pids, before = set(), descendants()
    held = in_process(functions.hold, limits=WorkerLimits(busy_per_tool=2))

    async def call() -> None:
        outcome = await held.call({"path": str(tmp_path / "go")}, HERE)
        assert isinstance(outcome, Returned)
        pids.add(outcome.value)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(call)
            await reached(lambda: len(descendants() - before) == 4)
            (tmp_path / "go").touch()
    assert len(pids) == 2


async def test_arguments_may_be_objects_and_results_are_data(in_process: Make) -> None:
    callee = in_process(functions.show)
    assert await callee.call({"point": functions.Point(1, 2)}, HERE) == Returned({"x": 2, "y": 1})
    assert await in_process(functions.odd).call({"what": "output"}, HERE) == Returned(
        ToolOutput(
            content=[TextContent(text="t"), MediaContent(data=b"\x00\xff", media_type="image/png")],
            structured={"a": 1},
        )
    )


async def test_what_cannot_be_sent_is_said_and_nothing_is_run(in_process: Make) -> None:
    before = descendants()
    outcome = await in_process(functions.odd).call({"what": lambda: None}, HERE)
    assert isinstance(outcome, Raised) and isinstance(outcome.error, TypeError)
    assert "cannot be sent to a worker" in str(outcome.error)
    outcome = await in_process(functions.odd).call({"what": "x" * (33 * 1024 * 1024)}, HERE)
    assert isinstance(outcome, Raised) and "too large" in str(outcome.error)
    assert descendants() == before


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("value error", "ValueError", "bad \\udc80 text"),
        ("own", "Größe", "own"),
        ("exit", "SystemExit", "gone"),
        ("large", "ValueError", "the result is too large"),
    ],
)
async def test_exceptions_keep_their_name_and_text(in_process: Make, what: str, kind: str, text: str) -> None:
    callee = in_process(functions.odd)
    outcome = await callee.call({"what": what}, HERE)
    assert isinstance(outcome, Raised)
    assert type(outcome.error).__name__ == kind
    assert text in str(outcome.error)
    if what == "value error":
        assert "in odd" in outcome.error.__notes__[0]  # where it happened, for the log
    assert await callee.call({"what": "fine"}, HERE) == Returned("fine")


async def test_a_tool_error_stays_one(in_process: Make) -> None:
    outcome = await in_process(functions.odd).call({"what": "tool error"}, HERE)
    assert isinstance(outcome, Raised)
    error = outcome.error
    assert type(error) is ToolError
    assert (str(error), error.is_passing, error.retry_after_s) == ("not now", True, 1.5)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("os exit", "exit status 3"),
        ("crash", "killed by signal 11"),
        ("garbage", "no message of ours"),
    ],
)
async def test_a_worker_that_breaks_is_replaced(in_process: Make, what: str, text: str) -> None:
    callee = in_process(functions.odd)
    with anyio.fail_after(20):
        outcome = await callee.call({"what": what}, HERE)
        assert isinstance(outcome, Raised) and isinstance(outcome.error, WorkerFailed)
        assert text in str(outcome.error)
        assert await callee.call({"what": "fine"}, HERE) == Returned("fine")


async def test_odd_words_of_a_worker_change_nothing(in_process: Make) -> None:
    callee = in_process(functions.odd)
    assert await callee.call({"what": "lie"}, HERE) == Returned("true")
    assert await callee.call({"what": "fork"}, HERE) == Returned("from the worker")
    assert await callee.call({"what": "megabytes"}, HERE) == Returned("ä" * (3 * 1024 * 1024))
    outcome = await callee.call({"what": "unprintable"}, HERE)
    assert isinstance(outcome, Returned) and "class 'object'" in outcome.value


async def test_a_worker_that_ended_while_it_waited_is_not_used(in_process: Make) -> None:
    callee = in_process(functions.count)
    first = await callee.call({}, HERE)
    assert isinstance(first, Returned)
    os.kill(first.value[1], signal.SIGKILL)
    assert settled(lambda: first.value[1] not in descendants())
    again = await callee.call({}, HERE)
    assert isinstance(again, Returned) and again.value[0] == 1


async def test_it_is_said_where_the_process_above_a_worker_was_killed(
    in_process: Make, caplog: pytest.LogCaptureFixture
) -> None:
    before = descendants()
    callee = in_process(functions.count)
    first = await callee.call({}, HERE)
    assert isinstance(first, Returned)
    shim = next(iter(descendants() - before - {first.value[1]}))
    os.kill(shim, signal.SIGKILL)
    assert settled(lambda: not exists(first.value[1]))  # that one goes with it
    again = await callee.call({}, HERE)
    assert isinstance(again, Returned) and again.value[0] == 1
    assert "the process above the worker of count was killed" in caplog.text


async def test_async_functions_run_in_a_loop_of_their_own(in_process: Make) -> None:
    assert await in_process(functions.asynchronous).call({"seconds": 0.01}, HERE) == Returned("slept")


async def test_the_context_works_from_a_worker(in_process: Make) -> None:
    seen: list[Any] = []

    async def on_progress(progress: float, total: float | None = None, message: str | None = None) -> None:
        seen.append((progress, total, message))

    def screen(subject: Any) -> Decision:
        seen.append(subject)
        return Decision.ALLOW if subject == "/ok" else Decision.DENY

    context = CallContext(principal="ann", asked=True, on_progress=on_progress, screen=screen)
    outcome = await in_process(functions.sees, context="context").call({}, context)
    assert outcome == Returned(
        {
            "principal": "ann",
            "call_id": context.call_id,
            "asked": True,
            "allowed": True,
            "denied": False,
        }
    )
    assert seen == [(1, 2, "half"), "/ok", ("/secret", "/alias")]
    assert context.meter.total == Usage(cost_usd=0.25)

    seen.clear()
    assert await in_process(functions.sees_async, context="context").call({}, context) == Returned(None)
    assert seen == [(0, None, None), (1, None, None), (2, None, None)]


async def test_without_rules_everything_is_permitted_as_elsewhere(in_process: Make) -> None:
    outcome = await in_process(functions.sees, context="context").call({}, HERE)
    assert isinstance(outcome, Returned) and outcome.value["denied"] is True


async def test_what_was_spent_counts_also_when_the_call_is_ended(in_process: Make) -> None:
    callee = in_process(functions.spends_and_hangs, context="context")
    context = CallContext()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(callee.call, {}, context)
            await reached(lambda: context.meter.total != Usage())
            group.cancel_scope.cancel()
    assert context.meter.total == Usage(cost_usd=1)


async def test_what_is_printed_goes_to_the_log(
    in_process: Make, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, logger="mcp_tools.workers")
    await in_process(functions.prints).call({"text": "ünï \x1b[31m" + "x" * 5000}, HERE)
    assert settled(lambda: "to stderr" in caplog.text)
    assert "worker of prints: ünï \\x1b[31mxxx" in caplog.text
    assert "worker of prints: from below" in caplog.text
    assert max(map(len, caplog.messages)) < 2_100
    captured = capfd.readouterr()
    assert captured.out == ""


async def test_a_function_that_no_worker_can_import_says_why(in_process: Make) -> None:
    sys._the_test_is_here = True  # type: ignore[attr-defined]
    try:
        from tests.workers import fails_to_import
    finally:
        del sys._the_test_is_here  # type: ignore[attr-defined]
    with anyio.fail_after(20):
        outcome = await in_process(fails_to_import.unreachable).call({}, HERE)
    assert isinstance(outcome, Raised) and isinstance(outcome.error, WorkerFailed)
    assert "cannot be imported in a worker: RuntimeError: nobody knows me here" in str(outcome.error)


async def test_closed_workers_take_no_calls(in_process: Make) -> None:
    callee = in_process(functions.add)
    await callee.call({"a": 1}, HERE)
    callee.close()
    callee.close()
    outcome = await callee.call({"a": 1}, HERE)
    assert isinstance(outcome, Raised) and isinstance(outcome.error, WorkersClosed)


async def test_idle_workers_are_bounded_over_all_tools(in_process: Make, tmp_path: Path) -> None:
    before = descendants()
    callee = in_process(functions.hold, limits=WorkerLimits(waiting=1))
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(callee.call, {"path": str(tmp_path / "go")}, HERE)
            await reached(lambda: len(descendants() - before) >= 6)
            (tmp_path / "go").touch()
    assert settled(lambda: len(descendants() - before) == 2)


SCRIPT = """
import anyio, dataclasses
from mcp_tools.types import CallContext
from mcp_tools.workers import isolated

@dataclasses.dataclass
class Pair:
    a: int

def double(pair: Pair) -> int:
    return pair.a * 2

async def main():
    callee = isolated(double, isolation="process", context_parameter=None, name="double")
    print(await callee.call({"pair": Pair(21)}, CallContext()))
    callee.close()

if __name__ == "__main__":
    anyio.run(main)
"""


@pytest.mark.parametrize("by_name", [False, True], ids=["python script.py", "python -m script"])
def test_functions_of_a_script_run_too(tmp_path: Path, by_name: bool) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    how = ["-m", "script"] if by_name else [str(tmp_path / "script.py")]
    done = subprocess.run(
        [sys.executable, *how], capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False
    )
    assert (done.stdout, done.stderr) == ("Returned(value=42)\n", "")


UNGUARDED = """
import anyio, sys
from mcp_tools.types import CallContext
from mcp_tools.workers import isolated

def one() -> int:
    return 1

callee = isolated(one, isolation="process", context_parameter=None, name="one")
print(anyio.run(callee.call, {}, CallContext()), file=sys.stderr)
callee.close()
"""


def test_a_script_without_a_guard_starts_no_endless_row_of_workers(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr == "Returned(value=1)\n"


def test_one_pool_serves_several_event_loops(in_process: Make) -> None:
    callee = in_process(functions.count)
    for backend in ("asyncio", "trio", "asyncio"):
        outcome = anyio.run(callee.call, {}, HERE, backend=backend)
        assert isinstance(outcome, Returned)
    assert outcome.value[0] == 3

"""Whose variables a session holds, and what is left when a call ends badly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_tools import CallContext, ErrorCode, ToolSystem
from mcp_tools.builtin.python import register_python_tool
from mcp_tools.builtin.python.result import output
from mcp_tools.errors import ToolError
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import TextContent
from sandbox import EndedBy, SandboxConfig, SandboxResult
from tests.builtin.python.conftest import Systems, run, texts

ANA, BEN = CallContext(principal="ana"), CallContext(principal="ben")


async def value(system: ToolSystem, code: str, session: str | None, context: CallContext = ANA) -> str | None:
    found: str | None = (await run(system, code, session=session, context=context)).structured["value"]
    return found


async def test_variables_and_files_stay_in_a_session_and_nowhere_else(system: ToolSystem) -> None:
    begun = await run(system, "x = 41; open('note', 'w').write('kept')", session="stay", context=ANA)
    assert begun.structured["session_started"]
    assert any("session 'stay' is new" in text for text in texts(begun))
    after = await run(system, "x + 1, open('note').read()", session="stay", context=ANA)
    assert (after.structured["value"], after.structured["session_started"]) == ("(42, 'kept')", False)
    assert after.structured["session"] == "stay"
    for session in (None, "other"):
        assert await value(system, "'x' in globals()", session) == "False"


async def test_another_principal_and_another_connection_have_sessions_of_their_own(
    system: ToolSystem,
) -> None:
    """The attack works within one connection: whoever knows the name has the variables."""
    one, two = (CallContext(principal="ana", session_id=each) for each in ("connection-1", "connection-2"))
    await value(system, "secret = 7", "main", one)
    assert await value(system, "secret", "main", one) == "7"
    for context in (two, ANA, BEN, CallContext(principal="ben", session_id="connection-1")):
        assert await value(system, "'secret' in globals()", "main", context) == "False"


async def test_a_call_that_is_stopped_leaves_its_session_as_it_was(system: ToolSystem) -> None:
    await value(system, "x = 1", "stopped")
    code = "x = 2\nwhile True: pass"
    ended = await run(system, code, session="stopped", timeout_seconds=0.5, context=ANA)
    assert ended.structured["ended_by"] == "time"
    after = await run(system, "globals().get('x')", session="stopped", context=ANA)
    if ended.structured["session_lost"]:  # at the lower levels
        assert after.structured["session_started"]
    else:
        assert (after.structured["value"], after.structured["session_started"]) == ("1", False)


def test_that_a_session_is_lost_is_said_by_the_name_its_caller_gave_it() -> None:
    result = SandboxResult(
        success=False,
        stdout="",
        stderr="",
        return_code=-1,
        ended_by=EndedBy.MEMORY,
        error="too much memory",
        session="0123456789abcdef:mine",
        session_lost=True,
    )
    shown = output(result, session="mine")
    (said,) = (piece.text for piece in shown.content if isinstance(piece, TextContent))
    failed, note = said.split("\n")
    assert failed == "[failed: too much memory]"
    assert note == "[session 'mine' ended with this call: its variables and files are gone]"
    assert shown.structured is not None
    assert shown.structured["session"] == "mine"


async def test_that_all_sessions_are_busy_is_said_with_what_to_do(systems: Systems, tmp_path: Path) -> None:
    system = systems(max_sessions=1, working_dir=str(tmp_path))
    begun, over = tmp_path / "begun", tmp_path / "over"
    code = "import os, time\nopen('begun', 'w').close()\nwhile not os.path.exists('over'): time.sleep(0.01)"
    confirmed = CallContext(confirmed=True)
    with anyio.fail_after(15):
        async with anyio.create_task_group() as group:
            group.start_soon(system.execute, "execute_python", {"code": code, "session": "one"}, confirmed)
            while not begun.exists():  # noqa: ASYNC110 - a file of another process
                await anyio.sleep(0.02)
            refused = await system.execute("execute_python", {"code": "1", "session": "two"}, confirmed)
            over.touch()
    assert refused.error_code is ErrorCode.TOOL_ERROR
    assert "all busy" in (refused.error or "")
    assert "without `session`" in (refused.error or "")


async def test_that_a_session_ended_while_a_call_waited_is_said_by_the_name_its_caller_gave_it(
    tmp_path: Path,
) -> None:
    registry = ToolRegistry()
    tool = register_python_tool(registry, SandboxConfig(pool_size=1, working_dir=str(tmp_path)))
    context = CallContext(principal="ana", session_id="connection")
    begun = tmp_path / "begun"
    code = "import time\nopen('begun', 'w').close()\ntime.sleep(60)"
    said: list[str] = []

    async def wait_in_line() -> None:
        try:
            await tool.run("1", "mine", None, None, context)
        except ToolError as error:
            said.append(str(error))

    try:
        with anyio.fail_after(15):
            async with anyio.create_task_group() as group:
                group.start_soon(tool.run, code, "mine", None, None, context)
                while not begun.exists():  # noqa: ASYNC110 - a file of another process
                    await anyio.sleep(0.02)
                group.start_soon(wait_in_line)
                sandbox: Any = tool._sandbox
                ((key, session),) = sandbox._sessions._sessions.items()
                while session.waiting < 2:  # noqa: ASYNC110 - nothing tells of one who waits
                    await anyio.sleep(0.01)
                sandbox.end_session(key[1], tenant=key[0])
    finally:
        tool.close()
    (refusal,) = said
    assert "session 'mine' ended while this call waited for its turn. Try again" in refusal


@pytest.mark.parametrize("name", ["", "x" * 65])
async def test_a_name_that_is_none_is_refused(name: str, system: ToolSystem) -> None:
    result = await system.execute("execute_python", {"code": "1", "session": name})
    assert "session" in (result.error or "")
    assert not result.is_success


async def test_cancelling_a_call_ends_its_code(systems: Systems, tmp_path: Path) -> None:
    """Seen from outside: the code writes into a folder of ours as long as it lives."""
    system = systems(working_dir=str(tmp_path))
    beat = tmp_path / "beat"
    code = """
import itertools, os, signal, time
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except OSError: pass
for count in itertools.count(1):
    open('beat', 'w').write(str(count)); time.sleep(0.01)
"""
    with anyio.fail_after(15):
        async with anyio.create_task_group() as group:
            group.start_soon(system.execute, "execute_python", {"code": code}, CallContext(confirmed=True))
            while not beat.exists() or not beat.read_text():  # noqa: ASYNC110 - a file of another process
                await anyio.sleep(0.02)
            group.cancel_scope.cancel()
    seen = beat.read_text()
    await anyio.sleep(0.2)
    assert beat.read_text() == seen

"""The server object on its own: the SDK's client in the same process, no transport."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp.client.client import Client
from mcp.server._otel import OpenTelemetryMiddleware
from mcp.shared.exceptions import MCPError
from opentelemetry import trace

from mcp_tools import CallContext, ExecutionResult, ToolExecutor, ToolOutput, ToolRegistry
from mcp_tools.policy import RulePolicy
from mcp_tools.server.content import MAX_ERROR_CHARS, MAX_TEXT_CHARS, error_result
from mcp_tools.server.handler import MAX_OPEN_QUESTIONS, build_server
from mcp_tools.server.principal import Caller, current_caller
from tests.server.peers import ERAS, text_of

registry = ToolRegistry()
ran: list[str] = []


@registry.register
def read(path: str) -> str:
    """Read."""
    return path


@registry.register(requires_confirmation=True)
def write(path: str) -> str:
    """Write."""
    ran.append(path)
    return "written"


@registry.register
def remove(path: str) -> str:
    """Remove."""
    return path


@registry.register(
    output_schema={
        "type": "object",
        "properties": {"result": {"type": "array", "items": {"type": "integer"}}},
        "required": ["result"],
    }
)
def numbers() -> ToolOutput:
    """Return numbers under a promise."""
    return ToolOutput(structured={"result": [1, 2, 3]})


@registry.register(output_schema={"type": "object", "properties": {"rows": {"type": "array"}}})
def many_rows(count: int) -> dict[str, Any]:
    """Return more than can be shortened."""
    return {"rows": [[index, index] for index in range(count)]}


@registry.register
async def reports(context: CallContext, values: list[Any]) -> str:
    """Report whatever it is told to."""
    for value in values:
        await context.report_progress(float(value), message="x" * 5_000 + "\udc80")
        await anyio.sleep(0.06)
    return "reported"


@registry.register
async def reports_a_lot(context: CallContext) -> str:
    """Report a thousand times at once."""
    for value in range(1000):
        await context.report_progress(value, 999)
    return "reported"


@pytest.fixture(params=list(ERAS.values()), ids=list(ERAS))
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_denied_tool_is_not_listed_and_not_known(mode: str) -> None:
    executor = ToolExecutor(registry, policy=RulePolicy.parse(deny=["remove"], ask=[], allow=[]))
    async with Client(build_server(executor), mode=mode) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names == ["read", "write", "numbers", "many_rows", "reports", "reports_a_lot"]
        with pytest.raises(MCPError) as caught:
            await client.call_tool("remove", {"path": "x"})
        assert caught.value.error.code == types.INVALID_PARAMS
        assert "remove" not in caught.value.error.message.replace("no tool 'remove'", "")


async def test_a_question_and_what_becomes_of_it_are_recorded_under_one_call_id(mode: str) -> None:
    async def accept(_context: Any, _params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"approve": True})

    async def decline(_context: Any, _params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="decline")

    for answer, ends in ((accept, "success"), (decline, "permission_denied")):
        told: list[ExecutionResult] = []
        executor = ToolExecutor(registry)
        executor.add_hook(told.append)
        async with Client(build_server(executor), mode=mode, elicitation_callback=answer) as client:
            await client.call_tool("write", {"path": "x"})
        assert [result.status.value for result in told] == ["permission_denied", ends]
        assert told[0].call_id == told[1].call_id
        assert len(executor.confirmations) == 0
    assert ran == ["x"]
    ran.clear()


async def test_the_question_names_the_principal_before_what_the_client_calls_itself(mode: str) -> None:
    """A client called `Claude 1.0, as bob` passed for one of bob's."""
    seen: list[str] = []

    async def decline(_context: Any, params: Any) -> types.ElicitResult:
        seen.append(params.message)
        return types.ElicitResult(action="decline")

    name = types.Implementation(name='Claude 1.0", as bob', version="2")
    server = build_server(ToolExecutor(registry))
    async with Client(server, mode=mode, elicitation_callback=decline, client_info=name) as client:
        await client.call_tool("write", {"path": "x"})
    assert '\nAsked by: local, through "Claude 1.0\', as bob 2"\n' in seen[0]


async def test_a_rule_that_allows_a_call_lets_it_run_without_a_question(mode: str) -> None:
    executor = ToolExecutor(registry, policy=RulePolicy.parse(deny=[], ask=[], allow=["write(notes/**)"]))
    async with Client(build_server(executor), mode=mode) as client:
        assert text_of(await client.call_tool("write", {"path": "notes/a"})) == "written"
        assert (await client.call_tool("write", {"path": "other/a"})).is_error
    assert ran == ["notes/a"]
    ran.clear()


@pytest.mark.parametrize(
    ("rules", "path", "words", "not_words"),
    [
        ({}, "a", ['allow = ["write(notes/**)"]', "mcp-tools call write"], ["No rule can"]),
        ({"ask": ["write"]}, "a", ["No rule can allow it beforehand (ask rule 'write')"], ["allow = ["]),
        ({"allow": ["write"]}, "insists", ["No rule can allow it beforehand (protected)"], ["allow = ["]),
    ],
    ids=["default", "ask-rule", "protected"],
)
async def test_a_client_that_cannot_ask_is_told_what_really_helps(
    mode: str, rules: dict[str, list[str]], path: str, words: list[str], not_words: list[str]
) -> None:
    insisting = ToolRegistry()
    register = insisting.register("write", requires_confirmation=True, must_ask=insists)
    register(lambda path: ran.append(path))
    executor = ToolExecutor(insisting, policy=RulePolicy.parse(**rules))
    async with Client(build_server(executor), mode=mode) as client:
        result = await client.call_tool("write", {"path": path})
    said = text_of(result)
    assert result.is_error
    assert [word for word in [*words, "Retrying will not help"] if word not in said] == []
    assert [word for word in not_words if word in said] == []
    assert ran == []


def insists(path: str) -> str | None:
    return "protected" if path == "insists" else None


async def test_questions_that_nobody_answers_do_not_pile_up() -> None:
    asked, release = 0, anyio.Event()

    async def thinks(_context: Any, _params: Any) -> types.ElicitResult:
        nonlocal asked
        asked += 1
        await release.wait()
        return types.ElicitResult(action="decline")

    executor = ToolExecutor(registry)
    results: list[str] = []
    async with Client(build_server(executor), mode="legacy", elicitation_callback=thinks) as client:

        async def call() -> None:
            results.append(text_of(await client.call_tool("write", {"path": "x"})))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for _ in range(MAX_OPEN_QUESTIONS + 3):
                    tasks.start_soon(call)
                while len(results) < 3:  # noqa: ASYNC110 - the refused ones come back at once
                    await anyio.sleep(0.01)
                assert text_of(await client.call_tool("read", {"path": "x"})) == "x"
                release.set()
    assert asked == MAX_OPEN_QUESTIONS
    assert sum("questions wait for an answer already" in result for result in results) == 3
    assert ran == []


async def test_a_fault_of_ours_is_a_call_id_and_nothing_more(mode: str, caplog: Any) -> None:
    class Broken(ToolExecutor):
        async def execute(self, *_: Any, **__: Any) -> ExecutionResult:
            raise SystemExit("the secret")

    with caplog.at_level(logging.ERROR):
        async with Client(build_server(Broken(registry)), mode=mode) as client:
            result = await client.call_tool("read", {"path": "private"})
    assert result.is_error
    said, logged = text_of(result), caplog.text
    assert "internal error" in said
    call_id = said.rpartition(" ")[2]
    assert len(call_id) == 16
    assert call_id in logged
    for text in (said, logged):
        assert "the secret" not in text
        assert "private" not in text
    assert "Traceback" not in logged


async def test_the_caller_of_a_transport_reaches_the_tool_and_its_record() -> None:
    told: list[ExecutionResult] = []
    executor = ToolExecutor(registry)
    executor.add_hook(told.append)
    token = current_caller.set(Caller(principal="alice", transport="http", session_id="s1"))
    try:
        async with Client(build_server(executor), mode="2026-07-28") as client:
            await client.call_tool("read", {"path": "x"})
    finally:
        current_caller.reset(token)
    assert [(r.principal, r.transport, r.session_id) for r in told] == [("alice", "http", "s1")]
    assert told[0].client == "mcp 0.1.0"


async def test_promised_structured_content_is_sent_or_the_call_is_an_error(mode: str) -> None:
    async with Client(build_server(ToolExecutor(registry)), mode=mode) as client:
        await client.list_tools()
        result = await client.call_tool("numbers", {})
        assert result.structured_content == {"result": [1, 2, 3]}
        assert '"result": [' in text_of(result)
        few = await client.call_tool("many_rows", {"count": 3})
        assert few.structured_content == {"rows": [[0, 0], [1, 1], [2, 2]]}
        many = await client.call_tool("many_rows", {"count": 200_000})
        assert many.is_error
        assert "Ask for less at a time" in text_of(many)


async def test_progress_only_rises_and_is_bounded(mode: str) -> None:
    seen: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, message))

    async with Client(build_server(ToolExecutor(registry)), mode=mode) as client:
        values = ["1", "nan", "inf", "0.5", "1", "2"]
        result = await client.call_tool("reports", {"values": values}, progress_callback=on_progress)
        assert text_of(result) == "reported"
        assert [progress for progress, _ in seen] == [1, 2]
        assert all(len(message or "") == 1000 for _, message in seen)
        seen.clear()
        await client.call_tool("reports_a_lot", {}, progress_callback=on_progress)
        assert len(seen) < 50
        assert seen[-1][0] == 999


def test_long_errors_are_cut_where_clients_would_cut_them_silently() -> None:
    text = text_of(error_result("e" * 50_000))
    assert len(text) <= MAX_ERROR_CHARS
    assert "the whole was 50,000 characters" in text
    assert MAX_ERROR_CHARS < MAX_TEXT_CHARS


def test_spans_are_made_where_somebody_receives_them() -> None:
    def has_spans(telemetry: bool | None) -> bool:
        server = build_server(ToolExecutor(registry), telemetry=telemetry)
        return any(isinstance(middleware, OpenTelemetryMiddleware) for middleware in server.middleware)

    assert not has_spans(None)
    assert has_spans(True)
    with _provider():
        assert has_spans(None)
        assert not has_spans(False)


@contextmanager
def _provider() -> Iterator[None]:
    # The API allows a provider to be set once per process, so a test reaches behind it.
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = trace.NoOpTracerProvider()
    try:
        yield
    finally:
        trace._TRACER_PROVIDER = before

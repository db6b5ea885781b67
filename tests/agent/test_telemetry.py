"""What OpenTelemetry is told of a model's turns, by its real SDK: spans of one trace, tokens, and no text."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anthropic import AsyncAnthropic

from mcp_tools import ToolSystem
from mcp_tools.agent import telemetry
from mcp_tools.agent.loop import run_agent
from mcp_tools.agent.step import run_agent_step
from mcp_tools.agent.types import AgentRun, ModelError
from tests.agent.anthropic_server import KEY, MODEL, AnthropicServer, Failure, Script, asks, says, use
from tests.observe.test_tracing import Told

SECRET = "what only the two of them may know"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    made = telemetry.Instruments(tracer_provider=told.tracers, meter_provider=told.meters)
    monkeypatch.setattr(telemetry, "instruments", lambda: made)
    return told


async def run(told: Told, script: Script, **options: Any) -> AgentRun:
    tools = ToolSystem(observers=[told.observer()])

    @tools.register
    async def note() -> str:
        """Note something."""
        return SECRET

    with AnthropicServer(script) as server, anyio.fail_after(15):
        async with AsyncAnthropic(api_key=KEY, base_url=server.url, max_retries=0) as client:
            return await run_agent(SECRET, tools, client=client, model=MODEL, **options)


async def test_a_run_is_one_trace_with_its_turns_calls_and_tokens(told: Told) -> None:
    await run(told, [asks(use("c1", "note"), said=SECRET), says(SECRET)], on_text=lambda _: None)
    first, call, second, whole = told.spans
    assert [span.name for span in told.spans] == [
        f"chat {MODEL}",
        "execute_tool note",
        f"chat {MODEL}",
        "invoke_agent",
    ]
    assert {span.parent and span.parent.span_id for span in (first, call, second)} == {whole.context.span_id}
    assert dict(first.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 4096,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ("tool_use",),
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 10,
    }
    shared = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": MODEL,
    }
    assert told.points("gen_ai.client.token.usage") == [
        (shared | {"gen_ai.token.type": "input"}, 2),
        (shared | {"gen_ai.token.type": "output"}, 2),
    ]
    assert told.points("gen_ai.client.operation.duration") == [(shared, 2)]
    assert SECRET not in "".join(span.to_json() for span in told.spans)


async def test_a_failure_has_its_status_and_no_words(told: Told) -> None:
    await run(told, [Failure(status=529, kind="overloaded_error", message=SECRET)])
    for span in (told.span(f"chat {MODEL}"), told.span("invoke_agent")):
        assert (span.attributes or {})["error.type"] == "529"
        assert not span.status.is_ok
    assert (told.span("invoke_agent").attributes or {})["mcp_tools.stop"] == "failed"
    chat = told.span(f"chat {MODEL}")
    assert SECRET not in chat.to_json()
    ((attributes, count),) = told.points("gen_ai.client.operation.duration")
    assert (attributes["error.type"], count) == ("529", 1)
    assert told.points("gen_ai.client.token.usage") == []


async def test_a_step_is_told_of_too(told: Told) -> None:
    async with AsyncAnthropic(api_key=KEY, base_url="http://127.0.0.1:1", max_retries=0) as client:
        with pytest.raises(ModelError):
            await run_agent_step([{"role": "user", "content": "Go."}], ToolSystem(), client, MODEL)
    (chat,) = told.spans
    assert (chat.attributes or {})["error.type"] == "ModelError"

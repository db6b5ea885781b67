"""The whole task against the Messages API's server, with the official SDK in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from anthropic import AsyncAnthropic

from mcp_tools.agent.types import AgentLimits, StopReason
from tests.agent import scenario
from tests.agent.anthropic_server import KEY, MODEL, Answer, AnthropicServer, text, use


def planned(web: scenario.Site) -> list[Answer]:
    return [
        Answer(
            blocks=[text(turn.text), *(use(*call) for call in turn.calls)],
            stop="tool_use" if turn.calls else "end_turn",
        )
        for turn in scenario.plan(web)
    ]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_three_tools_at_once_and_a_question_before_a_file_is_written(
    tmp_path: Path, stream: bool
) -> None:
    with scenario.site() as web, AnthropicServer(planned(web)) as server:
        async with AsyncAnthropic(api_key=KEY, base_url=server.url) as client:
            done = await scenario.do_the_task(client, tmp_path, web, model=MODEL, stream=stream)
    scenario.check(done, streamed=stream)
    assert server.refused == []
    # What a provider caches is a beginning: tools, instructions and earlier messages are the same each time.
    first, *later = server.requests
    for request in later:
        for field in ("tools", "system", "model", "max_tokens"):
            assert json.dumps(request[field]) == json.dumps(first[field])
        assert request["messages"][: len(first["messages"])] == first["messages"]
        first = request
    answers = later[0]["messages"][-1]["content"]
    assert [answer["tool_use_id"] for answer in answers] == ["call_search", "call_fetch", "call_python"]
    assert [answer["is_error"] for answer in answers] == [False] * 3


async def test_a_no_is_told_to_the_model_and_nothing_is_written(tmp_path: Path) -> None:
    with scenario.site() as web, AnthropicServer(planned(web)) as server:
        async with AsyncAnthropic(api_key=KEY, base_url=server.url) as client:
            done = await scenario.do_the_task(client, tmp_path, web, model=MODEL, yes=False)
    scenario.check(done, wrote=False)
    (answer,) = server.requests[-1]["messages"][-1]["content"]
    assert answer["is_error"] is True
    assert "declined" in answer["content"]


async def test_a_limit_of_steps_ends_the_task_with_a_history_that_can_be_gone_on_with(tmp_path: Path) -> None:
    with scenario.site() as web, AnthropicServer(planned(web)) as server:
        async with AsyncAnthropic(api_key=KEY, base_url=server.url) as client:
            limits = AgentLimits(steps=1, seconds=30)
            done = await scenario.do_the_task(client, tmp_path, web, model=MODEL, limits=limits)
            assert done.run.stop is StopReason.STEPS
            assert done.run.detail == "the run was stopped after 1 turn, the limit of its steps"
            whole = [*done.run.messages, {"role": "user", "content": "Go on."}]
            await client.messages.create(model=MODEL, max_tokens=10, messages=whole)
    assert server.refused == []

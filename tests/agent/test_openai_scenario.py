"""The whole task against a server of both of OpenAI's APIs, with the official SDK in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from mcp_tools.agent.openai import model_for
from mcp_tools.agent.types import AgentLimits, Api, StopReason
from tests.agent import scenario
from tests.agent.openai_server import KEY, MODEL, Answer, OpenAIServer

pytestmark = pytest.mark.parametrize("api", ["openai-responses", "openai-chat"])


def planned(web: scenario.Site, api: Api) -> list[Answer]:
    thinks = api == "openai-responses"
    return [Answer(texts=[turn.text], calls=turn.calls, thoughts=thinks) for turn in scenario.plan(web)]


def history(api: Api, request: dict[str, Any]) -> list[dict[str, Any]]:
    return list(request["input" if api == "openai-responses" else "messages"])


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_three_tools_at_once_and_a_question_before_a_file_is_written(
    tmp_path: Path, api: Api, stream: bool
) -> None:
    with scenario.site() as web, OpenAIServer(planned(web, api)) as server:
        async with AsyncOpenAI(api_key=KEY, base_url=server.url) as client:
            done = await scenario.do_the_task(
                model_for(client, api), tmp_path, web, model=MODEL, stream=stream
            )
    scenario.check(done, streamed=stream)
    assert server.refused == []
    # What a provider caches is a beginning: everything else is the same each time, and a history only grows.
    first, *later = server.requests
    for request in later:
        before, after = history(api, first), history(api, request)
        assert json.dumps(after[: len(before)]) == json.dumps(before)
        assert {**request, "input": 0, "messages": 0} == {**first, "input": 0, "messages": 0}
        first = request
    field = "call_id" if api == "openai-responses" else "tool_call_id"
    answered = [item[field] for item in history(api, later[0])[-3:]]
    assert answered == ["call_search", "call_fetch", "call_python"]


async def test_a_no_is_told_to_the_model_and_nothing_is_written(tmp_path: Path, api: Api) -> None:
    with scenario.site() as web, OpenAIServer(planned(web, api)) as server:
        async with AsyncOpenAI(api_key=KEY, base_url=server.url) as client:
            done = await scenario.do_the_task(model_for(client, api), tmp_path, web, model=MODEL, yes=False)
    scenario.check(done, wrote=False)
    last = history(api, server.requests[-1])[-1]
    told = last["output" if api == "openai-responses" else "content"]
    assert told.startswith("Error (")
    assert "declined" in told


async def test_a_limit_of_steps_ends_the_task_with_a_history_that_can_be_gone_on_with(
    tmp_path: Path, api: Api
) -> None:
    with scenario.site() as web, OpenAIServer(planned(web, api)) as server:
        async with AsyncOpenAI(api_key=KEY, base_url=server.url) as client:
            asked = model_for(client, api)
            limits = AgentLimits(steps=1, seconds=30)
            done = await scenario.do_the_task(asked, tmp_path, web, model=MODEL, limits=limits)
            assert done.run.stop is StopReason.STEPS
            whole = [*done.run.messages, {"role": "user", "content": "Go on."}]
            await asked.ask(whole, (), model=MODEL, max_tokens=99, system=None, on_text=None)
    assert server.refused == []

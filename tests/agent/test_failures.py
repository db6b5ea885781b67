"""What keeps a model from answering: said in words that tell what to do, and counted only where it cost."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anthropic import AsyncAnthropic, AsyncAnthropicBedrock
from openai import AsyncOpenAI

from mcp_tools import ToolSystem
from mcp_tools.agent.anthropic import AnthropicMessages
from mcp_tools.agent.loop import run_agent
from mcp_tools.agent.types import AgentLimits, AgentRun, StopReason
from tests.agent.anthropic_server import KEY, MODEL, Answer, AnthropicServer, Failure, Script, says, text
from tests.agent.openai_server import OpenAIServer

NOWHERE = "http://127.0.0.1:1"


@asynccontextmanager
async def talking(
    script: Script, *, key: str = KEY, **options: Any
) -> AsyncIterator[tuple[AnthropicServer, AsyncAnthropic]]:
    with AnthropicServer(script) as server, anyio.fail_after(15):
        given = {"base_url": server.url, "max_retries": 0, **options}
        async with AsyncAnthropic(api_key=key, **given) as client:
            yield server, client


async def run(client: Any, **options: Any) -> AgentRun:
    return await run_agent("Go.", ToolSystem(), client=client, **{"model": MODEL, **options})


# --- Keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["abc\n", " ", "kéy", "two words", "\x00"])
async def test_a_key_that_is_none_is_named_and_nothing_is_sent(key: str) -> None:
    async with talking([says("never")], key=key) as (server, client):
        found = await run(client)
    assert (
        found.detail == "the key (ANTHROPIC_API_KEY) holds characters that no key has; was it copied whole?"
    )
    with OpenAIServer([]) as openai_server:
        async with AsyncOpenAI(api_key=key, base_url=openai_server.url, max_retries=0) as openai:
            found_there = await run(openai)
    assert "the key (OPENAI_API_KEY)" in found_there.detail
    assert (server.headers, openai_server.requests) == ([], [])
    assert found.is_usage_whole and found_there.is_usage_whole


async def test_a_key_that_is_none_comes_from_the_variable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", NOWHERE)
    assert "ANTHROPIC_API_KEY" in (await run(None)).detail


# --- What may have cost something ---------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
async def test_what_is_refused_has_cost_nothing(status: int) -> None:
    async with talking([Failure(status=status)]) as (_, client):
        found = await run(client)
    assert (found.stop, found.is_usage_whole) == (StopReason.FAILED, True)


async def test_what_never_left_has_cost_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with talking([], base_url=NOWHERE) as (_, client):
        found = await run(client)
    assert (found.detail, found.is_usage_whole) == ("the provider cannot be reached", True)
    monkeypatch.setenv("HOME", str(tmp_path))  # where the SDK looks for profiles
    found = await run(None)
    assert ("set ANTHROPIC_API_KEY" in found.detail, found.is_usage_whole) == (True, True)
    async with talking([says("never")]) as (server, client):
        found = await run_agent([{"role": "user", "content": object()}], ToolSystem(), client=client)
    assert (found.detail, found.is_usage_whole) == ("the messages hold what cannot be written as JSON", True)
    assert server.headers == []


@pytest.mark.parametrize(
    ("answer", "stream"),
    [
        (Answer(blocks=[text("A text.")], cut_after=40), False),
        (Answer(blocks=[text("A text.")], cut_after=3), True),
        (Answer(blocks=[text("A text.")], error_after=3), True),
    ],
    ids=["body", "stream", "error in a stream"],
)
async def test_what_broke_off_may_have(answer: Answer, stream: bool) -> None:
    async with talking([answer]) as (_, client):
        found = await run(client, on_text=(lambda _: None) if stream else None)
    assert (found.stop, found.is_usage_whole) == (StopReason.FAILED, False)


async def test_what_was_waited_for_may_have() -> None:
    hold = threading.Event()
    async with talking([Answer(hold=hold)], timeout=0.2) as (_, client):
        found = await run(client)
        hold.set()
    assert (found.stop, found.is_usage_whole) == (StopReason.FAILED, False)


# --- What a server does not know ----------------------------------------------------------------


def without_marks(most: int) -> Any:
    """A compatible server that knows `cache_control` nowhere (0), or only in blocks (1)."""

    def reply(request: dict[str, Any]) -> Any:
        found = "cache_control" in (request if most else str(request))
        said = "cache_control: Extra inputs are not permitted"
        return Failure(status=400, kind="invalid_request_error", message=said) if found else says("Hello.")

    return reply


@pytest.mark.parametrize("most", [0, 1])
async def test_a_server_without_marks_is_asked_once_more_and_so_from_then_on(most: int) -> None:
    async with talking([without_marks(most)] * 5) as (server, client):
        model = AnthropicMessages(client)
        assert [(await run(model, system="Be brief.")).text for _ in range(2)] == ["Hello."] * 2
    assert len(server.requests) == (3 if most else 4)
    assert ("cache_control" in str(server.requests[-1]["system"])) is bool(most)


async def test_a_mark_that_somebody_asked_for_is_not_left_out() -> None:
    async with talking([without_marks(0)] * 5) as (server, client):
        model = AnthropicMessages(client, options={"cache_control": {"type": "ephemeral"}})
        assert (await run(model)).stop is StopReason.FAILED
    assert len(server.requests) == 1


async def test_another_refusal_is_not_taken_for_that() -> None:
    said = "A maximum of 4 blocks with cache_control may be provided. Found 5."
    async with talking([Failure(status=400, message=said), says("never")]) as (server, client):
        assert (await run(client)).stop is StopReason.FAILED
    assert len(server.requests) == 1


def test_a_class_of_ones_own_for_a_cloud_is_that_clouds() -> None:
    class Ours(AsyncAnthropicBedrock):
        pass

    client = Ours(aws_access_key="a", aws_secret_key="b", aws_region="eu-west-1")
    asked = [AnthropicMessages(each)._request([], [], None) for each in (client, AsyncAnthropic(api_key=KEY))]
    assert ["cache_control" in request for request in asked] == [False, True]


async def test_a_model_of_somebody_else_is_explained() -> None:
    missing = Failure(status=404, kind="not_found_error", message="model: gpt-5")
    async with talking([missing, missing]) as (_, client):
        theirs, ours = await run(client, model="gpt-5"), await run(client, model="claude-none")
    assert "Anthropic's API was asked; for models of others give the client of their own SDK" in theirs.detail
    assert "of others" not in ours.detail


async def test_a_long_answer_of_an_old_model_is_streamed_too() -> None:
    async with talking([says("Hello.")]) as (_, client):
        with pytest.raises(ValueError, match="Streaming is required"):
            await client.messages.create(
                model="claude-opus-4-1@20250805",
                max_tokens=10_000,
                messages=[{"role": "user", "content": "Go."}],
            )
        assert (await run(client, model="claude-opus-4-1@20250805", max_tokens=10_000)).text == "Hello."


# --- What it costs ------------------------------------------------------------------------------


async def test_a_price_that_is_not_known_is_said() -> None:
    other = Answer(blocks=[text("Hello.")], model="a-model-of-ours")
    async with talking([other, says("Hello.")]) as (_, client):
        unknown = await run(client, model="a-model-of-ours")
        known = await run(client, limits=AgentLimits(steps=1))
    assert (unknown.is_cost_whole, unknown.is_usage_whole, unknown.usage.cost_usd) == (False, True, 0.0)
    assert known.is_cost_whole
    assert known.usage.cost_usd > 0

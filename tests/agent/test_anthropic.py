"""The Messages API, through the official SDK: what is asked, what is read, and what goes wrong."""

from __future__ import annotations

import base64
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from anthropic import Anthropic, APIStatusError, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI

from mcp_tools import ToolSystem
from mcp_tools.agent.anthropic import AnthropicMessages
from mcp_tools.agent.step import model_for, run_agent_step
from mcp_tools.agent.types import ModelError, Turn
from mcp_tools.observe.cost import cost_of
from mcp_tools.types import MediaContent, TextContent, ToolOutput
from tests.agent.anthropic_server import (
    KEY,
    MODEL,
    Answer,
    AnthropicServer,
    Failure,
    Script,
    asks,
    says,
    text,
    thinking,
    use,
)
from tests.output.pictures import png

PROMPT = "the prompt that nobody else may read"
ASK: list[dict[str, Any]] = [{"role": "user", "content": PROMPT}]
PNG = png()


@asynccontextmanager
async def talking(script: Script, **options: Any) -> AsyncIterator[tuple[AnthropicServer, AsyncAnthropic]]:
    with AnthropicServer(script) as server:
        async with AsyncAnthropic(
            api_key=KEY, base_url=server.url, **{"max_retries": 0, **options}
        ) as client:
            yield server, client
        assert server.refused == []


@pytest.fixture
def tools() -> ToolSystem:
    system = ToolSystem()

    @system.register
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @system.register
    def fail() -> str:
        """Fail."""
        raise ValueError("broken")

    return system


async def turn_of(client: AsyncAnthropic, *, stream: bool = False, **more: Any) -> Turn:
    asked = {"model": MODEL, "max_tokens": 100, "system": None, "on_text": print if stream else None, **more}
    return await AnthropicMessages(client).ask(ASK, [], **asked)


# --- What is read -----------------------------------------------------------------------------


async def test_an_answer_is_the_same_streamed_and_whole() -> None:
    answer = Answer(
        blocks=[
            thinking("First I think about it."),
            text("I add."),
            use("toolu_1", "add", {"a": 1, "b": [2, {"deep": "ünïcode"}]}),
            text("And again."),
            use("toolu_2", "add"),
        ],
        stop="tool_use",
    )
    async with talking([answer, answer]) as (_, client):
        whole, streamed = await turn_of(client), await turn_of(client, stream=True)
    assert whole.texts == streamed.texts == ("I add.", "And again.")
    assert whole.calls == streamed.calls
    (kept,) = whole.messages
    (kept_streamed,) = streamed.messages
    assert [block["type"] for block in kept["content"]] == [
        "thinking",
        "text",
        "tool_use",
        "text",
        "tool_use",
    ]
    assert kept["content"][0] == kept_streamed["content"][0] == thinking("First I think about it.")
    for block, other in zip(kept["content"], kept_streamed["content"], strict=True):
        assert {k: v for k, v in block.items() if v is not None} == other


async def test_two_arguments_suffice(tools: ToolSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    with AnthropicServer([says("Hello.")]) as server:
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        given = [*ASK]
        said, messages = await run_agent_step(given, tools, model=MODEL)
    assert said == "Hello."
    assert given == ASK
    assert [message["role"] for message in messages] == ["user", "assistant"]


async def test_text_is_told_as_it_comes_and_a_broken_listener_breaks_nothing(
    tools: ToolSystem, caplog: pytest.LogCaptureFixture
) -> None:
    pieces: list[str] = []

    async def listen(piece: str) -> None:
        pieces.append(piece)
        raise RuntimeError("the screen is gone")

    async with talking([says("A text of some pieces.")]) as (_, client):
        said, _ = await run_agent_step(ASK, tools, client, MODEL, on_text=listen)
    assert len(pieces) > 1
    assert "".join(pieces) == said == "A text of some pieces."
    assert "the screen is gone" in caplog.text


async def test_results_go_back_in_the_order_of_the_calls_with_failures_flagged(tools: ToolSystem) -> None:
    script = [
        asks(use("t1", "fail"), use("t2", "add", {"a": 1, "b": 2}), use("t3", "ad", {}), use("t4", "add")),
        says("Done."),
    ]
    async with talking(script) as (server, client):
        _, messages = await run_agent_step(ASK, tools, client, MODEL)
        said, messages = await run_agent_step(messages, tools, client, MODEL)
    assert said == "Done."
    broken, sum_, unknown, lacking = server.requests[1]["messages"][-1]["content"]
    assert [block["tool_use_id"] for block in (broken, sum_, unknown, lacking)] == ["t1", "t2", "t3", "t4"]
    assert sum_ == {"type": "tool_result", "tool_use_id": "t2", "content": "3", "is_error": False}
    assert broken["is_error"] is unknown["is_error"] is lacking["is_error"] is True
    assert "add" in unknown["content"]
    assert "a" in lacking["content"]


@pytest.mark.parametrize(
    ("raw", "why"),
    [('{"a": 1', "no valid JSON"), ("[1, 2]", "no JSON object"), ('{"a": NaN, "b": 1}', "no valid JSON")],
)
async def test_arguments_that_are_no_object_are_not_run_and_the_model_is_told(
    tools: ToolSystem, raw: str, why: str
) -> None:
    script = [asks(use("t1", "add", raw=raw)), says("I see.")]
    async with talking(script) as (server, client):
        _, messages = await run_agent_step(ASK, tools, client, MODEL, on_text=print)
        await run_agent_step(messages, tools, client, MODEL)
    (answer,) = server.requests[1]["messages"][-1]["content"]
    assert answer["is_error"] is True
    assert why in answer["content"]


async def test_ids_that_repeat_are_told_apart(tools: ToolSystem) -> None:
    """The API would refuse the history, and an answer could belong to either."""
    script = [
        asks(use("same", "add", {"a": 1, "b": 1}), use("same", "add", {"a": 2, "b": 2})),
        asks(use("same", "add", {"a": 3, "b": 3})),
        says("Done."),
    ]
    async with talking(script) as (server, client):
        messages = ASK
        for _ in script:
            _, messages = await run_agent_step(messages, tools, client, MODEL)
    sent = server.requests[-1]["messages"]
    results = [block for message in sent[2::2] for block in message["content"]]
    assert [block["content"] for block in results] == ["2", "4", "6"]
    assert len({block["tool_use_id"] for block in results}) == 3


async def test_what_the_api_sends_and_then_refuses_is_left_out(tools: ToolSystem) -> None:
    own = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
    cut = Answer(blocks=[text("  "), text("half \ud800"), own, thinking("…")], stop="max_tokens")
    async with talking([cut, says("Done.")]) as (server, client):
        _, messages = await run_agent_step(ASK, tools, client, MODEL, on_text=print)
        again = [*messages, {"role": "user", "content": "Go on."}]
        assert (await run_agent_step(again, tools, client, MODEL))[0] == "Done."
        with pytest.raises(ModelError, match="half a character"):
            await run_agent_step([{"role": "user", "content": "\ud800"}], tools, client, MODEL)
    (kept,) = server.requests[1]["messages"][1]["content"]
    assert kept["text"].startswith("half ")


async def test_an_empty_answer_leaves_a_history_that_can_be_gone_on_with(tools: ToolSystem) -> None:
    async with talking([Answer(), says("Now.")]) as (_, client):
        said, messages = await run_agent_step(ASK, tools, client, MODEL)
        assert (said, messages) == ("", ASK)
        assert (await run_agent_step(messages, tools, client, MODEL))[0] == "Now."


async def test_pictures_go_back_as_pictures(tools: ToolSystem) -> None:
    @tools.register
    def plot() -> ToolOutput:
        """Draw."""
        return ToolOutput(
            content=[
                TextContent(text="two points"),
                MediaContent(data=PNG, media_type="image/jpeg"),  # which it is not
                MediaContent(data=b"no picture", media_type="image/png"),
                MediaContent(data=png(9_000, 20), media_type="image/png"),
            ]
        )

    async with talking([asks(use("t1", "plot")), says("Nice.")]) as (server, client):
        _, messages = await run_agent_step(ASK, tools, client, MODEL)
        await run_agent_step(messages, tools, client, MODEL)
    (answer,) = server.requests[1]["messages"][-1]["content"]
    said, picture, broken, large = answer["content"]
    assert said["text"] == "two points"
    assert picture["source"] == {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(PNG).decode(),
    }
    assert broken["text"] == "[image/png, 10 bytes; not shown: it is no whole PNG, JPEG, GIF or WebP]"
    assert "not shown: it has 9000 x 20 pixels; a side may have 2000" in large["text"]


# --- What is asked ----------------------------------------------------------------------------


async def test_what_stays_the_same_is_marked_for_the_cache(tools: ToolSystem) -> None:
    async with talking([says("a"), says("b"), says("c")]) as (server, client):
        for asked in (client, AnthropicMessages(client, cache=False)):
            await run_agent_step(ASK, tools, asked, MODEL, system="Be brief.")
        own = [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}] * 2
        await run_agent_step([{"role": "user", "content": own}], tools, client, MODEL, system="Be brief.")
    marked, plain, with_own = server.requests
    mark = {"type": "ephemeral"}
    assert [tool.get("cache_control") for tool in marked["tools"]] == [None, mark]
    assert marked["system"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    assert marked["cache_control"] == mark
    assert "cache_control" not in str(plain)
    assert "cache_control" not in with_own


async def test_options_reach_the_request_and_cannot_replace_what_is_ours() -> None:
    async with talking([says("a")]) as (server, client):
        model = AnthropicMessages(client, options={"stop_sequences": ["END"]})
        await model.ask(ASK, [], model=MODEL, max_tokens=5, system=None, on_text=None)
        with pytest.raises(ValueError, match="messages"):
            AnthropicMessages(client, options={"messages": []})
    assert server.requests[0]["stop_sequences"] == ["END"]


async def test_a_long_answer_is_streamed_since_the_sdk_refuses_to_wait_for_it() -> None:
    async with talking([says("a")]) as (server, client):
        with pytest.raises(ValueError, match="Streaming is required"):
            await client.messages.create(model=MODEL, max_tokens=60_000, messages=ASK)  # type: ignore[arg-type]
        assert (await turn_of(client, max_tokens=60_000)).text == "a"
    assert server.requests[0]["stream"] is True


async def test_tokens_read_from_the_cache_are_counted_and_priced_as_such() -> None:
    usage = {
        "input_tokens": 1_000,
        "cache_creation_input_tokens": 4_000,
        "cache_read_input_tokens": 100_000,
        "output_tokens": 500,
    }
    answer = Answer(blocks=[text("a")], usage=usage)
    unknown = Answer(blocks=[text("a")], usage=usage, model="a-name-of-its-own")
    async with talking([answer, answer, unknown]) as (_, client):
        turns = [await turn_of(client), await turn_of(client, stream=True), await turn_of(client)]
    for turn in turns:
        assert (turn.usage.input_tokens, turn.usage.output_tokens) == (105_000, 500)
        # What is written to the cache costs 5/4.
        assert turn.usage.cost_usd == cost_of(MODEL, 106_000, 500, 100_000)


# --- What goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"), [(429, "rate_limit_error"), (529, "overloaded_error"), (500, "api_error")]
)
async def test_errors_have_their_status_and_how_long_to_wait(status: int, kind: str) -> None:
    failure = Failure(status=status, kind=kind, headers={"retry-after": "7"})
    async with talking([failure]) as (_, client):
        with pytest.raises(ModelError, match=f"HTTP {status}, {kind}") as caught:
            await turn_of(client)
    assert (caught.value.status, caught.value.retry_after_s) == (status, 7.0)


async def test_with_a_history_that_is_too_long_to_compare_nothing_is_quoted() -> None:
    failure = Failure(status=400, kind="invalid_request_error", message="prompt is too long")
    async with talking([failure]) as (_, client):
        long = [{"role": "user", "content": "word " * 1_100_000}]
        with pytest.raises(ModelError) as caught:
            await AnthropicMessages(client).ask(
                long, [], model=MODEL, max_tokens=5, system=None, on_text=None
            )
    assert str(caught.value) == "the provider refused the request (HTTP 400, invalid_request_error)"


@pytest.mark.parametrize("stream", [True, False])
async def test_the_sdk_repeats_a_request_by_its_own_policy(stream: bool) -> None:
    script = [Failure(status=529, headers={"retry-after-ms": "1"}), says("Here I am.")]
    async with talking(script, max_retries=1) as (server, client):
        assert (await turn_of(client, stream=stream)).text == "Here I am."
    assert len(server.requests) == 2


async def test_neither_prompt_nor_key_is_in_an_error(tools: ToolSystem) -> None:
    quoting = [
        Failure(status=400, kind="invalid_request_error", message=f"messages.0: bad input {PROMPT!r}"),
        Failure(status=400, kind="invalid_request_error", message=f"the key {KEY} may not do this"),
        Failure(status=400, kind="invalid_request_error", message="assistant or user: text is too long"),
    ]
    async with talking([quoting[0], *quoting]) as (_, client):
        with pytest.raises(APIStatusError, match=PROMPT):  # what the SDK's own error holds
            await client.messages.create(model=MODEL, max_tokens=5, messages=ASK)  # type: ignore[arg-type]
        errors = []
        for _ in quoting:
            with pytest.raises(ModelError) as caught:
                await run_agent_step(ASK, tools, client, MODEL)
            errors.append(caught.value)
    for error in errors:
        assert error.__cause__ is error.__context__ is None
        assert PROMPT not in str(error)
        assert KEY not in str(error)
    assert str(errors[2]).endswith(": assistant or user: text is too long")


@pytest.mark.parametrize("after", [0, 1, 4, 8])
async def test_a_stream_that_is_cut_is_an_error_and_not_an_answer(tools: ToolSystem, after: int) -> None:
    answer = Answer(blocks=[text("I add."), use("t1", "add", {"a": 1, "b": 2})], cut_after=after)
    async with talking([answer, says("not asked again")], max_retries=2) as (server, client):
        with pytest.raises(ModelError, match="did not arrive whole"):
            await run_agent_step(ASK, tools, client, MODEL, on_text=print)
    assert len(server.requests) == 1


async def test_an_error_in_the_middle_of_a_stream_has_its_status() -> None:
    answer = Answer(blocks=[text("I add.")], error_after=3)
    async with talking([answer]) as (_, client):
        with pytest.raises(ModelError, match="overloaded") as caught:
            await turn_of(client, stream=True)
    assert caught.value.status == 529


async def test_a_body_that_is_cut_is_an_error() -> None:
    async with talking([Answer(blocks=[text("A text.")], cut_after=40)]) as (_, client):
        with pytest.raises(ModelError, match="broke off"):
            await turn_of(client)


async def test_a_provider_that_is_not_there_is_an_error() -> None:
    async with AsyncAnthropic(api_key=KEY, base_url="http://127.0.0.1:1", max_retries=0) as client:
        with pytest.raises(ModelError, match="cannot be reached"):
            await turn_of(client)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_slow_answer_ends_with_the_time_limit_of_the_client(stream: bool) -> None:
    hold = threading.Event()
    async with talking([Answer(blocks=[text("late")], hold=hold, held_after=2)], timeout=0.2) as (_, client):
        try:
            with pytest.raises(ModelError, match=r"in time|whole"):
                await turn_of(client, stream=stream)
        finally:
            hold.set()


# --- Clients ----------------------------------------------------------------------------------


async def test_a_synchronous_client_is_refused_in_words(tools: ToolSystem) -> None:
    with Anthropic(api_key=KEY) as client, pytest.raises(TypeError, match=r"anthropic\.AsyncAnthropic"):
        await run_agent_step(ASK, tools, client)


def test_a_client_of_each_sdk_is_recognised() -> None:
    openai = AsyncOpenAI(api_key=KEY)
    assert model_for(openai).api == "openai-responses"
    assert model_for(AsyncAnthropic(api_key=KEY)).api == "anthropic"
    assert model_for(already := model_for(openai)) is already
    with pytest.raises(TypeError, match=r"openai\.AsyncOpenAI"):
        model_for(OpenAI(api_key=KEY))


def test_something_else_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match="str is no client"):
        model_for("http://localhost")


async def test_without_a_key_the_fix_is_said(tools: ToolSystem, tmp_path: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))  # where the SDK looks for profiles
        with pytest.raises(ModelError, match="ANTHROPIC_API_KEY"):
            await run_agent_step(ASK, tools, model=MODEL)


async def test_without_the_sdk_the_fix_is_said(tools: ToolSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with pytest.raises(ModelError, match=r"pip install 'mcp-tools-server\[anthropic\]'"):
        await run_agent_step(ASK, tools)

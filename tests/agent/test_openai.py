"""What both of OpenAI's APIs send, refuse and break off, over the official SDK and a real connection."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from openai import AsyncOpenAI, OpenAI

from mcp_tools.agent.openai import OpenAIChat, OpenAIResponses, model_for
from mcp_tools.agent.types import Api, BadCall, Message, Model, ModelError, OnText, Turn
from mcp_tools.observe.cost import cost_of
from mcp_tools.types import (
    ErrorCode,
    ExecutionResult,
    ExecutionStatus,
    MediaContent,
    TextContent,
    Tool,
    ToolCall,
    ToolOutput,
)
from tests.agent.openai_server import KEY, MODEL, THOUGHT, Answer, Failure, OpenAIServer
from tests.output.pictures import png

PNG = png()
PROMPT = "What is the secret of the pyramids?"
USER: Message = {"role": "user", "content": PROMPT}
APIS: tuple[Api, ...] = ("openai-responses", "openai-chat")
both = pytest.mark.parametrize("api", APIS)
streamed_or_whole = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@asynccontextmanager
async def asking(
    api: Api,
    script: Sequence[Answer | Failure],
    *,
    key: str = KEY,
    lacks: Sequence[str] = (),
    reasons: bool = True,
    timeout_s: float = 10.0,
    retries: int = 0,
) -> AsyncIterator[tuple[Model, OpenAIServer]]:
    with OpenAIServer(script, lacks=lacks, reasons=reasons) as server, anyio.fail_after(20):
        async with AsyncOpenAI(
            api_key=key, base_url=server.url, max_retries=retries, timeout=timeout_s
        ) as client:
            yield model_for(client, api), server


async def ask(
    model: Model,
    messages: Sequence[Message] = (USER,),
    *,
    on_text: OnText | None = None,
    tools: Sequence[Tool] = (),
) -> Turn:
    return await model.ask(messages, tools, model=MODEL, max_tokens=500, system="Be brief.", on_text=on_text)


def hearing(stream: bool) -> tuple[list[str], Callable[[str], None] | None]:
    heard: list[str] = []
    return heard, heard.append if stream else None


@both
@streamed_or_whole
async def test_texts_calls_and_tokens_come_in_order_and_priced(api: Api, stream: bool) -> None:
    calls = [("c1", "add", {"a": 1}), ("c2", "add", {}), ("c3", "add", {"a": "é"})]
    heard, on_text = hearing(stream)
    async with asking(api, [Answer(texts=["I count ", "twice."], calls=calls)]) as (model, _):
        turn = await ask(model, on_text=on_text)
    assert "".join(turn.texts) == "I count twice."
    assert turn.calls == tuple(ToolCall(*call) for call in calls)
    assert (turn.is_cut, turn.model) == (False, MODEL)
    assert (turn.usage.input_tokens, turn.usage.output_tokens) == (100, 10)
    assert turn.usage.cost_usd == cost_of(MODEL, 100, 10, 40)
    assert turn.usage.cost_usd > 0
    assert "".join(heard) == ("I count twice." if stream else "")


@both
@streamed_or_whole
async def test_a_refusal_is_a_text_with_a_reason_and_its_calls_are_not_run(api: Api, stream: bool) -> None:
    heard, on_text = hearing(stream)
    answer = Answer(refusal="I cannot help with that.", calls=[("c1", "add", {})])
    async with asking(api, [answer]) as (model, _):
        turn = await ask(model, on_text=on_text)
    assert (turn.texts, turn.stop) == (("I cannot help with that.",), "refusal")
    assert [type(call) for call in turn.calls] == [BadCall]
    assert "".join(heard) == ("I cannot help with that." if stream else "")


@both
@streamed_or_whole
@pytest.mark.parametrize("arguments", ['{"a": 1', "[1]", '"x"', '{"a": NaN}', "[" * 5_000])
async def test_arguments_that_are_no_object_are_answered_and_the_history_is_taken(
    api: Api, stream: bool, arguments: str
) -> None:
    script = [Answer(calls=[("c1", "add", arguments)]), Answer(texts=["Sorry."])]
    async with asking(api, script) as (model, server):
        turn = await ask(model, on_text=hearing(stream)[1])
        (call,) = turn.calls
        assert isinstance(call, BadCall)
        assert (call.id, call.name) == ("c1", "add")
        await ask(model, [USER, *turn.messages, *model.results(turn, {})])
    assert server.refused == []


@both
@streamed_or_whole
async def test_an_answer_without_room_is_cut(api: Api, stream: bool) -> None:
    reason = "max_output_tokens" if api == "openai-responses" else "length"
    async with asking(api, [Answer(texts=["It is"], reason=reason), Answer(texts=["x"])]) as (model, server):
        turn = await ask(model, on_text=hearing(stream)[1])
        assert (turn.is_cut, turn.stop, turn.text) == (True, reason, "It is")
        await ask(model, [USER, *turn.messages, USER])
    assert server.refused == []


@both
async def test_an_id_that_was_used_before_gets_another_one(api: Api) -> None:
    again = Answer(calls=[("c1", "add", {}), ("c1", "add", {})])
    async with asking(api, [again, again, Answer(texts=["Done."])]) as (model, server):
        history = [USER]
        ids = set()
        for _ in range(2):
            turn = await ask(model, history)
            history += [*turn.messages, *model.results(turn, {})]
            ids |= {call.id for call in turn.calls}
        await ask(model, history)
    assert (len(ids), server.refused) == (4, [])


@both
async def test_a_history_without_an_answer_to_a_call_is_refused_by_the_server(api: Api) -> None:
    async with asking(api, [Answer(calls=[("c1", "add", {})])]) as (model, server):
        turn = await ask(model)
        with pytest.raises(ModelError) as failed:
            await ask(model, [USER, *turn.messages])
    assert failed.value.status == 400
    assert len(server.refused) == 1


@both
@streamed_or_whole
@pytest.mark.parametrize("ends_early", [False, True], ids=["cut", "ended early"])
async def test_an_answer_that_breaks_off_is_an_error(api: Api, stream: bool, ends_early: bool) -> None:
    answer = Answer(texts=["A long text that breaks off."], cut_after=5, ends_early=ends_early)
    async with asking(api, [answer]) as (model, _):
        with pytest.raises(ModelError) as failed:
            await ask(model, on_text=hearing(stream)[1])
    assert PROMPT not in str(failed.value)


@both
async def test_an_error_inside_of_a_stream_is_an_error(api: Api) -> None:
    answer = Answer(texts=["It"], failed=("server_error", "The model failed."))
    async with asking(api, [answer]) as (model, _):
        with pytest.raises(ModelError, match="The model failed") as failed:
            await ask(model, on_text=hearing(True)[1])
    assert failed.value.status == 500


@streamed_or_whole
async def test_a_failure_for_a_reason_that_nobody_knows_is_named(stream: bool) -> None:
    answer = Answer(failed=("vector_store_timeout", "It took too long."))
    async with asking("openai-responses", [answer]) as (model, _):
        with pytest.raises(ModelError, match=r"failed \(vector_store_timeout\): It took too long"):
            await ask(model, on_text=hearing(stream)[1])


@both
@streamed_or_whole
@pytest.mark.parametrize("status", [400, 429, 500])
async def test_a_failure_has_its_status_and_what_to_wait_for(api: Api, stream: bool, status: int) -> None:
    failure = Failure(status=status, message=f"about {PROMPT}", headers={"retry-after": "7"})
    async with asking(api, [failure]) as (model, _):
        with pytest.raises(ModelError) as failed:
            await ask(model, on_text=hearing(stream)[1])
    assert (failed.value.status, failed.value.retry_after_s) == (status, 7.0)
    assert PROMPT not in str(failed.value)
    assert failed.value.__context__ is None


@both
async def test_a_key_that_is_refused_is_not_shown(api: Api) -> None:
    async with asking(api, [], key="sk-another-key-0123456789") as (model, _):
        with pytest.raises(ModelError) as failed:
            await ask(model)
    assert failed.value.status == 401
    assert "another-key" not in str(failed.value)


@both
async def test_a_server_that_is_slow_is_given_up_by_the_sdk(api: Api) -> None:
    hold = threading.Event()
    async with asking(api, [Answer(texts=["x"], hold=hold)], timeout_s=0.3) as (model, _):
        with pytest.raises(ModelError, match="in time"):
            await ask(model)
        hold.set()


@streamed_or_whole
async def test_thoughts_go_back_as_they_came_and_nothing_is_stored(stream: bool) -> None:
    script = [Answer(thoughts=True, calls=[("c1", "add", {})]), Answer(texts=["Done."])]
    async with asking("openai-responses", script) as (model, server):
        turn = await ask(model, on_text=hearing(stream)[1])
        await ask(model, [USER, *turn.messages, *model.results(turn, {})])
    assert server.requests[1]["input"][1] == THOUGHT
    assert all(r["store"] is False for r in server.requests)
    assert server.requests[0]["include"] == ["reasoning.encrypted_content"]
    assert server.requests[0]["instructions"] == "Be brief."


@streamed_or_whole
async def test_what_the_providers_own_tools_did_stays_and_what_nobody_answers_does_not(stream: bool) -> None:
    done = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
    open_call = {"type": "local_shell_call", "id": "ls_1", "call_id": "l1", "status": "in_progress"}
    script = [Answer(items=[done, open_call], texts=["Found."]), Answer(texts=["Done."])]
    async with asking("openai-responses", script) as (model, server):
        turn = await ask(model, on_text=hearing(stream)[1])
        await ask(model, [USER, *turn.messages, USER])
    assert server.refused == []
    assert [item["type"] for item in server.requests[1]["input"][1:-1]] == ["web_search_call", "message"]


async def test_a_thought_that_nothing_follows_is_left_out() -> None:
    script = [Answer(thoughts=True, reason="max_output_tokens")]
    async with asking("openai-responses", script) as (model, _):
        turn = await ask(model)
        assert (turn.messages, turn.is_cut) == ((), True)


async def test_a_model_that_does_not_reason_is_asked_without_thoughts_from_then_on() -> None:
    script = [Answer(texts=["a"]), Answer(texts=["b"])]
    async with asking("openai-responses", script, reasons=False) as (model, server):
        assert [(await ask(model)).text for _ in range(2)] == ["a", "b"]
    assert len(server.refused) == 1


async def test_a_server_of_an_earlier_date_is_asked_as_it_can_be() -> None:
    lacks = ["max_completion_tokens", "stream_options"]
    script = [Answer(texts=["a"]), Answer(texts=["b"])]
    async with asking("openai-chat", script, lacks=lacks) as (model, server):
        turns = [await ask(model, on_text=hearing(True)[1]) for _ in range(2)]
    assert [turn.text for turn in turns] == ["a", "b"]
    assert [request["max_tokens"] for request in server.requests] == [500, 500]
    assert len(server.refused) == 2


@both
async def test_a_picture_goes_back_where_the_api_takes_one_and_a_failure_is_said(api: Api) -> None:
    output = ToolOutput(content=(TextContent(text="A plot:"), MediaContent(data=PNG, media_type="image/png")))
    script = [Answer(calls=[("c1", "plot", {}), ("c2", "plot", {})]), Answer(texts=["Nice."])]
    async with asking(api, script) as (model, server):
        turn = await ask(model)
        good = ExecutionResult(status=ExecutionStatus.SUCCESS, result=output)
        bad = ExecutionResult(status=ExecutionStatus.ERROR, error="no data", error_code=ErrorCode.TOOL_ERROR)
        first, second = model.results(turn, {"c1": good, "c2": bad})
        await ask(model, [USER, *turn.messages, first, second])
    assert server.refused == []
    if api == "openai-chat":
        assert first["content"] == f"A plot:\n[image/png, {len(PNG)} bytes]"
        assert second["content"] == "Error (error): no data"
    else:
        text, image = first["output"]
        assert text == {"type": "input_text", "text": "A plot:"}
        assert image["image_url"].startswith("data:image/png;base64,iVBOR")
        assert second["output"] == "Error (error): no data"


def test_which_api_a_client_is_asked_by() -> None:
    client = AsyncOpenAI(api_key=KEY)
    assert isinstance(model_for(client), OpenAIResponses)
    assert isinstance(model_for(client, "openai-chat"), OpenAIChat)
    with pytest.raises(ValueError, match="no API of OpenAI"):
        model_for(client, "anthropic")
    with pytest.raises(TypeError, match="AsyncOpenAI"):
        model_for(OpenAI(api_key=KEY))


@pytest.mark.parametrize("kind", [OpenAIResponses, OpenAIChat])
def test_an_option_that_is_ours_is_refused(kind: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="model"):
        kind(AsyncOpenAI(api_key=KEY), options={"model": "x"})


@both
async def test_the_retries_are_those_of_the_sdk(api: Api) -> None:
    script = [Failure(status=500, headers={"retry-after-ms": "10"}), Answer(texts=["There."])]
    async with asking(api, script, retries=1) as (model, server):
        assert (await ask(model)).text == "There."
    assert len(server.requests) == 2


async def test_calls_that_share_an_index_in_a_stream_are_told_apart_by_their_ids() -> None:
    calls = [("c1", "add", {"a": 1}), ("c2", "add", {"a": 2})]
    async with asking("openai-chat", [Answer(calls=calls, one_index=True)]) as (model, _):
        turn = await ask(model, on_text=hearing(True)[1])
    assert turn.calls == tuple(ToolCall(*call) for call in calls)


@pytest.mark.parametrize("kind", [OpenAIResponses, OpenAIChat])
async def test_an_option_that_the_sdk_does_not_know_is_a_fault_of_the_program(
    kind: Callable[..., Any],
) -> None:
    async with AsyncOpenAI(api_key=KEY, base_url="http://127.0.0.1:9") as client:
        with pytest.raises(TypeError, match="temprature"):
            await ask(kind(client, options={"temprature": 1}))

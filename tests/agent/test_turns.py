"""Turns that are odd but no fault: empty ones, texts in pieces, a full window, and calls that are stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from mcp_tools import ToolSystem
from mcp_tools.agent.loop import MAX_EMPTY_TURNS, run_agent
from mcp_tools.agent.openai import model_for
from mcp_tools.agent.step import run_agent_step
from mcp_tools.agent.types import AgentLimits, Api, Message, StopReason, Turn
from mcp_tools.types import ToolAnnotations, Usage
from tests.agent import openai_server
from tests.agent.anthropic_server import (
    KEY,
    MODEL,
    Answer,
    AnthropicServer,
    Script,
    asks,
    says,
    text,
    thinking,
    use,
)

GO = {"role": "user", "content": "Go."}
GO_ON = {"role": "user", "content": "Please continue."}


@asynccontextmanager
async def talking(script: Script) -> AsyncIterator[tuple[AnthropicServer, AsyncAnthropic]]:
    with AnthropicServer(script) as server, anyio.fail_after(15):
        async with AsyncAnthropic(api_key=KEY, base_url=server.url, max_retries=0) as client:
            yield server, client
        assert server.refused == []


@pytest.fixture
def tools() -> ToolSystem:
    system = ToolSystem()

    @system.register
    async def note() -> str:
        """Note something."""
        return "noted"

    return system


# --- Empty turns --------------------------------------------------------------------------------


async def test_after_an_empty_turn_the_model_is_asked_to_go_on_and_that_stays_with_its_answer(
    tools: ToolSystem,
) -> None:
    script = [asks(use("c1", "note")), Answer(), asks(use("c2", "note")), says("Done.")]
    async with talking(script) as (server, client):
        run = await run_agent("Go.", tools, client=client, model=MODEL)
    assert (run.stop, run.text, run.steps) == (StopReason.FINISHED, "Done.", 4)
    first, second, after_empty, last = (request["messages"] for request in server.requests)
    assert (first, second[-1]["role"]) == ([GO], "user")
    assert after_empty == [*second, GO_ON]
    # What the provider has in its cache goes on as it was.
    assert last[: len(after_empty)] == after_empty
    assert run.messages.count(GO_ON) == 1


async def test_where_nothing_comes_the_request_to_go_on_is_forgotten(tools: ToolSystem) -> None:
    async with talking([Answer() for _ in range(9)]) as (server, client):
        run = await run_agent("Go.", tools, client=client, model=MODEL)
    assert (run.stop, run.messages) == (StopReason.SILENT, [GO])
    assert [request["messages"] for request in server.requests] == [
        [GO],
        *[[GO, GO_ON]] * (MAX_EMPTY_TURNS - 1),
    ]


@pytest.mark.parametrize("api", ["openai-responses", "openai-chat"])
async def test_so_it_is_with_openai(tools: ToolSystem, api: Api) -> None:
    script = [openai_server.Answer(), openai_server.Answer(texts=["Done."])]
    with openai_server.OpenAIServer(script) as server, anyio.fail_after(15):
        async with AsyncOpenAI(api_key=KEY, base_url=server.url, max_retries=0) as client:
            run = await run_agent("Go.", tools, client=model_for(client, api), model=openai_server.MODEL)
    assert (run.text, run.messages[:2], server.refused) == ("Done.", [GO, GO_ON], [])


# --- Texts --------------------------------------------------------------------------------------


async def test_a_sentence_that_citations_divide_is_one_and_other_blocks_divide_lines(
    tools: ToolSystem,
) -> None:
    blocks = [text("According to "), text("Bob"), text(", it is 42."), thinking("Is it?"), text("It is.")]
    for stream in (True, False):
        heard: list[str] = []
        async with talking([Answer(blocks=blocks)]) as (_, client):
            said, _ = await run_agent_step(
                [GO], tools, client, MODEL, on_text=heard.append if stream else None
            )
        assert said == "According to Bob, it is 42.\nIt is."
        assert "".join(heard) == (said if stream else "")


# --- Ends ---------------------------------------------------------------------------------------


async def test_a_context_window_that_is_full_ends_it_at_once(tools: ToolSystem) -> None:
    full = "model_context_window_exceeded"
    async with talking([Answer(blocks=[use("c1", "note")], stop=full), says("never")]) as (server, client):
        run = await run_agent("Go.", tools, client=client, model=MODEL)
    assert (run.stop, run.detail) == (StopReason.CUT, "the model's context window is full")
    assert len(server.requests) == 1
    async with talking([Answer(blocks=[text("Half a")], stop=full)]) as (_, client):
        run = await run_agent("Go.", tools, client=client, model=MODEL)
    assert "did not fit into its context window" in run.detail


async def test_a_tool_of_the_provider_that_ours_hold_up_keeps_its_call() -> None:
    tools = ToolSystem()

    @tools.register
    async def note() -> str:
        """Note something."""
        return "noted"

    own = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    script = [
        Answer(blocks=[own, use("c1", "note")], stop="tool_use"),
        Answer(blocks=[found, text("Found.")]),
    ]
    async with talking(script) as (server, client):
        run = await run_agent("Go.", tools, client=client, model=MODEL)
    assert run.text == "Found."
    assert server.requests[1]["messages"][1]["content"][0]["id"] == "srvtoolu_1"


async def test_a_call_that_only_reads_is_not_said_to_have_done_a_part() -> None:
    tools = ToolSystem()
    scope = anyio.CancelScope()
    begun: list[str] = []

    async def wait(name: str) -> str:
        begun.append(name)
        if len(begun) == 2:
            scope.cancel()
        await anyio.sleep_forever()
        return name

    @tools.register(annotations=ToolAnnotations(read_only_hint=True))
    async def look() -> str:
        """Look."""
        return await wait("look")

    @tools.register
    async def change() -> str:
        """Change."""
        return await wait("change")

    async with talking([asks(use("c1", "look"), use("c2", "change"))]) as (_, client):
        run = await run_agent("Go.", tools, client=client, model=MODEL, scope=scope)
    (_, looked), (_, changed) = run.results
    assert looked.error == "stopped while it ran, which changes nothing: the run was interrupted"
    assert "part of it may have happened" in str(changed.error)
    assert looked.duration_ms > 0


class Scripted:
    """A model of a program's own: turns that this API's servers cannot be asked for."""

    api: Api = "anthropic"

    def __init__(self, *turns: tuple[str, str]) -> None:
        self._turns = list(turns)
        self.asked: list[list[Message]] = []

    async def ask(self, messages: Sequence[Message], tools: object, **_: object) -> Turn:
        self.asked.append(list(messages))
        words, stop = self._turns.pop(0)
        block = {"type": "text", "text": words} if words else {"type": "server_tool_use", "id": "s"}
        said = {"role": "assistant", "content": [block]}
        is_kept = bool(words) or stop == "pause_turn"
        return Turn(
            texts=(words,) if words else (),
            calls=(),
            messages=(said,) if is_kept else (),
            stop=stop,
            is_cut=False,
            model="m",
            usage=Usage(calls=0),
        )

    def results(self, *_: object) -> tuple[Message, ...]:
        return ()


@pytest.mark.parametrize(
    ("turns", "stop"),
    [
        ((("", "pause_turn"), ("", "end_turn"), ("", "pause_turn")), StopReason.STEPS),
        ((("", "end_turn"), ("", "pause_turn")), StopReason.STEPS),
        ((("", "pause_turn"), ("No.", "refusal")), StopReason.REFUSED),
    ],
    ids=["an empty turn in a pause", "a pause after an empty turn", "a refusal after a pause"],
)
async def test_what_only_paused_leaves_nothing_behind(
    turns: tuple[tuple[str, str], ...], stop: StopReason
) -> None:
    model = Scripted(*turns)
    limits = AgentLimits(steps=len(turns))
    run = await run_agent("Go.", ToolSystem(), client=model, model="m", limits=limits)
    assert (run.stop, run.messages) == (stop, [GO])
    for request in model.asked:  # nobody speaks between a pause and what goes on
        paused = [at for at, message in enumerate(request) if "server_tool_use" in str(message)]
        assert all(message["role"] != "user" for message in request[min(paused, default=len(request)) :])

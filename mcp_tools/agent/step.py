"""One turn: a model answers once, and the tools it asked for are run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from mcp_tools.agent.asking import base_names, is_async_client
from mcp_tools.agent.calls import Calls, Tools
from mcp_tools.agent.telemetry import told
from mcp_tools.agent.types import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_MODEL,
    Confirm,
    Message,
    Model,
    ModelError,
    OnCall,
    OnProgress,
    OnResult,
    OnText,
)
from mcp_tools.types import CallContext


async def run_agent_step(
    messages: Sequence[Message],
    tools_system: Tools,
    client: Any = None,
    model: str = DEFAULT_MODEL,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    *,
    system: str | None = None,
    confirm: Confirm | None = None,
    on_text: OnText | None = None,
    on_call: OnCall | None = None,
    on_result: OnResult | None = None,
    on_progress: OnProgress | None = None,
    context: CallContext | Mapping[str, Any] | None = None,
) -> tuple[str, list[Message]]:
    """Have a model answer once, run the tools that it asked for, and return its text and the new history.

    Args:
        messages: The history in the provider's form. It is not changed.
        tools_system: A `ToolSystem`: its visible tools are offered, and its rules and limits hold.
        client: See `model_for`. None: Anthropic's, with the key in ANTHROPIC_API_KEY.
        model: By the provider's name.
        max_tokens: Of the answer.
        system: Instructions that stand before the history.
        confirm: Puts a question to a person; only `True` is a yes. None: as `tools_system` was told; where
            that was nothing, a call that needs a yes is not run, and the model is told so.
        on_text: Told of the text as it comes; with None the answer is not streamed.
        on_call, on_result, on_progress: Told of each call as it starts and ends, and of how far it is.
        context: Principal, session and the like for all calls.
    Returns:
        All text of the answer, and the history with the answer and the results of its calls. An answer
        without any content adds nothing, since a provider refuses a history with an empty message. After an
        answer with calls the model waits for the next step.
    Raises:
        ModelError: The model could not be asked. Nothing was run.
        TypeError: `client` is none that can be used, or `messages` are no list of messages.
        ValueError: There are no messages.
    Cancelling it cancels the calls that run. It has no limit of time of its own, and the SDKs wait as long
    as a provider asks them to: put `anyio.move_on_after` around it, or use `run_agent`.
    """
    given = history_of(messages)
    async with model_of(client) as asked:
        turn = await told(
            asked,
            given,
            tools_system.executor.visible_tools(),
            model=model,
            max_tokens=max_tokens,
            system=system,
            on_text=on_text,
        )
    history = [*given, *turn.messages]
    if turn.calls:
        calls = Calls(
            turn,
            tools_system,
            confirm=confirm,
            on_call=on_call,
            on_result=on_result,
            on_progress=on_progress,
            context=context,
        )
        await calls.run()
        history.extend(asked.results(turn, calls.results))
    return turn.text, history


def history_of(given: str | Sequence[Message]) -> list[Message]:
    """Return a history of one's own: the one given, or one that begins with a prompt.

    Raises:
        TypeError: It is neither a text nor a list of messages.
        ValueError: There is nothing in it.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}] if given.strip() else []
    elif isinstance(given, bytes | Mapping) or not all(isinstance(message, Mapping) for message in given):
        raise TypeError("messages are a text, or a list of messages in the provider's form")
    if not given:
        raise ValueError("there is nothing to ask: the messages are empty")
    return list(given)


def model_for(client: Any) -> Model:
    """Return what asks a model through this client.

    Args:
        client: An asynchronous client of the Anthropic or the OpenAI SDK (for the latter, its Responses API
            is used; for Chat Completions give `OpenAIChat(client)`), or a `Model`.
    Raises:
        TypeError: It is none of these, or a synchronous client.
    """
    if all(hasattr(client, name) for name in ("api", "ask", "results")):
        return cast(Model, client)
    for library in ("anthropic", "openai"):
        if f"{library}.SyncAPIClient" in base_names(client):
            name = type(client).__name__
            raise TypeError(
                f"{name} is a synchronous client, which would block every call that runs beside it; give the "
                f"asynchronous one, {library}.Async{name}"
            )
    if is_async_client(client, "anthropic"):
        from mcp_tools.agent.anthropic import AnthropicMessages

        return AnthropicMessages(client)
    if is_async_client(client, "openai"):
        from mcp_tools.agent.openai import OpenAIResponses

        return OpenAIResponses(client)
    raise TypeError(
        f"{type(client).__name__} is no client that can be used; give anthropic.AsyncAnthropic(), "
        "openai.AsyncOpenAI() or a Model"
    )


@asynccontextmanager
async def model_of(client: Any) -> AsyncIterator[Model]:
    """Give `model_for(client)`; where there is no client, one is made and closed again."""
    if client is not None:
        yield model_for(client)
        return
    try:
        from anthropic import AsyncAnthropic
    except ImportError:
        raise ModelError(
            "the Anthropic SDK is not installed; run: pip install 'mcp-tools-server[anthropic]'"
        ) from None
    from anthropic import DefaultAsyncHttpxClient

    # A redirect would carry the prompt to another host.
    async with AsyncAnthropic(http_client=DefaultAsyncHttpxClient(follow_redirects=False)) as own:
        yield model_for(own)

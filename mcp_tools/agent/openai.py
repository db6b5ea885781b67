"""OpenAI's Responses API, behind an asynchronous client of its own SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_tools.agent.answers import (
    BROKEN_OFF,
    Room,
    as_text,
    call_from,
    encodable_data,
    fresh_id,
    observed,
    seen,
    sendable_name,
    usage_of,
)
from mcp_tools.agent.asking import guarded, is_async_client, own_options
from mcp_tools.agent.calls import RUN
from mcp_tools.agent.failures import Told
from mcp_tools.agent.history import SentPictures
from mcp_tools.agent.openai_chat import ID, OpenAIChat, keys_of
from mcp_tools.agent.pictures import Picture
from mcp_tools.agent.types import Api, BadCall, Message, Model, ModelError, OnText, Turn
from mcp_tools.calling import tell
from mcp_tools.types import ExecutionResult, Tool, ToolCall

__all__ = ["OpenAIChat", "OpenAIResponses", "model_for"]

_REASONING: Final = "reasoning.encrypted_content"
_FINISHED: Final = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call"}
)
"""Items of the provider's own tools, which it runs itself."""
_TAKEN: Final = ("model", "input", "instructions", "tools", "max_output_tokens", "stream", "store", "include")


class OpenAIResponses:
    """Asks OpenAI's models by the Responses API. Nothing depends on what the provider stores.

    Args:
        client: The SDK's `AsyncOpenAI`. Its own retries and time limits hold; it is not closed.
        images: Whether pictures of results go back as pictures; False for a model that takes none.
        options: Further fields of each request, such as `reasoning` or `prompt_cache_key`.
    Raises:
        ValueError: `options` has a field that is ours.
    """

    api: Api = "openai-responses"

    def __init__(self, client: Any, *, images: bool = True, options: Mapping[str, Any] | None = None) -> None:
        self._client = client
        self._images = images
        self._options = own_options(options, _TAKEN)
        self._unreasoning: set[str] = set()
        self._pictures = SentPictures()

    async def ask(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        *,
        model: str,
        max_tokens: int,
        system: str | None,
        on_text: OnText | None,
    ) -> Turn:
        """Have the model answer once; see `Model`."""
        request: dict[str, Any] = {
            **self._options,
            "model": model,
            "max_output_tokens": max_tokens,
            "store": False,
        }
        if tools:
            request["tools"] = [_described(tool) for tool in tools]
        if system:
            request["instructions"] = system

        async def work() -> Turn:
            answer = await self._pictures.asked(
                messages, lambda sent: self._answer({**request, "input": sent}, on_text)
            )
            return await _turn(answer, messages, asked=model)

        return await guarded(work, keys=keys_of(self._client), messages=messages, system=system)

    def results(self, turn: Turn, results: Mapping[str, ExecutionResult]) -> tuple[Message, ...]:
        """Render the results of a turn's calls; see `Model`. A failure begins with `Error`."""
        render = seen if self._images else observed
        answers: dict[str, Message] = {}
        for call in turn.calls:
            if call.id not in answers:
                content = render(results.get(call.id))
                output = content if isinstance(content, str) else [_part(piece) for piece in content]
                answers[call.id] = {"type": "function_call_output", "call_id": call.id, "output": output}
        return tuple(answers.values())

    async def _answer(self, request: Mapping[str, Any], on_text: OnText | None) -> dict[str, Any]:
        model = request["model"]
        if model in self._unreasoning:
            return await self._once(request, on_text)
        try:
            return await self._once({**request, "include": [_REASONING]}, on_text)
        except Exception as error:
            # Models that do not reason refuse to be asked for it.
            if getattr(error, "status_code", None) != 400 or "ncrypted content" not in str(error):
                raise
        answer = await self._once(request, on_text)
        self._unreasoning.add(model)
        return answer

    async def _once(self, request: Mapping[str, Any], on_text: OnText | None) -> dict[str, Any]:
        answer = await self._received(request, on_text)
        if (answer.get("status") or "completed") not in ("completed", "incomplete"):
            raise Told(answer.get("error") or {"code": "server_error"})
        return answer

    async def _received(self, request: Mapping[str, Any], on_text: OnText | None) -> dict[str, Any]:
        if on_text is None:
            whole = await self._client.responses.create(**request)
            return dict(whole.to_dict(mode="python", warnings=False))
        items: dict[int, dict[str, Any]] = {}
        last: dict[str, Any] | None = None
        room = Room()
        events = await self._client.responses.create(**request, stream=True)
        async with events:
            async for raw in events:
                event = raw.to_dict(mode="python", warnings=False)
                match event.get("type"):
                    case "response.output_text.delta" | "response.refusal.delta":
                        if piece := room.take(event["delta"]):
                            await tell(on_text, piece, unaffected=RUN)
                    case "response.function_call_arguments.delta" | "response.reasoning_summary_text.delta":
                        room.take(event["delta"])
                    case "response.output_item.done":
                        items[event["output_index"]] = event["item"]
                    case "response.completed" | "response.incomplete" | "response.failed":
                        last = event["response"]
                    case "error":
                        raise Told(event)
        if last is None:
            raise ModelError(BROKEN_OFF)
        # Some servers leave out of the last event what they have sent before.
        return {**last, "output": last.get("output") or [items[index] for index in sorted(items)]}


def model_for(client: Any, api: Api | None = None) -> Model:
    """Return what asks a model through a client of the OpenAI SDK.

    Args:
        client: An `AsyncOpenAI`, or one of its classes for clouds.
        api: `openai-responses` or `openai-chat`; the latter for servers that speak only Chat Completions.
            None: the Responses API.
    Raises:
        TypeError: `client` is none that can be used.
        ValueError: `api` is not one of OpenAI's.
    """
    if not is_async_client(client, "openai"):
        raise TypeError(f"{type(client).__name__} is no client that can be used; give openai.AsyncOpenAI()")
    match api:
        case None | "openai-responses":
            return OpenAIResponses(client)
        case "openai-chat":
            return OpenAIChat(client)
    raise ValueError(f"{api!r} is no API of OpenAI; use 'openai-responses' or 'openai-chat'")


def _described(tool: Tool) -> dict[str, Any]:
    # Not strict: a strict schema must require every field, which the registry's do not.
    return {"type": "function", **tool.to_api_format("openai")["function"], "strict": False}


async def _turn(answer: Mapping[str, Any], messages: Sequence[Message], *, asked: str) -> Turn:
    status = answer.get("status") or "completed"
    reason = (answer.get("incomplete_details") or {}).get("reason")
    output = [encodable_data(item) for item in answer.get("output") or ()]
    said = [item for item in output if item.get("type") == "message" and item.get("role") == "assistant"]
    parts = [part for item in said for part in item.get("content") or ()]
    statuses = {item.get("status") for item in output if item.get("type") == "function_call"}
    is_cut = (status == "incomplete" and reason != "content_filter") or bool(
        statuses - {None, "completed"}  # some servers say it of the call only
    )
    is_refusal = any(part.get("type") == "refusal" for part in parts)
    stop = "refusal" if is_refusal or reason == "content_filter" else str(reason or status)
    used = {str(item["call_id"]) for item in messages if item.get("type") == "function_call"}
    calls: list[ToolCall | BadCall] = []
    kept: list[Message] = []
    for item in output:
        if item.get("type") == "function_call":
            call = call_from(
                fresh_id(item.get("call_id"), used, allowed=ID, prefix="call"),
                str(item.get("name", "")),
                item.get("arguments") or "{}",
                is_refusal=is_refusal or reason == "content_filter",
            )
            calls.append(call)
            # What cannot be read is sent back as an empty object; its answer says what was wrong.
            readable = item.get("arguments") if isinstance(call, ToolCall) else None
            name = sendable_name(call.name)
            kept.append({**item, "call_id": call.id, "name": name, "arguments": as_text(readable)})
        elif _is_taken_back(item):
            kept.append(item)
    # A thought that nothing follows, as in an answer that was cut off, is refused in a history.
    while kept and kept[-1].get("type") == "reasoning":
        kept.pop()
    counted = answer.get("usage") or {}
    cached = (counted.get("input_tokens_details") or {}).get("cached_tokens")
    model = str(answer.get("model") or asked)
    texts = (part.get("text") or part.get("refusal") for part in parts)
    return Turn(
        texts=tuple(text for text in texts if text and isinstance(text, str)),
        calls=tuple(calls),
        messages=tuple(kept),
        stop=stop,
        is_cut=is_cut,
        model=model,
        usage=await usage_of(
            counted.get("input_tokens"),
            counted.get("output_tokens"),
            cached=cached,
            names=(model, asked),
        ),
    )


def _is_taken_back(item: Mapping[str, Any]) -> bool:
    """Whether the API takes an item of an answer in a history; none may speak for the owner there."""
    match item.get("type"):
        case "message":
            return item.get("role") == "assistant" and bool(item.get("content"))
        case "reasoning":
            # Without its content a thought is only an id, which the provider has not stored.
            return bool(item.get("encrypted_content"))
        case str(kind):
            # Calls of tools that somebody else would have to run have no result here.
            return kind in _FINISHED
    return False


def _part(piece: str | Picture) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "input_text", "text": piece}
    return {"type": "input_image", "image_url": piece.url, "detail": "auto"}

"""Chat Completions: OpenAI's, and that of the many servers that speak it too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from mcp_tools.agent.answers import (
    BROKEN_OFF,
    Room,
    as_text,
    call_from,
    encodable_data,
    fresh_id,
    observed,
    sendable_name,
    usage_of,
)
from mcp_tools.agent.asking import guarded, is_refused, own_options
from mcp_tools.agent.calls import RUN
from mcp_tools.agent.types import Api, BadCall, Message, ModelError, OnText, Turn
from mcp_tools.calling import tell
from mcp_tools.types import ExecutionResult, Tool, ToolCall

LimitField = Literal["max_completion_tokens", "max_tokens"]
ID: Final = re.compile(r"[!-~]{1,256}")
"""Of a call: other servers than OpenAI's make up ids of their own, and want them back."""
_NEW: Final = "max_completion_tokens"
_OLD: Final = "max_tokens"
_STREAM_OPTIONS: Final = "stream_options"
_TAKEN: Final = ("model", "messages", "tools", "stream", _STREAM_OPTIONS, _NEW, _OLD, "n")


def keys_of(client: Any) -> dict[str, object]:
    """Return what no error may hold, by the variable that it usually comes from."""
    return {"OPENAI_API_KEY": getattr(client, "api_key", None)}


class OpenAIChat:
    """Asks a model by Chat Completions.

    Args:
        client: The SDK's `AsyncOpenAI`. Its own retries and time limits hold; it is not closed.
        limit_field: How the server calls the limit of an answer. A server that refuses
            `max_completion_tokens` is asked with `max_tokens` from then on; for one that ignores it, give
            `max_tokens`.
        options: Further fields of each request, such as `temperature`.
    Raises:
        ValueError: `options` has a field that is ours.
    """

    api: Api = "openai-chat"

    def __init__(
        self, client: Any, *, limit_field: LimitField = _NEW, options: Mapping[str, Any] | None = None
    ) -> None:
        self._client = client
        self._options = own_options(options, _TAKEN)
        self._limit_field = limit_field
        self._counts_streams = True

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
        first = [{"role": "system", "content": system}] if system else []
        request: dict[str, Any] = {**self._options, "model": model, "messages": [*first, *messages]}
        if tools:
            request["tools"] = [tool.to_api_format("openai") for tool in tools]

        async def work() -> Turn:
            answer = await self._answer(request, max_tokens, on_text)
            return await _turn(answer, messages, asked=model)

        return await guarded(work, keys=keys_of(self._client), messages=messages, system=system)

    def results(self, turn: Turn, results: Mapping[str, ExecutionResult]) -> tuple[Message, ...]:
        """Render the results of a turn's calls; see `Model`. A failure begins with `Error`, and a picture is
        a line that says what it is: a `tool` message holds only text.
        """
        seen: dict[str, Message] = {}
        for call in turn.calls:
            content = observed(results.get(call.id))
            seen.setdefault(call.id, {"role": "tool", "tool_call_id": call.id, "content": content})
        return tuple(seen.values())

    async def _answer(
        self, request: Mapping[str, Any], max_tokens: int, on_text: OnText | None
    ) -> dict[str, Any]:
        field, counts = self._limit_field, self._counts_streams
        while True:
            full = {**request, field: max_tokens}
            if on_text is not None:
                full["stream"] = True
                if counts:
                    full[_STREAM_OPTIONS] = {"include_usage": True}
            try:
                answer = await self._once(full, on_text)
            except Exception as error:
                if field == _NEW and is_refused(error, _NEW):
                    field = _OLD
                elif _STREAM_OPTIONS in full and is_refused(error, _STREAM_OPTIONS):
                    counts = False
                else:
                    raise
            else:
                self._limit_field, self._counts_streams = field, counts
                return answer

    async def _once(self, request: Mapping[str, Any], on_text: OnText | None) -> dict[str, Any]:
        got = await self._client.chat.completions.create(**request)
        if on_text is None:
            return dict(got.to_dict(mode="python", warnings=False))
        answer = _StreamedAnswer()
        async with got:
            async for chunk in got:
                await answer.add(chunk.to_dict(mode="python", warnings=False), on_text)
        return answer.whole()


class _StreamedAnswer:
    """An answer as it comes in chunks; what has no reason to end is no answer."""

    def __init__(self) -> None:
        self._room = Room()
        self._texts: dict[str, list[str]] = {}
        self._calls: list[dict[str, Any]] = []
        self._at: dict[int, dict[str, Any]] = {}
        self._stop: str | None = None
        self._model: str | None = None
        self._usage: Mapping[str, Any] = {}

    async def add(self, chunk: Mapping[str, Any], on_text: OnText | None) -> None:
        self._model = chunk.get("model") or self._model
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue  # only one was asked for
            self._stop = self._stop or choice.get("finish_reason")
            delta = choice.get("delta") or {}
            for field in ("content", "refusal", "reasoning_content"):
                if delta.get(field):
                    self._texts.setdefault(field, []).append(self._room.take(delta[field]))
                    if field != "reasoning_content":
                        await tell(on_text, delta[field], unaffected=RUN)
            for piece in delta.get("tool_calls") or ():
                self._add_call(piece)

    def whole(self) -> dict[str, Any]:
        """Return the answer, as if it had not been streamed."""
        if self._stop is None:
            raise ModelError(BROKEN_OFF)
        calls = [
            {**call, "function": {"name": call["name"], "arguments": "".join(call["pieces"])}}
            for call in self._calls
        ]
        message = {name: "".join(texts) for name, texts in self._texts.items()}
        choice = {"finish_reason": self._stop, "message": {**message, "tool_calls": calls}}
        return {"model": self._model, "usage": self._usage, "choices": [choice]}

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        function = piece.get("function") or {}
        given, index = piece.get("id"), piece.get("index")
        index = index if isinstance(index, int) else (len(self._calls) if given else len(self._calls) - 1)
        call = self._at.get(index)
        # Some servers give each call of an answer the same index; another id is another call.
        if call is None or (given and call["id"] and given != call["id"]):
            call = {"id": given, "name": "", "pieces": []}
            self._at[index] = call
            self._calls.append(call)
        call["id"] = call["id"] or given
        call["name"] = call["name"] or function.get("name") or ""
        call["pieces"].append(self._room.take(function.get("arguments") or ""))


async def _turn(answer: Mapping[str, Any], messages: Sequence[Message], *, asked: str) -> Turn:
    choices = answer.get("choices")
    if not choices:
        raise ModelError("the answer could not be read: it has no choices")
    message = encodable_data(choices[0]["message"])
    reason = choices[0].get("finish_reason")
    refusal = _text(message.get("refusal"))
    used = {str(call["id"]) for given in messages for call in given.get("tool_calls") or ()}
    calls: list[ToolCall | BadCall] = []
    sent_back: list[dict[str, Any]] = []
    for given in message.get("tool_calls") or ():
        function = given.get("function") or {}
        name, arguments = str(function.get("name") or ""), function.get("arguments")
        is_refusal = bool(refusal) or reason == "content_filter"
        call_id = fresh_id(given.get("id"), used, allowed=ID, prefix="call")
        # Nothing at all is how some servers send a call without arguments.
        call = call_from(call_id, name, arguments or "{}", is_refusal=is_refusal)
        calls.append(call)
        # What cannot be read is sent back as an empty object: servers read it to fill their templates.
        readable = arguments if isinstance(call, ToolCall) else None
        called = {"name": sendable_name(name), "arguments": as_text(readable)}
        sent_back.append({"id": call.id, "type": "function", "function": called})
    content = _text(message.get("content"))
    kept: Message = {"role": "assistant", "content": content or None}
    if refusal:
        kept["refusal"] = refusal
    if sent_back:
        kept["tool_calls"] = sent_back
        # Some servers want the thoughts before a call back; OpenAI's sends none.
        if message.get("reasoning_content"):
            kept["reasoning_content"] = message["reasoning_content"]
    counted = answer.get("usage") or {}
    cached = (counted.get("prompt_tokens_details") or {}).get("cached_tokens")
    model = str(answer.get("model") or asked)
    texts = tuple(text for text in (content, refusal) if text)
    return Turn(
        texts=texts,
        calls=tuple(calls),
        messages=(kept,) if texts or sent_back else (),
        stop="refusal" if refusal or reason == "content_filter" else str(reason) if reason else None,
        is_cut=reason == "length",
        model=model,
        usage=await usage_of(
            counted.get("prompt_tokens"),
            counted.get("completion_tokens"),
            cached=cached,
            names=(model, asked),
        ),
    )


def _text(content: object) -> str:
    """Return a message's text; some servers send it in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""

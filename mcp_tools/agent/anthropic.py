"""Anthropic's Messages API, behind an asynchronous client of its own SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_tools.agent.answers import usage_of
from mcp_tools.agent.anthropic_blocks import StreamedAnswer, answer_blocks, calls_in, result_block, texts_in
from mcp_tools.agent.asking import guarded, is_refused, own_options
from mcp_tools.agent.history import SentPictures
from mcp_tools.agent.types import Api, Message, OnText, Turn
from mcp_tools.types import ExecutionResult, Tool, Usage

MAX_TOKENS_WHOLE: Final = 8_192
"""The SDK refuses to wait for a longer answer of some models that is not streamed."""
_TAKEN: Final = ("model", "messages", "system", "tools", "max_tokens", "stream")
_WHERE: Final = "Anthropic's API was asked; for models of others give the client of their own SDK"
_CACHED: Final = {"type": "ephemeral"}
_MAX_MARKS: Final = 4
"""More are refused."""
_CUT: Final = frozenset({"max_tokens", "model_context_window_exceeded"})


class AnthropicMessages:
    """Asks Claude models.

    Args:
        client: The SDK's `AsyncAnthropic`, also one for a cloud's platform. Its own retries and time
            limits hold; it is not closed.
        cache: Marks what stays the same between turns, so that the provider keeps it and charges less for
            it: the tools, the system text and, where the API does so by itself, the history.
        options: Further fields of each request, such as `thinking` or `stop_sequences`.
    Raises:
        ValueError: `options` has a field that is ours.
    """

    api: Api = "anthropic"

    def __init__(self, client: Any, *, cache: bool = True, options: Mapping[str, Any] | None = None) -> None:
        self._client = client
        self._cache = cache
        self._options = own_options(options, _TAKEN)
        self._pictures = SentPictures()
        # The platforms of clouds do not mark a history by themselves, and refuse the field.
        self._marks_history = not any(
            base.__module__.startswith("anthropic.lib.") for base in type(client).__mro__
        )

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
        fields = {"model": model, "max_tokens": max_tokens}
        is_streamed = on_text is not None or max_tokens > MAX_TOKENS_WHOLE

        async def ask_with(sent: Sequence[Message]) -> dict[str, Any]:
            request = self._request(sent, tools, system) | fields
            try:
                return await self._once(request, on_text, is_streamed=is_streamed)
            except Exception as error:
                if not self._is_unmarked_for(error, request):
                    raise
            return await ask_with(sent)

        async def work() -> Turn:
            return await self._turn(await self._pictures.asked(messages, ask_with), messages, asked=model)

        keys = {
            "ANTHROPIC_API_KEY": getattr(self._client, "api_key", None),
            "ANTHROPIC_AUTH_TOKEN": getattr(self._client, "auth_token", None),
        }
        where = "" if "claude" in model else _WHERE
        return await guarded(work, keys=keys, messages=messages, system=system, where=where)

    def results(self, turn: Turn, results: Mapping[str, ExecutionResult]) -> tuple[Message, ...]:
        """Render the results of a turn's calls as one message; see `Model`."""
        seen: dict[str, dict[str, Any]] = {}
        for call in turn.calls:
            if call.id not in seen:
                seen[call.id] = result_block(call.id, results.get(call.id))
        return ({"role": "user", "content": list(seen.values())},) if seen else ()

    def _request(
        self, messages: Sequence[Message], tools: Sequence[Tool], system: str | None
    ) -> dict[str, Any]:
        request: dict[str, Any] = {**self._options, "messages": list(messages)}
        described = [tool.to_api_format("anthropic") for tool in tools]
        if described:
            request["tools"] = described
        if system:
            request["system"] = [{"type": "text", "text": system}]
        if self._cache:
            theirs = _marks_in(messages)
            room = _MAX_MARKS - theirs
            for marked in (request.get("system", []), described):
                if marked and room > 0:
                    marked[-1] = {**marked[-1], "cache_control": _CACHED}
                    room -= 1
            # A history with marks of its own needs none of ours.
            if self._marks_history and not theirs:
                request.setdefault("cache_control", _CACHED)
        return request

    def _is_unmarked_for(self, error: Exception, request: Mapping[str, Any]) -> bool:
        """Mark less from now on where a server does not know the marks; False: that is not the reason."""
        if not is_refused(error, "cache_control") or "cache_control" in self._options:
            return False
        if "cache_control" in request:
            self._marks_history = False
            return True
        marked = any(
            "cache_control" in part for part in (*request.get("system", ()), *request.get("tools", ()))
        )
        self._cache = self._cache and not marked
        return marked

    async def _once(
        self, request: Mapping[str, Any], on_text: OnText | None, *, is_streamed: bool
    ) -> dict[str, Any]:
        if not is_streamed:
            whole = await self._client.messages.create(**request)
            return dict(whole.to_dict(mode="python", warnings=False))
        answer = StreamedAnswer()
        # Raw events and not the SDK's `stream`, which guesses at arguments that are not complete.
        events = await self._client.messages.create(**request, stream=True)
        async with events:
            async for event in events:
                await answer.add(event.to_dict(mode="python", warnings=False), on_text)
        return answer.whole()

    async def _turn(self, answer: Mapping[str, Any], messages: Sequence[Message], *, asked: str) -> Turn:
        stop = answer.get("stop_reason")
        stop = stop if isinstance(stop, str) else None
        calls, blocks = calls_in(answer["content"], messages, stop=stop)
        kept = answer_blocks(blocks, stop=stop)
        model = str(answer.get("model") or asked)
        return Turn(
            texts=texts_in(blocks),
            calls=tuple(calls),
            messages=({"role": "assistant", "content": kept},) if kept else (),
            stop=stop,
            is_cut=stop in _CUT,
            model=model,
            usage=await _usage(answer.get("usage"), names=(model, asked)),
        )


async def _usage(counted: object, names: tuple[str, str]) -> Usage | None:
    if not isinstance(counted, Mapping):
        return None
    fields = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    parts = [counted.get(field) or 0 for field in fields]
    if not all(isinstance(part, int | float) and part >= 0 for part in parts):
        return None
    new, written, read = parts
    received = counted.get("output_tokens")
    return await usage_of(new + written + read, received, cached=read, written=written, names=names)


def _marks_in(messages: Sequence[Message]) -> int:
    contents = [message.get("content") for message in messages]
    return sum(
        isinstance(block, Mapping) and "cache_control" in block
        for content in contents
        if isinstance(content, list)
        for block in content
    )

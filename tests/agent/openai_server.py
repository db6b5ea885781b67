"""A loopback server that speaks OpenAI's Responses API and Chat Completions, with their refusals."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.agent.model_server import WAIT_S, Exchange, Failure, ModelServer, Refused, split
from tests.agent.picture_rules import picture_problem

KEY = "a-key-for-tests-0123456789abcdef"
MODEL = "gpt-5"
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAABo"}
USAGE = {"sent": 100, "cached": 40, "received": 10}
RESPONSES_FIELDS = {
    "model", "input", "instructions", "tools", "max_output_tokens", "stream", "store", "include",
    "reasoning", "temperature", "prompt_cache_key",
}  # fmt: skip
CHAT_FIELDS = {
    "model", "messages", "tools", "max_completion_tokens", "max_tokens", "stream", "stream_options",
    "temperature",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of the model, for either API.

    Args:
        texts: Each becomes a message of its own (Responses), or all become one (Chat Completions).
        calls: As (id, tool, arguments); arguments that are a string are sent as they are.
        reason: Why it is not complete: `max_output_tokens` or `content_filter`; in chat, `finish_reason`.
        thoughts: Whether a reasoning item comes first.
        failed: Code and message of a failure that comes as an answer.
        cut_after: The connection is closed after so many events (of a body that is not streamed: bytes).
        ends_early: The body ends as it should, but before the last events.
        hold: The answer waits for this.
        items: Of the Responses API, before everything else: what its own tools did.
        one_index: Each call of a stream has the index 0, as some compatible servers have it.
    """

    texts: Sequence[str] = ()
    refusal: str | None = None
    calls: Sequence[tuple[str, str, Any]] = ()
    reason: str | None = None
    thoughts: bool = False
    failed: tuple[str, str] | None = None
    cut_after: int | None = None
    ends_early: bool = False
    hold: threading.Event | None = None
    one_index: bool = False
    items: Sequence[Mapping[str, Any]] = ()


class OpenAIServer(ModelServer):
    """Answers requests with the replies of a script, one after another; when it is over, it refuses.

    Args:
        lacks: Fields of a request that it refuses, as a compatible server of an earlier date does.
        reasons: Whether its models reason; those that do not refuse to be asked for their thoughts.

    `url` is for `base_url`.
    """

    def __init__(
        self, script: Iterable[Answer | Failure], *, lacks: Sequence[str] = (), reasons: bool = True
    ) -> None:
        super().__init__()
        self.url = f"{self.root}/v1"
        self._script = iter(script)
        self._lacks = lacks
        self._reasons = reasons

    def handle(self, exchange: Exchange, body: bytes) -> None:
        """Answer one request."""
        request = json.loads(body)
        is_chat = exchange.path == "/v1/chat/completions"
        if not is_chat and exchange.path != "/v1/responses":
            reply: Answer | Failure = Failure(status=404, message="Not found")
        else:
            reply = self.reply(exchange.path, exchange.headers["authorization"], request)
        if isinstance(reply, Failure):
            error = {"message": reply.message, "type": reply.kind, "param": None, "code": None}
            exchange.whole({"error": error}, status=reply.status, headers=reply.headers)
            return
        if reply.hold is not None:
            reply.hold.wait(WAIT_S)
        if not request.get("stream"):
            exchange.whole(completion(reply) if is_chat else response(reply), cut_after=reply.cut_after)
        elif is_chat:
            _stream(exchange, chunks(reply, counts=bool(request.get("stream_options"))), reply)
        else:
            _stream(exchange, events(reply), reply)

    def reply(self, path: str, authorization: str | None, request: dict[str, Any]) -> Answer | Failure:
        """Say what a request is answered with."""
        with self.lock:
            if authorization != f"Bearer {KEY}":
                message = f"Incorrect API key provided: {authorization}."
                return Failure(status=401, kind="invalid_request_error", message=message)
            try:
                for name in set(self._lacks) & set(request):
                    raise Refused(f"Unsupported parameter: '{name}' is not supported with this model.")
                if path == "/v1/responses":
                    if request.get("include") and not self._reasons:
                        raise Refused("Encrypted content is not supported with this model.")
                    check_responses(request)
                else:
                    check_chat(request)
            except Refused as refusal:
                self.refused.append(str(refusal))
                return Failure(status=400, kind="invalid_request_error", message=str(refusal))
            self.requests.append(request)
            over = Failure(status=400, kind="invalid_request_error", message="the script is over")
            return next(self._script, over)


def _stream(exchange: Exchange, parts: Iterable[Mapping[str, Any] | str], answer: Answer) -> None:
    exchange.begin_events()
    for index, part in enumerate(parts):
        if index == answer.cut_after:
            if not answer.ends_early:
                exchange.break_off()
                return
            break
        # Chat Completions have no names of events.
        exchange.event(part, name=None if isinstance(part, str) else part.get("type"))
    exchange.end_events()


def response(answer: Answer) -> dict[str, Any]:
    """Return an answer as the Responses API sends it whole."""
    status = "failed" if answer.failed else "incomplete" if answer.reason else "completed"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_760_000_000,
        "status": status,
        "error": {"code": answer.failed[0], "message": answer.failed[1]} if answer.failed else None,
        "incomplete_details": {"reason": answer.reason} if answer.reason else None,
        "model": MODEL,
        "output": list(_items(answer)),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": USAGE["sent"],
            "input_tokens_details": {"cached_tokens": USAGE["cached"]},
            "output_tokens": USAGE["received"],
            "output_tokens_details": {"reasoning_tokens": 4},
            "total_tokens": USAGE["sent"] + USAGE["received"],
        },
    }


def _items(answer: Answer) -> Iterator[dict[str, Any]]:
    yield from map(dict, answer.items)
    if answer.thoughts:
        yield dict(THOUGHT)
    parts: list[dict[str, Any]] = [
        {"type": "output_text", "text": t, "annotations": []} for t in answer.texts
    ]
    if answer.refusal is not None:
        parts.append({"type": "refusal", "refusal": answer.refusal})
    for number, part in enumerate(parts):
        content = {"role": "assistant", "status": "completed", "content": [part]}
        yield {"type": "message", "id": f"msg_{number}", **content}
    for call_id, name, arguments in answer.calls:
        call = {"call_id": call_id, "name": name, "arguments": _json(arguments), "status": "completed"}
        yield {"type": "function_call", "id": f"fc_{call_id}", **call}


def events(answer: Answer) -> Iterator[dict[str, Any]]:
    """Yield an answer as the Responses API streams it."""
    for number, event in enumerate(_events(answer)):
        yield {**event, "sequence_number": number}


def _events(answer: Answer) -> Iterator[dict[str, Any]]:
    whole = response(answer)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": {**begun, "error": None}}
    yield {"type": "response.in_progress", "response": {**begun, "error": None}}
    for index, item in enumerate(whole["output"]):
        at = {"output_index": index, "item_id": item["id"]}
        if item["type"] == "message":
            (part,) = item["content"]
            kind = part["type"]
            name = "text" if kind == "output_text" else "refusal"
            at_part = {**at, "content_index": 0}
            empty = {**item, "status": "in_progress", "content": []}
            yield {"type": "response.output_item.added", "output_index": index, "item": empty}
            yield {"type": "response.content_part.added", **at_part, "part": {**part, name: ""}}
            for piece in split(part[name]):
                yield {"type": f"response.{kind}.delta", **at_part, "delta": piece}
            yield {"type": f"response.{kind}.done", **at_part, name: part[name]}
            yield {"type": "response.content_part.done", **at_part, "part": part}
        elif item["type"] == "function_call":
            empty = {**item, "status": "in_progress", "arguments": ""}
            yield {"type": "response.output_item.added", "output_index": index, "item": empty}
            for piece in split(item["arguments"]):
                yield {"type": "response.function_call_arguments.delta", **at, "delta": piece}
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield {"type": "response.function_call_arguments.done", **at, **done}
        else:
            yield {"type": "response.output_item.added", "output_index": index, "item": item}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{whole['status']}", "response": whole}


def completion(answer: Answer) -> dict[str, Any]:
    """Return an answer as Chat Completions sends it whole."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(answer.texts) or None,
        "refusal": answer.refusal,
        "annotations": [],
    }
    if answer.calls:
        message["tool_calls"] = [_call(*call) for call in answer.calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(answer)}
    return {**_about("chat.completion"), "choices": [choice], "usage": _chat_usage()}


def chunks(answer: Answer, *, counts: bool) -> Iterator[dict[str, Any] | str]:
    """Yield an answer as Chat Completions streams it."""
    about = _about("chat.completion.chunk") | ({"usage": None} if counts else {})

    def chunk(delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**about, "choices": [choice]}

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    for text in answer.texts:
        for piece in split(text):
            yield chunk({"content": piece})
    for piece in split(answer.refusal or ""):
        yield chunk({"refusal": piece})
    for number, given in enumerate(answer.calls):
        index = 0 if answer.one_index else number
        call = _call(*given)
        function = {"name": call["function"]["name"], "arguments": ""}
        yield chunk({"tool_calls": [{**call, "index": index, "function": function}]})
        for piece in split(call["function"]["arguments"]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    if answer.failed:
        yield {"error": {"message": answer.failed[1], "type": answer.failed[0], "code": None, "param": None}}
        return
    yield chunk({}, _finish(answer))
    if counts:
        yield {**about, "choices": [], "usage": _chat_usage()}
    yield "[DONE]"


def _finish(answer: Answer) -> str:
    return answer.reason or ("tool_calls" if answer.calls else "stop")


def _about(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1_760_000_000, "model": MODEL}


def _chat_usage() -> dict[str, Any]:
    counted = {"prompt_tokens": USAGE["sent"], "completion_tokens": USAGE["received"]}
    details = {"prompt_tokens_details": {"cached_tokens": USAGE["cached"]}}
    return {**counted, "total_tokens": USAGE["sent"] + USAGE["received"], **details}


def _call(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": _json(arguments)}}


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def check_responses(body: dict[str, Any]) -> None:
    """Raise `Refused` for what the Responses API would not take."""
    _check_fields(body, RESPONSES_FIELDS)
    for tool in body.get("tools", []):
        _check_tool(tool)
    open_ids: list[str] = []
    seen: set[str] = set()
    items = body["input"]
    for index, item in enumerate(items):
        match item.get("type", "message"):
            case "message":
                _demand(
                    item.get("content") is not None, f"Missing required parameter: 'input[{index}].content'"
                )
            case "function_call":
                _demand(item["call_id"] not in seen, f"Duplicate item for call_id {item['call_id']}.")
                seen.add(item["call_id"])
                open_ids.append(item["call_id"])
                _demand(isinstance(json.loads(item["arguments"]), dict), "arguments: not an object")
            case "function_call_output":
                _demand(item["call_id"] in open_ids, f"No tool call found for call_id {item['call_id']}.")
                open_ids.remove(item["call_id"])
                output = item["output"]
                for part in output if isinstance(output, list) else ():
                    _demand(part["type"] in ("input_text", "input_image"), "Invalid value: output type")
                    if part["type"] == "input_image":
                        kind, _, encoded = part["image_url"].removeprefix("data:").partition(";base64,")
                        problem = picture_problem(encoded, kind, of=1)
                        _demand(problem is None, f"Invalid image data: {problem}")
            case "reasoning":
                known = item.get("encrypted_content") and not body.get("store", True)
                _demand(known, f"Item with id '{item['id']}' not found.")
                after = items[index + 1].get("type") if index + 1 < len(items) else None
                _demand(
                    after in ("message", "function_call"),
                    f"Item '{item['id']}' of type 'reasoning' was provided without its following item.",
                )
            case "web_search_call" | "file_search_call" | "code_interpreter_call":
                _demand(item.get("status") == "completed", f"input[{index}].status: not completed")
            case other:
                raise Refused(f"Invalid value: '{other}'.")
    _demand(not open_ids, f"No tool output found for function call {', '.join(open_ids)}.")


def check_chat(body: dict[str, Any]) -> None:
    """Raise `Refused` for what Chat Completions would not take."""
    _check_fields(body, CHAT_FIELDS)
    _demand("stream" in body or "stream_options" not in body, "'stream_options' needs 'stream'.")
    for tool in body.get("tools", []):
        _check_tool(tool["function"] | {"type": tool["type"]})
    open_ids: list[str] = []
    for index, message in enumerate(body["messages"]):
        role = message["role"]
        if role == "tool":
            _demand(
                message["tool_call_id"] in open_ids,
                "Invalid parameter: messages with role 'tool' must answer a message before with "
                "'tool_calls'.",
            )
            open_ids.remove(message["tool_call_id"])
            _demand(isinstance(message["content"], str), f"messages[{index}].content: not a string")
            continue
        _demand(not open_ids, "An assistant message with 'tool_calls' must be followed by tool messages.")
        if role == "assistant":
            calls = message.get("tool_calls", [])
            open_ids = [call["id"] for call in calls]
            _demand(len(set(open_ids)) == len(open_ids), "Duplicate tool call ids.")
            said = message.get("content") or message.get("refusal") or calls
            _demand(said, f"Invalid value for 'messages[{index}].content': expected a string, got null.")
            for call in calls:
                _demand(isinstance(json.loads(call["function"]["arguments"]), dict), "arguments: no object")
    _demand(not open_ids, "An assistant message with 'tool_calls' must be followed by tool messages.")


def _check_fields(body: Mapping[str, Any], known: set[str]) -> None:
    for name in body:
        _demand(name in known, f"Unknown parameter: '{name}'.")


def _check_tool(tool: Mapping[str, Any]) -> None:
    _demand(tool["type"] == "function", "Invalid value: tools type")
    _demand(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool["name"]), "Invalid 'tools.name'")
    _demand(tool["parameters"].get("type") == "object", "Invalid schema for function")


def _demand(holds: object, message: str) -> None:
    if not holds:
        raise Refused(message)

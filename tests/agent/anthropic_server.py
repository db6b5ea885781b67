"""A loopback server that speaks the Messages API: JSON and events as the API sends them, and its refusals."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.agent.anthropic_rules import check
from tests.agent.model_server import WAIT_S, Exchange, Failure, ModelServer, Refused, split

KEY = "a-key-for-tests-0123456789abcdef"
MODEL = "claude-sonnet-5"
MAX_BODY_BYTES = 32 * 1000**2


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One message of the model.

    Args:
        blocks: Its content. In a `tool_use`, `raw` in the place of `input` is streamed as it is.
        stop: Its stop reason.
        cut_after: The connection is closed after so many events (of a body that is not streamed: bytes).
        error_after: After so many events an error event comes.
        hold: The answer waits for this; while a stream waits, its first `held_after` events are out.
    """

    blocks: Sequence[Mapping[str, Any]] = ()
    stop: str = "end_turn"
    usage: Mapping[str, int] = field(default_factory=dict)
    model: str = MODEL
    cut_after: int | None = None
    error_after: int | None = None
    hold: threading.Event | None = None
    held_after: int = 0


Reply = Answer | Failure
Script = Iterable[Reply | Callable[[dict[str, Any]], Reply]]


def text(said: str) -> dict[str, Any]:
    """Make a text block."""
    return {"type": "text", "text": said}


def use(call_id: str, name: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
    """Make a `tool_use` block."""
    given = {} if arguments is None else arguments
    return {"type": "tool_use", "id": call_id, "name": name, "input": given, **more}


def thinking(thought: str, signature: str = "EqQBCgIYAhIM") -> dict[str, Any]:
    """Make a thinking block."""
    return {"type": "thinking", "thinking": thought, "signature": signature}


def says(said: str) -> Answer:
    """Make a last answer."""
    return Answer(blocks=[text(said)])


def asks(*uses: Mapping[str, Any], said: str = "") -> Answer:
    """Make an answer with tool calls, and perhaps a text before them."""
    return Answer(blocks=[*([text(said)] if said else []), *uses], stop="tool_use")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class AnthropicServer(ModelServer):
    """Answers requests with the replies of a script, one after another.

    Args:
        script: When it is over, further requests are refused. A function is given the request.

    `url` is for `base_url`.
    """

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.url = self.root
        self.headers: list[dict[str, str]] = []
        self._script = iter(script)
        self._ids = itertools.count(1)

    def handle(self, exchange: Exchange, body: bytes) -> None:
        """Answer one request."""
        if exchange.path.partition("?")[0] != "/v1/messages":
            reply: Reply = Failure(status=404, kind="not_found_error", message="Not found")
            request: dict[str, Any] = {}
        else:
            reply, request = self.reply(dict(exchange.headers), body)
        if isinstance(reply, Failure):
            error = {"type": reply.kind, "message": reply.message}
            whole = {"type": "error", "error": error, "request_id": "req_1"}
            exchange.whole(whole, status=reply.status, headers=reply.headers)
        elif request.get("stream"):
            self._stream(exchange, reply)
        else:
            if reply.hold is not None:
                reply.hold.wait(WAIT_S)
            exchange.whole(message(reply, next(self._ids)), cut_after=reply.cut_after)

    def _stream(self, exchange: Exchange, answer: Answer) -> None:
        exchange.begin_events()
        for index, event in enumerate(events(answer, next(self._ids))):
            if index == answer.held_after and answer.hold is not None:
                answer.hold.wait(WAIT_S)
            if index == answer.cut_after:
                exchange.break_off()
                return
            if index == answer.error_after:
                error = {"type": "overloaded_error", "message": "Overloaded"}
                exchange.event({"type": "error", "error": error}, name="error")
                break
            exchange.event(event, name=event["type"])
        exchange.end_events()

    def reply(self, headers: Mapping[str, str], body: bytes) -> tuple[Reply, dict[str, Any]]:
        """Say what a request is answered with."""
        with self.lock:
            self.headers.append({name.lower(): value for name, value in headers.items()})
            # Newer SDKs send a key as a bearer token.
            if KEY not in (self.headers[-1].get("x-api-key"), self._bearer()):
                return Failure(status=401, kind="authentication_error", message="invalid x-api-key"), {}
            if len(body) > MAX_BODY_BYTES:
                self.refused.append("request too large")
                return Failure(status=413, kind="request_too_large", message="Request exceeds 32 MB"), {}
            request: dict[str, Any] = json.loads(body, parse_constant=_no_number)
            try:
                if "anthropic-version" not in self.headers[-1]:
                    raise Refused("anthropic-version: header is required")
                check(request)
            except Refused as refusal:
                self.refused.append(str(refusal))
                return Failure(status=400, kind="invalid_request_error", message=str(refusal)), request
            self.requests.append(request)
            step = next(self._script, None)
            if step is None:
                return Failure(
                    status=400, kind="invalid_request_error", message="the script is over"
                ), request
            return (step(request) if callable(step) else step), request

    def _bearer(self) -> str:
        return self.headers[-1].get("authorization", "").removeprefix("Bearer ")


def message(answer: Answer, number: int) -> dict[str, Any]:
    """Return an answer as the API sends it whole."""
    content = []
    for block in answer.blocks:
        shown = {name: value for name, value in block.items() if name != "raw"}
        content.append({**shown, "citations": None} if block["type"] == "text" else shown)
    return {
        "id": f"msg_{number:02}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": answer.stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 20, "output_tokens": 10, **answer.usage},
    }


def events(answer: Answer, number: int) -> Iterator[dict[str, Any]]:
    """Yield an answer as the API streams it."""
    whole = message(answer, number)
    started = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
    yield {"type": "message_start", "message": started}
    for index, block in enumerate(answer.blocks):
        empty, deltas = _streamed(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        if index == 0:
            yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": answer.stop, "stop_sequence": None},
        "usage": {"output_tokens": whole["usage"]["output_tokens"]},
    }
    yield {"type": "message_stop"}


def _streamed(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    match block["type"]:
        case "text":
            pieces = split(block["text"])
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": p} for p in pieces]
        case "thinking":
            deltas: list[dict[str, Any]] = [
                {"type": "thinking_delta", "thinking": piece} for piece in split(block["thinking"])
            ]
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signature]
        case "tool_use" | "server_tool_use":
            sent = block["raw"] if "raw" in block else json.dumps(block["input"])
            empty = {name: value for name, value in block.items() if name != "raw"} | {"input": {}}
            # The API begins with an empty piece, and sends nothing more where there are no arguments.
            pieces = ["", *(split(sent) if sent != "{}" else [])]
            return empty, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return dict(block), []

"""A loopback server that speaks the Messages API: JSON and events as the API sends them, and its refusals."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.agent.anthropic_rules import Refused, check

KEY = "a-key-for-tests-0123456789abcdef"
MODEL = "claude-sonnet-5"
WAIT_S = 20.0
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


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error of the API."""

    status: int
    kind: str = "api_error"
    message: str = "Internal server error"
    headers: Mapping[str, str] = field(default_factory=dict)


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


class AnthropicServer:
    """Answers requests with the replies of a script, one after another.

    Args:
        script: When it is over, further requests are refused. A function is given the request.

    A context manager. `url` is for `base_url`; `requests` are the bodies that were well formed, `refused` why
    the others were not.
    """

    def __init__(self, script: Script) -> None:
        self.requests: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._script = iter(script)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)

    def reply(self, headers: Mapping[str, str], body: bytes) -> tuple[Reply, dict[str, Any]]:
        """Say what a request is answered with."""
        with self._lock:
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

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path.partition("?")[0] != "/v1/messages":
                    reply, request = Failure(status=404, kind="not_found_error", message="Not found"), {}
                else:
                    reply, request = owner.reply(dict(self.headers), body)
                # Whoever asked may have gone away meanwhile.
                with contextlib.suppress(OSError):
                    if isinstance(reply, Failure):
                        self._send_failure(reply)
                    elif request.get("stream"):
                        self._send_events(reply)
                    else:
                        self._send_whole(reply)

            def _send_failure(self, failure: Failure) -> None:
                error = {"type": failure.kind, "message": failure.message}
                data = json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()
                self._start(failure.status, "application/json", len(data), failure.headers)
                self.wfile.write(data)

            def _send_whole(self, answer: Answer) -> None:
                if answer.hold is not None:
                    answer.hold.wait(WAIT_S)
                data = json.dumps(message(answer, next(owner._ids))).encode()
                self._start(200, "application/json", len(data), {})
                self.wfile.write(data[: answer.cut_after])
                self.close_connection = self.close_connection or answer.cut_after is not None

            def _send_events(self, answer: Answer) -> None:
                self._start(200, "text/event-stream; charset=utf-8", None, {})
                for index, event in enumerate(events(answer, next(owner._ids))):
                    if index == answer.held_after and answer.hold is not None:
                        answer.hold.wait(WAIT_S)
                    if index == answer.cut_after:
                        self.close_connection = True
                        return
                    if index == answer.error_after:
                        error = {"type": "overloaded_error", "message": "Overloaded"}
                        self._chunk({"type": "error", "error": error})
                        break
                    self._chunk(event)
                self.wfile.write(b"0\r\n\r\n")

            def _chunk(self, event: Mapping[str, Any]) -> None:
                data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()

            def _start(self, status: int, kind: str, length: int | None, more: Mapping[str, str]) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("request-id", "req_1")
                if length is None:
                    self.send_header("transfer-encoding", "chunked")
                else:
                    self.send_header("content-length", str(length))
                for name, value in more.items():
                    self.send_header(name, value)
                self.end_headers()

        return Handler


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
            pieces = _pieces(block["text"])
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": p} for p in pieces]
        case "thinking":
            deltas: list[dict[str, Any]] = [
                {"type": "thinking_delta", "thinking": piece} for piece in _pieces(block["thinking"])
            ]
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signature]
        case "tool_use" | "server_tool_use":
            sent = block["raw"] if "raw" in block else json.dumps(block["input"])
            empty = {name: value for name, value in block.items() if name != "raw"} | {"input": {}}
            # The API begins with an empty piece, and sends nothing more where there are no arguments.
            pieces = ["", *(_pieces(sent) if sent != "{}" else [])]
            return empty, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return dict(block), []


def _pieces(whole: str, size: int = 7) -> list[str]:
    return [whole[i : i + size] for i in range(0, len(whole), size)]

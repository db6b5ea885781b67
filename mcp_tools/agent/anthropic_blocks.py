"""Blocks of the Messages API: an answer put together from a stream, the calls in it, and what goes back."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_tools.agent.calls import RUN
from mcp_tools.agent.types import BadCall, Message, ModelError, OnText
from mcp_tools.calling import tell
from mcp_tools.output.plain import encodable, to_json
from mcp_tools.types import Content, ExecutionResult, MediaContent, TextContent, ToolCall, ToolOutput

Block = dict[str, Any]
MAX_IMAGE_CHARS: Final = 5 * 1024 * 1024
"""Of one image in base64; the API refuses the whole request for a larger one."""
MAX_IMAGES: Final = 20
"""Of one result. The API bounds them by request, and a history holds many results."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_THINKING: Final = frozenset({"thinking", "redacted_thinking"})
_STARTS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


class StreamedAnswer:
    """A message as it comes in events; what was not closed is no answer.

    Source: the Messages API, streaming: `message_start`, for each block a start, deltas and a stop,
    `message_delta`, `message_stop`.
    """

    def __init__(self) -> None:
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, Block] = {}
        self._json: dict[int, list[str]] = {}
        self._is_complete = False

    async def add(self, event: Mapping[str, Any], on_text: OnText | None) -> None:
        """Take the next event. One of a kind that is not known changes nothing."""
        match event.get("type"):
            case "message_start":
                self._message = dict(event["message"])
            case "content_block_start":
                self._blocks[event["index"]] = dict(event["content_block"])
            case "content_block_delta":
                await self._delta(event["index"], event["delta"], on_text)
            case "content_block_stop":
                self._close(event["index"])
            case "message_delta" if self._message is not None:
                self._message |= {k: v for k, v in event["delta"].items() if v is not None}
                counted = {k: v for k, v in (event.get("usage") or {}).items() if v is not None}
                self._message["usage"] = {**(self._message.get("usage") or {}), **counted}
            case "message_stop":
                self._is_complete = True

    def whole(self) -> dict[str, Any]:
        """Return the message, as if it had not been streamed.

        Raises:
            ModelError: The stream ended before it.
        """
        if self._message is None or not self._is_complete:
            raise ModelError("the answer broke off in the middle of its stream; the request can be repeated")
        for index in list(self._json):  # of an answer that was cut off there is no stop for its last block
            self._close(index)
        return {**self._message, "content": [self._blocks[index] for index in sorted(self._blocks)]}

    async def _delta(self, index: int, delta: Mapping[str, Any], on_text: OnText | None) -> None:
        block = self._blocks[index]
        match delta.get("type"):
            case "text_delta":
                block["text"] = block.get("text", "") + delta["text"]
                if delta["text"]:
                    await tell(on_text, delta["text"], unaffected=RUN)
            case "input_json_delta":
                self._json.setdefault(index, []).append(delta["partial_json"])
            case "thinking_delta":
                block["thinking"] = block.get("thinking", "") + delta["thinking"]
            case "signature_delta":
                block["signature"] = delta["signature"]
            case "citations_delta":
                block["citations"] = [*(block.get("citations") or []), delta["citation"]]

    def _close(self, index: int) -> None:
        text = "".join(self._json.pop(index, []))
        if text:
            self._blocks[index]["input"] = _read(text)


def calls_in(
    blocks: Sequence[Block], messages: Sequence[Message], *, stop: str | None
) -> tuple[list[ToolCall | BadCall], list[Block]]:
    """Return the calls of an answer, and its blocks as the next request may hold them.

    An id that was used before gets another one, and arguments that are no object become an empty one: with
    either the API would refuse every later request.
    """
    contents = [message.get("content") for message in messages]
    used = {
        block.get("id")
        for content in contents
        if isinstance(content, list)
        for block in content
        if isinstance(block, Mapping) and block.get("type") == "tool_use"
    }
    calls: list[ToolCall | BadCall] = []
    sendable = []
    for given in blocks:
        block = _encodable(given)
        if block.get("type") == "tool_use":
            block = dict(block)
            if block["id"] in used or not _ID.fullmatch(str(block["id"])):
                block["id"] = f"toolu_{secrets.token_hex(12)}"
            used.add(block["id"])
            call = _call(block, stop)
            calls.append(call)
            block["input"] = call.arguments if isinstance(call, ToolCall) else {}
        elif isinstance(block.get("input"), _Unreadable):
            block = {**block, "input": {}}
        sendable.append(block)
    return calls, sendable


def answer_blocks(blocks: Sequence[Block], *, stop: str | None) -> list[Block]:
    """Leave out what the API sends and then refuses in a history: blank texts, thinking at the end, and calls
    of its own tools that never came to a result. Everything else stays as it is.
    """
    answered = {block.get("tool_use_id") for block in blocks}
    kept = [
        block
        for block in blocks
        if not (block.get("type") == "text" and not block.get("text", "").strip())
        and not (
            block.get("type") == "server_tool_use" and stop != "pause_turn" and block["id"] not in answered
        )
    ]
    while kept and kept[-1].get("type") in _THINKING:
        kept.pop()
    return kept


def result_block(call_id: str, result: ExecutionResult | None) -> Block:
    """Render what became of one call; a failure is flagged."""
    block: Block = {"type": "tool_result", "tool_use_id": call_id}
    if result is None:
        return {**block, "content": "Error (cancelled): not run", "is_error": True}
    value = result.result
    if result.is_success and isinstance(value, ToolOutput) and any(_image(piece) for piece in value.content):
        return {**block, "content": _pieces(value), "is_error": False}
    return {**block, "content": result.to_observation(), "is_error": not result.is_success}


def _pieces(output: ToolOutput) -> list[Block]:
    blocks: list[Block] = []
    images = 0
    for piece in output.content:
        image = _image(piece) if images < MAX_IMAGES else None
        if image is not None:
            images += 1
            blocks.append(image)
        else:
            blocks.append(_text(ToolOutput(content=(piece,)).observed()))
    if output.structured is not None and not any(isinstance(piece, TextContent) for piece in output.content):
        blocks.append(_text(to_json(output.structured, indent=2)))
    return [block for block in blocks if block["type"] != "text" or block["text"].strip()]


def _text(text: str) -> Block:
    return {"type": "text", "text": encodable(text)}


def _image(piece: Content) -> Block | None:
    """Return an image as the API takes it, or None where it would refuse the request for it."""
    if not isinstance(piece, MediaContent):
        return None
    # By its bytes: one that is not what it is said to be is refused, and with it the whole history.
    media_type = next((name for start, name in _STARTS if piece.data.startswith(start)), None)
    if piece.data[:4] == b"RIFF" and piece.data[8:12] == b"WEBP":
        media_type = "image/webp"
    if media_type is None or len(piece.data) > MAX_IMAGE_CHARS * 3 // 4:
        return None
    data = base64.b64encode(piece.data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _call(block: Block, stop: str | None) -> ToolCall | BadCall:
    name, arguments = str(block.get("name", "")), block.get("input")
    if stop == "refusal":
        return BadCall(id=block["id"], name=name, problem="not run: the answer was broken off by a refusal")
    if isinstance(arguments, dict):
        return ToolCall(id=block["id"], name=name, arguments=arguments)
    if isinstance(arguments, _Unreadable):
        problem = f"the arguments are no valid JSON ({arguments}); send an object with the tool's fields"
    else:
        problem = "the arguments are no JSON object; send one with the tool's fields, such as {}"
    return BadCall(id=block["id"], name=name, problem=problem)


class _Unreadable(str):
    """In the place of arguments that cannot be read: why."""

    __slots__ = ()


def _read(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        return _Unreadable(getattr(error, "msg", "NaN and Infinity are no JSON"))
    except RecursionError:
        return _Unreadable("it is nested too deeply")


def _no_number(name: str) -> Any:
    raise ValueError(name)


def _encodable(block: Block) -> Block:
    """Replace what no request can be encoded with; an answer can name half a character by an escape."""
    text = json.dumps(block, ensure_ascii=False, default=str)
    return dict(json.loads(_SURROGATE.sub("\ufffd", text))) if _SURROGATE.search(text) else block

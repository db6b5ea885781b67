"""Blocks of the Messages API: an answer put together from a stream, the calls in it, and what goes back."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_tools.agent.answers import (
    BROKEN_OFF,
    Room,
    call_from,
    encodable_data,
    fresh_id,
    seen,
    sendable_name,
)
from mcp_tools.agent.calls import RUN
from mcp_tools.agent.pictures import Picture
from mcp_tools.agent.types import BadCall, Message, ModelError, OnText
from mcp_tools.calling import tell
from mcp_tools.types import ExecutionResult, ToolCall

Block = dict[str, Any]
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_THINKING: Final = frozenset({"thinking", "redacted_thinking"})
_OWN_CALLS: Final = frozenset({"server_tool_use", "mcp_tool_use"})
_GOES_ON: Final = frozenset({"pause_turn", "tool_use"})
_OURS: Final = frozenset({"tool_result", "image", "document"})
"""What only a person's messages may hold."""


class StreamedAnswer:
    """A message as it comes in events; what was not closed is no answer.

    Source: the Messages API, streaming: `message_start`, for each block a start, deltas and a stop,
    `message_delta`, `message_stop`.
    """

    def __init__(self) -> None:
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, Block] = {}
        self._pieces: dict[tuple[int, str], list[str]] = {}
        self._room = Room()
        self._is_complete = False
        self._has_told = self._is_apart = False

    async def add(self, event: Mapping[str, Any], on_text: OnText | None) -> None:
        """Take the next event. One of a kind that is not known changes nothing."""
        match event.get("type"):
            case "message_start" if self._message is None:
                self._message = dict(event["message"])
            case "content_block_start" if event["index"] not in self._blocks:
                self._blocks[event["index"]] = dict(event["content_block"])
                self._is_apart |= self._has_told and event["content_block"].get("type") != "text"
            case "message_start" | "content_block_start":
                raise ModelError("the answer could not be read: it begins twice")
            case "content_block_delta":
                await self._delta(event["index"], event["delta"], on_text)
            case "content_block_stop":
                self._close()
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
        if self._message is None or not self._is_complete or not self._message.get("stop_reason"):
            raise ModelError(BROKEN_OFF)
        self._close()  # of an answer that was cut off there is no stop for its last block
        return {**self._message, "content": [self._blocks[index] for index in sorted(self._blocks)]}

    async def _delta(self, index: int, delta: Mapping[str, Any], on_text: OnText | None) -> None:
        block = self._blocks[index]
        match delta.get("type"):
            case "text_delta":
                if piece := self._take(index, "text", delta["text"]):
                    if self._is_apart:
                        await tell(on_text, "\n", unaffected=RUN)
                    self._has_told, self._is_apart = True, False
                    await tell(on_text, piece, unaffected=RUN)
            case "input_json_delta":
                self._take(index, "input", delta["partial_json"])
            case "thinking_delta":
                self._take(index, "thinking", delta["thinking"])
            case "signature_delta":
                block["signature"] = self._room.take(delta["signature"])
            case "citations_delta":
                block["citations"] = [*(block.get("citations") or []), delta["citation"]]

    def _take(self, index: int, field: str, piece: object) -> str:
        text = self._room.take(piece)
        self._pieces.setdefault((index, field), []).append(text)
        return text

    def _close(self) -> None:
        """Put together what came in pieces. Arguments stay text until a call is made of them."""
        for (index, field), pieces in self._pieces.items():
            text = "".join(pieces)
            block = self._blocks[index]
            if field != "input":
                block[field] = block.get(field, "") + text
            elif text:
                block[field] = text
        self._pieces.clear()


def calls_in(
    blocks: Sequence[Block], messages: Sequence[Message], *, stop: str | None
) -> tuple[list[ToolCall | BadCall], list[Block]]:
    """Return the calls of an answer, and its blocks as the next request may hold them.

    An id that was used before gets another one, and arguments that are no object become an empty one: with
    either the API would refuse every later request.
    """
    contents = [message.get("content") for message in messages]
    used = {
        str(block.get("id"))
        for content in contents
        if isinstance(content, list)
        for block in content
        if isinstance(block, Mapping) and block.get("type") == "tool_use"
    }
    calls: list[ToolCall | BadCall] = []
    sendable = []
    for given in blocks:
        if not _is_taken_back(given):
            continue
        block = encodable_data(given)
        if block["type"] == "tool_use":
            call_id = fresh_id(block.get("id"), used, allowed=_ID, prefix="toolu")
            name = str(block.get("name", ""))
            call = call_from(call_id, name, block.get("input"), is_refusal=stop == "refusal")
            calls.append(call)
            # A copy: whoever is told of the call may change what it holds.
            arguments = copy.deepcopy(call.arguments) if isinstance(call, ToolCall) else {}
            block = {**block, "id": call_id, "name": sendable_name(name), "input": arguments}
        elif isinstance(block.get("input"), str):  # of a tool of the API's own
            read = call_from("", "", block["input"], is_refusal=False)
            block = {**block, "input": read.arguments if isinstance(read, ToolCall) else {}}
        sendable.append(block)
    return calls, sendable


def _is_taken_back(block: object) -> bool:
    """Whether the API takes a block of this form in a history; those of a kind that is not known it may."""
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        return False
    match block["type"]:
        case "text":
            return isinstance(block.get("text"), str)
        case "thinking":
            return bool(block.get("signature"))
        case "redacted_thinking":
            return bool(block.get("data"))
        case kind:
            return kind not in _OURS


def texts_in(blocks: Sequence[Block]) -> tuple[str, ...]:
    """Return the texts of an answer. Blocks next to each other are one: citations divide a sentence."""
    texts: list[list[str]] = []
    is_open = False
    for block in blocks:
        if block["type"] == "text" and not is_open:
            texts.append([])
        is_open = block["type"] == "text"
        if is_open:
            texts[-1].append(block["text"])
    return tuple(text for pieces in texts if (text := "".join(pieces)))


def answer_blocks(blocks: Sequence[Block], *, stop: str | None) -> list[Block]:
    """Leave out what the API sends and then refuses in a history: blank texts, thinking at the end, and calls
    of its own tools that come to no result any more: while ours run or it pauses, theirs may go on.
    """
    answered = {block.get("tool_use_id") for block in blocks}
    kept = [
        block
        for block in blocks
        if not (block["type"] == "text" and not block["text"].strip())
        and not (block["type"] in _OWN_CALLS and stop not in _GOES_ON and block.get("id") not in answered)
    ]
    while kept and kept[-1]["type"] in _THINKING:
        kept.pop()
    return kept


def result_block(call_id: str, result: ExecutionResult | None) -> Block:
    """Render what became of one call; a failure is flagged."""
    content = seen(result)
    return {
        "type": "tool_result",
        "tool_use_id": call_id,
        "content": content if isinstance(content, str) else [_part(piece) for piece in content],
        "is_error": result is None or not result.is_success,
    }


def _part(piece: str | Picture) -> Block:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    source = {"type": "base64", "media_type": piece.media_type, "data": piece.data}
    return {"type": "image", "source": source}

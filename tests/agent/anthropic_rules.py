"""What the Messages API refuses, so that a history which our server takes is one that the API takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.agent.model_server import Refused
from tests.agent.picture_rules import picture_problem

FIELDS = {
    "model", "messages", "max_tokens", "system", "tools", "tool_choice", "stream", "temperature", "top_p",
    "top_k", "thinking", "metadata", "stop_sequences", "service_tier", "cache_control", "container",
}  # fmt: skip
THINKING = ("thinking", "redacted_thinking")


def check(body: dict[str, Any]) -> None:
    """Raise `Refused` for what the API would not take."""
    for name in body:
        _demand(name in FIELDS, f"{name}: Extra inputs are not permitted")
    _demand(isinstance(body.get("model"), str), "model: Field required")
    tokens = body.get("max_tokens")
    _demand(type(tokens) is int, "max_tokens: Field required")
    _demand(tokens >= 1, "max_tokens: must be greater than or equal to 1")
    _check_tools(body.get("tools", []))
    marks = _marks(body)
    _demand(marks <= 4, f"A maximum of 4 blocks with cache_control may be provided. Found {marks}.")
    messages = body.get("messages")
    _demand(isinstance(messages, list) and messages, "messages: at least one message is required")
    _demand(messages[0]["role"] == "user", "messages: first message must use the user role")
    for index, message in enumerate(messages):
        is_final_answer = index == len(messages) - 1 and message["role"] == "assistant"
        _check_message(message, f"messages.{index}", is_final_answer=is_final_answer)
    _check_calls(_merged(messages))
    pictures = list(_pictures(messages))
    _demand(len(pictures) <= 100, "messages: too many images")
    for source in pictures:
        problem = picture_problem(source["data"], source["media_type"], of=len(pictures))
        _demand(problem is None, f"messages: {problem}")


def _demand(holds: object, message: str) -> None:
    if not holds:
        raise Refused(message)


def _check_tools(tools: list[dict[str, Any]]) -> None:
    names = [tool["name"] for tool in tools]
    _demand(len(set(names)) == len(names), "tools: Tool names must be unique.")
    for index, tool in enumerate(tools):
        _demand(re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", tool["name"]), f"tools.{index}.name: bad pattern")
        _demand(tool["input_schema"].get("type") == "object", f"tools.{index}.input_schema.type: required")


def _marks(value: Any) -> int:
    if isinstance(value, dict):
        return ("cache_control" in value) + sum(_marks(item) for item in value.values())
    return sum(_marks(item) for item in value) if isinstance(value, list) else 0


def _check_message(message: dict[str, Any], at: str, *, is_final_answer: bool) -> None:
    _demand(set(message) <= {"role", "content"}, f"{at}: Extra inputs are not permitted")
    _demand(message["role"] in ("user", "assistant"), f"{at}.role: unexpected value")
    content = message["content"]
    _demand(content or is_final_answer, f"{at}: all messages must have non-empty content")
    if isinstance(content, str):
        _demand(content.strip(), f"{at}: text content blocks must contain non-whitespace text")
        return
    for index, block in enumerate(content):
        _check_block(block, f"{at}.content.{index}", message["role"])
    if message["role"] == "assistant" and content:
        _demand(
            content[-1]["type"] not in THINKING,
            f"{at}: The final block in an assistant message cannot be `thinking`.",
        )


def _check_block(block: dict[str, Any], at: str, role: str) -> None:
    match block["type"]:
        case "text":
            _demand(block["text"].strip(), f"{at}: text content blocks must contain non-whitespace text")
        case "tool_use" | "server_tool_use":
            _demand(role == "assistant", f"{at}: {block['type']} blocks can only be in assistant messages")
            _demand(re.fullmatch(r"[a-zA-Z0-9_-]+", str(block["id"])), f"{at}.id: bad pattern")
            _demand(isinstance(block["id"], str), f"{at}.id: Input should be a valid string")
            _demand(re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", str(block["name"])), f"{at}.name: bad pattern")
            _demand(isinstance(block["input"], dict), f"{at}.input: Input should be a valid dictionary")
        case "thinking":
            _demand(block.get("signature"), f"{at}.signature: Field required")
        case "tool_result":
            _demand(role == "user", f"{at}: tool_result blocks can only be in user messages")
            content = block.get("content", "")
            for inner in content if isinstance(content, list) else ():
                _check_block(inner, f"{at}.content", role)
        case "image":
            _demand(block["source"]["type"] == "base64", f"{at}.source: unexpected value")


def _pictures(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and value.get("type") == "image":
        yield value["source"]
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _pictures(item)


def _merged(messages: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Messages of one role after another count as one."""
    merged: list[tuple[str, list[dict[str, Any]]]] = []
    for message in messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        if merged and merged[-1][0] == message["role"]:
            merged[-1][1].extend(blocks)
        else:
            merged.append((message["role"], blocks))
    return merged


def _check_calls(messages: list[tuple[str, list[dict[str, Any]]]]) -> None:
    seen: set[str] = set()
    open_ids: list[str] = []
    for index, (role, blocks) in enumerate(messages):
        is_last = index == len(messages) - 1
        if role == "assistant":
            open_ids = [block["id"] for block in blocks if block["type"] == "tool_use"]
            _demand(
                len(set(open_ids)) == len(open_ids) and not seen & set(open_ids),
                f"messages.{index}: `tool_use` ids must be unique",
            )
            seen |= set(open_ids)
            answered = {block.get("tool_use_id") for block in blocks}
            own = [block["id"] for block in blocks if block["type"] == "server_tool_use"]
            _demand(
                is_last or open_ids or set(own) <= answered,
                f"messages.{index}: `server_tool_use` ids were found without a result block",
            )
            _demand(
                not (is_last and open_ids),
                f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after",
            )
            continue
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        kinds = [block["type"] == "tool_result" for block in blocks]
        _demand(kinds == sorted(kinds, reverse=True), f"messages.{index}: `tool_result` blocks come first")
        _demand(
            set(results) <= set(open_ids),
            f"messages.{index}: unexpected `tool_use_id` found in `tool_result` blocks",
        )
        _demand(len(set(results)) == len(results), f"messages.{index}: each `tool_use` has a single result")
        _demand(
            set(open_ids) <= set(results),
            f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after",
        )
        open_ids = []

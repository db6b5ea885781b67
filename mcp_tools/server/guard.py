"""One message as it came in → what to do with it. Nothing here does I/O, and nothing here raises.

The SDK drops many bad messages without a word, and a few stop it. So every message is looked at
here first: what is not a message is answered, and the SDK sees only what is one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from mcp_types import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR, ErrorData
from mcp_types.jsonrpc import (
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
)
from pydantic import ValidationError
from pydantic_core import from_json

from mcp_tools.output.plain import encodable

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
MAX_ID_CHARS: Final = 256
MAX_ID: Final = 2**63 - 1
MAX_METHOD_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class Accept:
    """Hand the message on."""

    message: JSONRPCMessage


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer with this error and hand nothing on."""

    error: JSONRPCError


@dataclass(frozen=True, slots=True)
class Drop:
    """Do nothing: nobody waits for an answer, and there is nothing to act on."""

    reason: str


Verdict = Accept | Reply | Drop


def check_message(raw: bytes | bytearray, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Verdict:
    """Decide about one message.

    Args:
        raw: The message without its frame; a trailing line break does no harm.
        max_bytes: Longer ones are refused unread.
    Returns:
        `Accept` with a message whose envelope is sound: JSON text in UTF-8 without lone surrogates,
        NaN, or more than 200 levels of nesting; an id of a sane type and size; params that are an
        object. A malformed response to a request of ours becomes an error response, so that whoever
        waits for it is told.
    """
    if len(raw) > max_bytes:
        return too_long(max_bytes)
    try:
        # Bounded in depth and strict about text; NaN is no JSON. It is also the faster parser.
        message = from_json(bytes(raw), allow_inf_nan=False)
    except ValueError as error:
        if not raw.strip():
            return Drop("empty")
        return _reply(PARSE_ERROR, f"not JSON in UTF-8: {error}", _id_in_spite(raw))
    if not isinstance(message, dict):
        what = "batches are not supported; send one message at a time"
        if not isinstance(message, list):
            what = "a message must be a JSON object"
        return _reply(INVALID_REQUEST, what, None)
    return _check_envelope(message)


def too_long(max_bytes: int) -> Reply:
    """Make the answer to a message that is over the limit."""
    return _reply(INVALID_REQUEST, f"the message is longer than {max_bytes:,} bytes", None)


def _check_envelope(message: dict[str, Any]) -> Verdict:
    has_id = "id" in message
    request_id = _readable_id(message.get("id"))
    if message.get("jsonrpc") != "2.0":
        return _reply(INVALID_REQUEST, 'jsonrpc: must be "2.0"', request_id)
    is_response = "result" in message or "error" in message
    if "method" not in message and is_response:
        return _check_response(message, request_id)
    method = message.get("method")
    if not isinstance(method, str) or is_response or len(method) > MAX_METHOD_CHARS:
        what = "a message with a method is no response" if is_response else "method: must be a short string"
        return _reply(INVALID_REQUEST, what, request_id)
    if has_id and request_id is None:
        what = f"id: must be a string of at most {MAX_ID_CHARS} characters or a whole number below 2^63"
        return _reply(INVALID_REQUEST, what, None)
    params = message.get("params")
    if params is not None and not isinstance(params, dict):
        if request_id is None:
            return Drop("a notification whose params are not an object")
        if method != "tools/call":
            return _reply(INVALID_PARAMS, "params: must be an object", request_id)
        params = None  # refused where calls are recorded
    # Built without validation, which the lines above have been: this is on the path of every call.
    fields = {"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": params})
    if request_id is None:
        return Accept(JSONRPCNotification.model_construct(None, **fields))
    return Accept(JSONRPCRequest.model_construct(None, id=request_id, **fields))


def _check_response(message: dict[str, Any], request_id: RequestId | None) -> Verdict:
    if request_id is None:
        return Drop("a response without an id that could be ours")
    has_both = "result" in message and "error" in message
    try:
        if not has_both and "result" in message:
            return Accept(JSONRPCResponse(jsonrpc="2.0", id=request_id, result=message["result"]))
        if not has_both:
            error = ErrorData.model_validate(message["error"])
            return Accept(JSONRPCError(jsonrpc="2.0", id=request_id, error=error))
    except ValidationError:
        pass
    problem = ErrorData(code=INVALID_REQUEST, message="the response is malformed")
    return Accept(JSONRPCError(jsonrpc="2.0", id=request_id, error=problem))


def _id_in_spite(raw: bytes | bytearray) -> RequestId | None:
    """Return the id of a request that only a lenient parser can read, or its sender would wait for ever."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    request_id = _readable_id(message.get("id")) if isinstance(message, dict) else None
    return None if request_id is None or encodable(str(request_id)) != str(request_id) else request_id


def _readable_id(value: object) -> RequestId | None:
    if isinstance(value, str) and len(value) <= MAX_ID_CHARS:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -MAX_ID <= value <= MAX_ID:
        return value
    return None


def _reply(code: int, message: str, request_id: RequestId | None) -> Reply:
    error = ErrorData(code=code, message=message)
    return Reply(JSONRPCError(jsonrpc="2.0", id=request_id, error=error))

"""What both of OpenAI's APIs have in common: arguments, ids, prices, and failures."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import anyio.to_thread

from mcp_tools.agent.failures import model_error
from mcp_tools.agent.types import BadCall, Message, ModelError, Turn
from mcp_tools.observe.cost import cost_of
from mcp_tools.types import ToolCall, Usage

BROKEN_OFF: Final = "the answer broke off in the middle of its stream; the request can be repeated"
NOT_RUN: Final = "not run: the answer was broken off by a refusal"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_REFUSED: Final = re.compile(
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|extra|not (permitted|supported|allowed)", re.IGNORECASE
)
# An error inside of a stream or of an answer comes after a status of 200.
_STATUS: Final[Mapping[str, int]] = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "tokens": 429,
    "requests": 429,
    "server_error": 500,
    "invalid_prompt": 400,
    "context_length_exceeded": 400,
}


class Told(Exception):
    """An error that came as data and not as an HTTP status."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__("the provider failed")
        kind = body.get("code") or body.get("type") or ""
        self.body = {"type": kind, "message": body.get("message")}
        self.status_code = _STATUS.get(str(kind))


async def guarded(
    work: Callable[[], Awaitable[Turn]], *, client: Any, messages: Sequence[Message], system: str | None
) -> Turn:
    """Await an answer; whatever fails on the way is a `ModelError` without key and prompt."""
    problem: ModelError
    try:
        return await work()
    except ModelError as error:
        problem = error
    except Warning:  # where a program makes warnings errors, ours to let through
        raise
    except Exception as error:
        if isinstance(error, TypeError) and "unexpected keyword" in str(error):
            raise  # an option that the SDK does not know
        said: Exception = error
        body = getattr(error, "body", None)
        if not isinstance(error, Told) and not hasattr(error, "status_code") and isinstance(body, Mapping):
            said = Told(body)
            if said.status_code is None:
                said = error
        problem = model_error(said, sent=[list(messages), system], secrets=[getattr(client, "api_key", None)])
    # Outside of the handlers: the SDK's error holds the request, with the prompt and the key in it.
    raise problem


def is_refused(error: Exception, field: str) -> bool:
    """Tell whether a server refused a request because it does not know one of its fields."""
    if getattr(error, "status_code", None) not in (400, 422):
        return False
    said = f"{error} {getattr(error, 'body', '')}"
    return field in said and _REFUSED.search(said) is not None


def own_options(options: Mapping[str, Any] | None, taken: Iterable[str]) -> dict[str, Any]:
    """Return further fields of each request.

    Raises:
        ValueError: One of them is ours.
    """
    ours = sorted(set(taken) & set(options or {}))
    if ours:
        raise ValueError(f"options cannot have {', '.join(ours)}: it is given for each request")
    return dict(options or {})


def call_from(call_id: str, name: str, arguments: object, *, is_refusal: bool) -> ToolCall | BadCall:
    """Read one call; arguments that are no JSON object make a `BadCall`."""
    if is_refusal:
        return BadCall(id=call_id, name=name, problem=NOT_RUN)
    try:
        # Nothing at all is how some servers send a call without arguments.
        read = json.loads(str(arguments or "{}"), parse_constant=_no_number)
    except ValueError as error:
        why = getattr(error, "msg", "NaN and Infinity are no JSON")
    except RecursionError:
        why = "it is nested too deeply"
    else:
        if isinstance(read, dict):
            return ToolCall(id=call_id, name=name, arguments=read)
        problem = "the arguments are no JSON object; send one with the tool's fields, such as {}"
        return BadCall(id=call_id, name=name, problem=problem)
    problem = f"the arguments are no valid JSON ({why}); send an object with the tool's fields"
    return BadCall(id=call_id, name=name, problem=problem)


def fresh_id(given: object, used: set[str]) -> str:
    """Return an id that no other call has, since an answer belongs to an id; it is noted in `used`."""
    call_id = given if isinstance(given, str) and given and given not in used else ""
    call_id = call_id or f"call_{secrets.token_hex(12)}"
    used.add(call_id)
    return call_id


def encodable_data(data: dict[str, Any]) -> dict[str, Any]:
    """Replace half characters, which an answer can name by an escape and no request can be encoded with."""
    text = json.dumps(data, ensure_ascii=False, default=str)
    return dict(json.loads(_SURROGATE.sub("\ufffd", text))) if _SURROGATE.search(text) else data


async def usage_of(sent: object, received: object, cached: object, *, names: tuple[str, str]) -> Usage:
    """Count tokens and price them by the first of two names that the price table has."""
    input_tokens, output_tokens = _count(sent), _count(received)
    cached_tokens = min(_count(cached), input_tokens)
    price = None
    for name in dict.fromkeys(names):
        if price is None:
            # In a thread: the first call reads the price table.
            price = await anyio.to_thread.run_sync(cost_of, name, input_tokens, output_tokens, cached_tokens)
    return Usage(cost_usd=price or 0.0, input_tokens=input_tokens, output_tokens=output_tokens)


def _count(given: object) -> int:
    return max(0, given) if isinstance(given, int) else 0


def _no_number(name: str) -> Any:
    raise ValueError(name)

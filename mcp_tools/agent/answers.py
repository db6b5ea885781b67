"""What the answers of all providers have in common: calls, ids, what may go back, tokens and their price.

Nothing in an answer is taken for granted: what a provider would refuse in a history is mended before it gets
into one, since a history with it could never be gone on with.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, Final

import anyio.to_thread

from mcp_tools.agent.pictures import Picture, shown
from mcp_tools.agent.types import BadCall, ModelError
from mcp_tools.observe.cost import cost_of
from mcp_tools.output.marks import without_middle
from mcp_tools.output.plain import encodable, to_json
from mcp_tools.types import ExecutionResult, MediaContent, TextContent, ToolCall, ToolOutput, Usage

MAX_ANSWER_CHARS: Final = 16 * 1024**2
"""Of one streamed answer; many times what any model writes."""
MAX_RESULT_CHARS: Final = 400_000
"""Of one result, for tools whose results nothing else bounds: more than what most models can read at all."""
BROKEN_OFF: Final = "the answer broke off in the middle of its stream; the request can be repeated"
NOT_RUN: Final = "not run: the answer was broken off by a refusal"
MAX_TOKENS_COUNTED: Final = 10**12
MAX_DEPTH: Final = 100
"""Of arguments: what is nested more deeply, programs on the way back cannot read."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_-]")
_MAX_NAME: Final = 64


class Room:
    """How much of a stream is taken before it is no answer any more."""

    def __init__(self) -> None:
        self._left = MAX_ANSWER_CHARS

    def take(self, piece: object) -> str:
        """Return a piece of text.

        Raises:
            ModelError: It is none, or there was too much already.
        """
        if not isinstance(piece, str):
            raise ModelError("the answer could not be read: a piece of its stream is no text")
        self._left -= len(piece)
        if self._left < 0:
            raise ModelError(f"the answer has more than {MAX_ANSWER_CHARS:,} characters; it was left there")
        return piece


def call_from(call_id: str, name: str, arguments: object, *, is_refusal: bool) -> ToolCall | BadCall:
    """Read one call; arguments that are no JSON object make a `BadCall`.

    Args:
        arguments: JSON as text, or what was read from it.
    """
    if is_refusal:
        return BadCall(id=call_id, name=name, problem=NOT_RUN)
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        # Reading takes NaN, and 1e999 as infinity; neither could be sent back.
        json.dumps(arguments, allow_nan=False)
        _check_depth(arguments)
    except ValueError as error:
        why = getattr(error, "msg", "NaN and Infinity are no JSON")
    except RecursionError:
        why = "it is nested too deeply"
    else:
        if isinstance(arguments, dict):
            return ToolCall(id=call_id, name=name, arguments=arguments)
        problem = "the arguments are no JSON object; send one with the tool's fields, such as {}"
        return BadCall(id=call_id, name=name, problem=problem)
    problem = f"the arguments are no valid JSON ({why}); send an object with the tool's fields"
    return BadCall(id=call_id, name=name, problem=problem)


def as_text(arguments: object) -> str:
    """Return arguments as OpenAI's APIs take them back: as text, whatever they came as."""
    if arguments is None:
        return "{}"
    return arguments if isinstance(arguments, str) and arguments else json.dumps(arguments or {})


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise RecursionError


def fresh_id(given: object, used: set[str], *, allowed: re.Pattern[str], prefix: str) -> str:
    """Return an id that no other call has, since an answer belongs to an id; it is noted in `used`."""
    call_id = given if isinstance(given, str) and allowed.fullmatch(given) and given not in used else ""
    call_id = call_id or f"{prefix}_{secrets.token_hex(12)}"
    used.add(call_id)
    return call_id


def sendable_name(name: str) -> str:
    """Return a tool's name as providers take it back: a model may call what no tool can be called."""
    return _NO_NAME.sub("_", name[:_MAX_NAME]) or "_"


def encodable_data(data: dict[str, Any]) -> dict[str, Any]:
    """Replace half characters, which an answer can name by an escape and no request can be encoded with."""
    text = json.dumps(data, ensure_ascii=False, default=str)
    return dict(json.loads(_SURROGATE.sub("\ufffd", text))) if _SURROGATE.search(text) else data


def bounded(texts: Sequence[str]) -> list[str]:
    """Cut texts of one result in their middle, so that all of them together keep its bound."""
    left = MAX_RESULT_CHARS
    kept = []
    for text in texts:
        kept.append(without_middle(text, left) if left > 0 else "")
        left -= len(kept[-1])
    return kept


def observed(result: ExecutionResult | None) -> str:
    """Render what became of a call, for a model that is shown texts only."""
    if result is None:
        return "Error (cancelled): not run"
    return without_middle(result.to_observation(), MAX_RESULT_CHARS)


def seen(result: ExecutionResult | None) -> str | list[str | Picture]:
    """Render what became of a call, for a model that is shown pictures: a text, or texts and pictures."""
    output = result.result if result is not None and result.is_success else None
    if not isinstance(output, ToolOutput) or not any(isinstance(p, MediaContent) for p in output.content):
        return observed(result)
    pieces = list(shown(output.content))
    if output.structured is not None and not any(isinstance(p, TextContent) for p in output.content):
        pieces.append(encodable(to_json(output.structured, indent=2)))
    texts = iter(bounded([piece for piece in pieces if isinstance(piece, str)]))
    whole = [next(texts) if isinstance(piece, str) else piece for piece in pieces]
    return [piece for piece in whole if not isinstance(piece, str) or piece.strip()]


async def usage_of(
    sent: object, received: object, *, cached: object = 0, written: object = 0, names: tuple[str, str]
) -> Usage | None:
    """Count the tokens of an answer and price them.

    Args:
        sent: All that was sent, also what was `cached` (read from a cache) or `written` to one.
        names: Of the model, as it calls itself and as it was asked for: the higher price counts, for the name
            in an answer is only a claim.
    Returns:
        None: the provider did not say, or what it said makes no sense.
    """
    input_tokens, output_tokens = _count(sent), _count(received)
    if not input_tokens or output_tokens is None:
        return None  # nothing was ever answered to nothing
    cached_tokens = min(_count(cached) or 0, input_tokens)
    written_tokens = min(_count(written) or 0, input_tokens - cached_tokens)
    # In a thread: the first call reads the price table.
    prices = [
        await anyio.to_thread.run_sync(
            cost_of, name, input_tokens, output_tokens, cached_tokens, written_tokens
        )
        for name in dict.fromkeys(names)
    ]
    price = max((price for price in prices if price is not None), default=0.0)
    return Usage(cost_usd=price, input_tokens=input_tokens, output_tokens=output_tokens)


def _count(given: object) -> int | None:
    """Read a number of tokens; some servers write it with a decimal point."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    return int(given) if 0 <= given <= MAX_TOKENS_COUNTED else None  # NaN is not, either

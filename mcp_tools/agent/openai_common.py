"""What both of OpenAI's APIs have in common: options, ids and failures."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from mcp_tools.agent.failures import model_error
from mcp_tools.agent.types import Message, ModelError, Turn

ID: Final = re.compile(r"[!-~]{1,256}")
"""Of a call: other servers than OpenAI's make up ids of their own, and want them back."""
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

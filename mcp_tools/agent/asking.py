"""What asking has in common for all APIs: clients, keys, options, and what fails on the way."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from mcp_tools.agent.failures import Told, model_error
from mcp_tools.agent.types import Message, ModelError, Turn
from mcp_tools.errors import key_problem

_REFUSED: Final = re.compile(
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|extra|not (permitted|supported|allowed)", re.IGNORECASE
)


def is_async_client(client: Any, library: str) -> bool:
    """Tell whether a client is an asynchronous one of an SDK, which is not imported to find out."""
    return f"{library}.AsyncAPIClient" in base_names(client)


def base_names(client: Any) -> list[str]:
    """Name the classes of a client, each with the library that it is of."""
    return [f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(client).__mro__]


async def guarded(
    work: Callable[[], Awaitable[Turn]],
    *,
    keys: Mapping[str, object],
    messages: Sequence[Message],
    system: str | None,
    where: str = "",
) -> Turn:
    """Await an answer; whatever fails on the way is a `ModelError` without key and prompt.

    Args:
        keys: Of the client, by the variable that each usually comes from.
        where: Said where there is no such model.
    """
    for name, key in keys.items():
        if isinstance(key, str) and (wrong := key_problem(f"the key ({name})", key)) is not None:
            raise ModelError(wrong, may_have_cost=False)
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
        problem = model_error(said, sent=[list(messages), system], secrets=list(keys.values()), where=where)
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

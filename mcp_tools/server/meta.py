"""What goes beside a call and its result in `_meta`: names of ours, for clients that know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mcp_tools.types import ExecutionResult

IDEMPOTENCY_KEY: Final = "mcp-tools/idempotencyKey"
"""In a request: the client's name for the effect; see `CallContext.idempotency_key`."""
ACCOUNT: Final = "mcp-tools/account"
"""In a result: what the call used and what its limits leave."""
MAX_KEY_CHARS: Final = 200


def idempotency_key(meta: Mapping[str, Any] | None) -> str | None:
    """Return the key that came with a request; None where there is none that can be one.

    Raises:
        ValueError: There is one, and it is no text of 1 to 200 characters: a call that was meant to be
            done once must not be done as if nothing had been said.
    """
    key = (meta or {}).get(IDEMPOTENCY_KEY)
    if key is None:
        return None
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARS:
        raise ValueError(f"_meta.{IDEMPOTENCY_KEY}: must be a text of 1 to {MAX_KEY_CHARS} characters")
    return f"key {key}"  # apart from those that we make


def account(result: ExecutionResult) -> dict[str, Any] | None:
    """Return the `_meta` of a result; None where there is nothing to say."""
    said: dict[str, Any] = {}
    used = result.usage
    if used is not None:
        numbers = {
            "costUsd": used.cost_usd,
            "sandboxCpuSeconds": used.sandbox_cpu_s,
            "inputTokens": used.input_tokens,
            "outputTokens": used.output_tokens,
        }
        said |= {name: round(number, 9) for name, number in numbers.items() if number}
    if result.limits_left:
        said["left"] = dict(result.limits_left)
    if result.retry_after_s is not None:
        said["retryAfterSeconds"] = round(result.retry_after_s, 3)
    if result.output_id is not None:
        said["outputId"] = result.output_id
    if result.joined:
        said["joined"] = True
    return {ACCOUNT: {"callId": result.call_id, **said}} if said else None

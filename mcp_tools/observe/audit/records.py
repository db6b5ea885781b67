"""What happened → the record of it."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from mcp_tools.observe.audit.line import canonical
from mcp_tools.observe.audit.redact import Redactor
from mcp_tools.output.masking import MASK
from mcp_tools.output.plain import to_json
from mcp_tools.types import (
    CallStarted,
    ExecutionResult,
    MediaContent,
    ResourceLink,
    Ruling,
    TextContent,
    ToolOutput,
)

NAME_BYTES: Final = 400
TEXT_BYTES: Final = 1_200
ID_BYTES: Final = 200


def now(kind: str, time_unix_ns: int | None = None, monotonic_ns: int | None = None) -> dict[str, Any]:
    """Return the beginning of a record: its kind, and when on two clocks.

    The wall clock may jump; the order of records is their `seq`. Microseconds, since a reader in JSON
    keeps 53 bits.
    """
    unix_ns = time.time_ns() if time_unix_ns is None else time_unix_ns
    mono_ns = time.monotonic_ns() if monotonic_ns is None else monotonic_ns
    seconds, rest_ns = divmod(unix_ns, 1_000_000_000)
    return {
        "kind": kind,
        "time": f"{_second(seconds)}.{rest_ns // 1000:06d}Z",
        "monotonic_us": mono_ns // 1000,
    }


@functools.lru_cache(maxsize=4)
def _second(unix_s: int) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"@{unix_s}"  # a clock that is set to no year of ours


class Records:
    """Makes the records of one process.

    Args:
        redactor: Decides what stands in them.
        instance: Names the process that has the log open; random.
    """

    def __init__(self, redactor: Redactor, instance: str) -> None:
        self._redactor = redactor
        self._instance = instance
        self._session = functools.lru_cache(maxsize=1024)(lambda session: redactor.digest(_bytes(session)))

    def intent(self, started: CallStarted) -> dict[str, Any]:
        """Return the record of a call that is about to run."""
        arguments, secrets = self._redactor.arguments(started.parameters)
        return {
            **now("call.intent", started.time_unix_ns, started.monotonic_ns),
            **self._about(started),
            "tool": self._redactor.text(started.tool.name, NAME_BYTES),
            "arguments": arguments,
            **self._ruling(started.ruling, secrets),
            "confirmation_id": self._id(started.confirmation_id),
            "channel": self._id(started.channel),
            "isolation": started.tool.isolation or "none",
            "read_only": bool(started.tool.annotations.read_only_hint),
        }

    def outcome(self, result: ExecutionResult, *, has_intent: bool) -> dict[str, Any]:
        """Return the record of how a call ended.

        Args:
            has_intent: There is a record of its beginning, which holds the arguments and who allowed it.
        """
        arguments: dict[str, Any] | None = None
        secrets: list[str] = []
        if not has_intent or result.error is not None:
            arguments, secrets = self._redactor.arguments(result.parameters)
        record = {
            **now("call.outcome"),
            **self._about(result),
            "tool": self._redactor.text(result.tool_name, NAME_BYTES),
            "had_intent": has_intent,
            "status": result.status.value,
            "error_code": None if result.error_code is None else result.error_code.value,
            "error": None if result.error is None else self._text_without(result.error, secrets),
            "duration_us": max(0, int(result.duration_ms * 1000)),
            "result": self._result(result),
            "confirmation_id": self._id(result.confirmation_id or _asked(result)),
            "channel": self._id(result.channel),
            "sandbox": self._sandbox(result.structured),
            "usage": _usage(result),
            "retry_after_ms": _ms(result.retry_after_s),
            "output_id": self._id(result.output_id),
            "joined": result.joined,
        }
        if not has_intent:
            record |= {"arguments": arguments, **self._ruling(result.ruling, secrets)}
        return record

    def event(self, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record of something that happened to the log or its server."""
        return {**now(kind), "instance": self._instance, **facts}

    def _about(self, what: CallStarted | ExecutionResult) -> dict[str, Any]:
        text = self._redactor.text
        session = what.session_id
        return {
            "instance": self._instance,
            "call_id": self._id(what.call_id),
            "principal": text(what.principal, NAME_BYTES),
            # Whoever knows the id of a session over HTTP may be able to speak in it.
            "session": None if session is None else self._session(session),
            "client": None if what.client is None else text(what.client, NAME_BYTES),
            "transport": text(what.transport, ID_BYTES),
        }

    def _id(self, value: str | None) -> str | None:
        return None if value is None else self._redactor.text(value, ID_BYTES)

    def _ruling(self, ruling: Ruling | None, secrets: Iterable[str]) -> dict[str, Any]:
        if ruling is None:
            return {"decision": None, "reason": None}
        return {
            "decision": ruling.decision.name.lower(),
            "reason": self._text_without(ruling.reason, secrets),
        }

    def _text_without(self, text: str, secrets: Iterable[str]) -> str:
        text = text[: 4 * TEXT_BYTES]
        for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
            text = text.replace(secret, MASK)
        return self._redactor.text(text, TEXT_BYTES)

    def _sandbox(self, structured: Any) -> str | None:
        level = structured.get("isolation") if isinstance(structured, Mapping) else None
        return self._redactor.text(level, ID_BYTES) if isinstance(level, str) else None

    def _result(self, result: ExecutionResult) -> dict[str, Any] | None:
        """Its size and digest: results are not kept."""
        if not result.is_success:
            return None
        data = b"".join(_pieces(result.result))
        return {"bytes": len(data), "digest": self._redactor.digest(data)}


def _pieces(value: Any) -> Iterable[bytes]:
    if isinstance(value, str):
        yield _bytes(value)
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, ToolOutput):
        for piece in value.content:
            match piece:
                case TextContent():
                    yield _bytes(piece.text)
                case MediaContent():
                    yield piece.data
                case ResourceLink():
                    yield _bytes(piece.uri)
        if value.structured is not None:
            yield from _pieces(value.structured)
    else:
        try:
            yield canonical(value).encode()
        except (TypeError, ValueError, RecursionError):
            yield _bytes(to_json(value))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _asked(result: ExecutionResult) -> str | None:
    return None if result.confirmation is None else result.confirmation.id


def _usage(result: ExecutionResult) -> dict[str, Any] | None:
    used = result.usage
    if used is None:
        return None
    return {
        "calls": used.calls,
        "cost_usd": _finite(used.cost_usd),
        "sandbox_cpu_s": _finite(used.sandbox_cpu_s),
        "input_tokens": used.input_tokens,
        "output_tokens": used.output_tokens,
    }


def _finite(number: float) -> float | str:
    return number if abs(number) < float("inf") else str(number)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None or not abs(seconds) < 1e12 else int(seconds * 1000)

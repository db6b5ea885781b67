"""Open questions and what each is bound to. A yes is good for one call, once, for a short while.

Kept in memory on purpose: a question dies with the process that asked it, so no answer can be
carried over a restart or to another server.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from mcp_tools.types import DEFAULT_CONFIRM_TIMEOUT_S

MAX_OPEN_PER_PRINCIPAL: Final = 100
MAX_OPEN: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Everything a yes is tied to.

    Args:
        tool_name: The tool.
        registration: Which registration of it: a tool that was exchanged needs a new yes.
        arguments: As they were sent, so that nothing is lost in a conversion.
        principal, session_id: Who called.
        state: The state of the world that the preview showed.
    """

    tool_name: str
    registration: str
    arguments: Mapping[str, Any]
    principal: str
    session_id: str | None
    state: str | None

    def digest(self) -> bytes:
        """Return 32 bytes that differ if anything here differs.

        Arguments that are neither JSON nor can be pickled never give the same bytes twice, so that
        a yes to them does not hold: what cannot be compared cannot be confirmed.
        """
        parts = [self.tool_name, self.registration, self.principal, self.session_id, self.state]
        head = json.dumps(parts, separators=(",", ":")).encode()
        return hashlib.sha256(head + b"\n" + _exact_bytes(self.arguments)).digest()

    def without_state(self) -> Binding:
        """Return what is known of a call before its target is looked at."""
        return replace(self, state=None)


def _exact_bytes(arguments: Mapping[str, Any]) -> bytes:
    try:
        # `True` and `1` differ here, and so do `1` and `1.0`. Keys that JSON would turn into strings do
        # not occur: arguments have names, and nested ones come from JSON or are pickled below.
        if _has_string_keys(arguments):
            return b"json" + json.dumps(arguments, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return b"pickle" + pickle.dumps(dict(arguments))
    except Exception:
        return b"random" + secrets.token_bytes(32)


def _has_string_keys(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _has_string_keys(item) for key, item in value.items())
    return not isinstance(value, list | tuple) or all(_has_string_keys(item) for item in value)


class Verdict(Enum):
    """What became of an answer."""

    ACCEPTED = "accepted"
    UNKNOWN = "unknown, already used, or asked by another server process"
    EXPIRED = "expired"
    ALTERED = (
        "given for something else: the arguments, the caller, the tool or the state of its target changed"
    )


@dataclass(frozen=True, slots=True)
class _Open:
    digest: bytes
    digest_without_state: bytes
    principal: str
    expires_at: float


class ConfirmationLedger:
    """Issues confirmation ids and redeems them.

    Args:
        ttl_s: Seconds an answer may take, on a monotonic clock: setting the wall clock changes nothing.
        clock: Returns monotonic seconds.

    At most 100 questions per principal and 10,000 in all are open; above that the oldest is dropped,
    of the same principal first, so that nobody can push out another's. Safe to use from threads.
    """

    def __init__(
        self, *, ttl_s: float = DEFAULT_CONFIRM_TIMEOUT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ttl_s = ttl_s
        self._clock = clock
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def issue(self, binding: Binding) -> str:
        """Open a question and return its id: 32 random bytes, URL-safe."""
        confirmation_id = secrets.token_urlsafe(32)
        digest, without_state = binding.digest(), binding.without_state().digest()
        with self._lock:
            now = self._clock()
            self._drop_expired(now)
            if self._counts.get(binding.principal, 0) >= MAX_OPEN_PER_PRINCIPAL:
                self._forget(next(i for i, o in self._open.items() if o.principal == binding.principal))
            elif len(self._open) >= MAX_OPEN:
                self._forget(next(iter(self._open)))
            self._open[confirmation_id] = _Open(digest, without_state, binding.principal, now + self.ttl_s)
            self._counts[binding.principal] = self._counts.get(binding.principal, 0) + 1
        return confirmation_id

    def redeem(self, confirmation_id: str, binding: Binding) -> Verdict:
        """Use up an answer. Whatever the verdict, the same id is never accepted again."""
        digest = binding.digest()
        with self._lock:
            question = self._open.get(confirmation_id)
            if question is None:
                return Verdict.UNKNOWN
            if question.principal != binding.principal:
                # Left open: another principal must not be able to spoil a question it has seen.
                return Verdict.UNKNOWN
            self._forget(confirmation_id)
            if self._clock() >= question.expires_at:
                return Verdict.EXPIRED
            if not secrets.compare_digest(question.digest, digest):
                return Verdict.ALTERED
            return Verdict.ACCEPTED

    def asks_about(self, confirmation_id: str, binding: Binding) -> bool:
        """Whether this question is open and about this call, whatever became of its target since."""
        with self._lock:
            question = self._open.get(confirmation_id)
        if question is None or self._clock() >= question.expires_at:
            return False
        return secrets.compare_digest(question.digest_without_state, binding.without_state().digest())

    def discard(self, confirmation_id: str) -> None:
        """Close a question without an answer, or after a no. Unknown ids are ignored."""
        with self._lock:
            if confirmation_id in self._open:
                self._forget(confirmation_id)

    def __len__(self) -> int:
        return len(self._open)

    def _forget(self, confirmation_id: str) -> None:
        question = self._open.pop(confirmation_id)
        left = self._counts[question.principal] - 1
        if left:
            self._counts[question.principal] = left
        else:
            del self._counts[question.principal]

    def _drop_expired(self, now: float) -> None:
        # All live equally long, so the oldest are at the front.
        while self._open and next(iter(self._open.values())).expires_at <= now:
            self._forget(next(iter(self._open)))

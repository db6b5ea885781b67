"""How much one server, and one principal of it, may hold at once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of the HTTP side. Seconds, bytes and counts; every one of them is enforced.

    Args:
        header_s: From the first byte (for a new connection: from its start) to the end of the headers.
        body_s: From the end of the headers to the end of the body.
        keep_alive_s: How long an unused connection stays open between requests.
        stalled_s: How long a client may take no byte of a waiting answer before it is cut off.
        drain_s, drain_bytes: How much of a body is read and dropped after it was refused, so that the
            client sees the refusal rather than a reset.
        header_bytes, header_count, target_bytes: Of one request.
        body_bytes: Of one request.
        buffered_bytes, buffered_bytes_each: Of the bodies of all requests in flight, of one principal's.
        connections: Open at once; further ones get 503. Lowered to three quarters of the descriptors.
        requests_each: In flight for one principal.
        streams, streams_each: Long-lived answers (GET, subscriptions): all together, for one principal.
        sessions, sessions_each: Open sessions, streamable HTTP and SSE together.
        session_idle_s: A session without a request for this long ends.
        calls_each: Requests of one principal that are being worked on, also those whose client left.
        calls_per_sse_session: Requests of one SSE session that still wait for their answer to be read.
        grace_s: How long calls in flight may take to end when the server stops; then they are cancelled.
    """

    header_s: float = 10.0
    body_s: float = 30.0
    keep_alive_s: float = 30.0
    stalled_s: float = 30.0
    drain_s: float = 5.0
    drain_bytes: int = 128 * 1024 * 1024
    header_bytes: int = 64 * 1024
    header_count: int = 100
    target_bytes: int = 8 * 1024
    body_bytes: int = 4 * 1024 * 1024
    buffered_bytes: int = 256 * 1024 * 1024
    buffered_bytes_each: int = 128 * 1024 * 1024
    connections: int = 1_000
    requests_each: int = 500
    streams: int = 500
    streams_each: int = 250
    sessions: int = 1_000
    sessions_each: int = 500
    session_idle_s: float = 1_800.0
    calls_each: int = 256
    calls_per_sse_session: int = 64
    grace_s: float = 0.7


class Shares:
    """Counts who holds how much of something there is only so much of.

    Args:
        total: For everybody together.
        each: For one holder, so that nobody can take it all.
    """

    def __init__(self, *, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._held: dict[Hashable, int] = {}
        self._taken = 0

    def __len__(self) -> int:
        return self._taken

    def take(self, holder: Hashable, amount: int = 1) -> bool:
        """Take some; False, and nothing taken, where so much is not left for this holder."""
        held = self._held.get(holder, 0)
        if self._taken + amount > self._total or held + amount > self._each:
            return False
        self._held[holder] = held + amount
        self._taken += amount
        return True

    def give_back(self, holder: Hashable, amount: int = 1) -> None:
        """Return what was taken."""
        self._taken -= amount
        self._held[holder] -= amount
        if not self._held[holder]:
            del self._held[holder]

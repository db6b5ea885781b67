"""docs/http.md says what the code does."""

from __future__ import annotations

import re

import pytest

from mcp_tools.server.http import HttpApp, HttpLimits
from tests.server.http.http_peer import ROOT

TEXT = (ROOT / "docs" / "http.md").read_text()
LIMITS = HttpLimits()


def test_its_program_runs() -> None:
    [program] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(program, names)
    assert isinstance(names["app"], HttpApp)


@pytest.mark.parametrize(
    ("row", "default"),
    [
        ("headers complete", f"{LIMITS.header_s:.0f} s"),
        ("body complete", f"{LIMITS.body_s:.0f} s"),
        ("unused connection", f"{LIMITS.keep_alive_s:.0f} s"),
        ("a client that takes no byte of an answer", f"{LIMITS.stalled_s:.0f} s"),
        ("headers of one request", f"{LIMITS.header_bytes // 1024} KiB, {LIMITS.header_count} of them"),
        ("body of one request", f"{LIMITS.body_bytes // 1024**2} MiB"),
        ("bodies in flight", f"{LIMITS.buffered_bytes // 1024**2} MiB, half of it"),
        ("connections", f"{LIMITS.connections:,}, or three quarters"),
        ("requests in flight of one principal", f"{LIMITS.requests_each}"),
        ("streams (GET, subscriptions)", f"{LIMITS.streams}, half of them"),
        ("sessions", f"{LIMITS.sessions:,}, half of them"),
        ("session without a request", f"{LIMITS.session_idle_s:,.0f} s"),
        ("requests being worked on, for one principal", f"{LIMITS.calls_each}"),
        ("requests of an SSE session whose answers were not read", f"{LIMITS.calls_per_sse_session}"),
    ],
)
def test_its_limits_are_the_defaults(row: str, default: str) -> None:
    [line] = [line for line in TEXT.splitlines() if line.startswith(f"| {row} |")]
    assert default in line


def test_half_is_half() -> None:
    assert LIMITS.buffered_bytes_each * 2 == LIMITS.buffered_bytes
    assert LIMITS.streams_each * 2 == LIMITS.streams
    assert LIMITS.sessions_each * 2 == LIMITS.sessions


def test_its_grace_is_the_default() -> None:
    assert f"have {LIMITS.grace_s} s to end" in TEXT

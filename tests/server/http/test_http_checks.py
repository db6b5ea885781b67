"""The pure parts: which hosts and origins are ours, sessions and shares by a clock we turn."""

from __future__ import annotations

import pytest

from mcp_tools.errors import ConfigError
from mcp_tools.server.http.hosts import HostCheck
from mcp_tools.server.http.limits import Shares
from mcp_tools.server.http.sessions import SessionLedger

HERE = ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("host", "server"),
    [
        ("127.0.0.1:8000", HERE),
        ("localhost:8000", HERE),
        ("LOCALHOST:8000", HERE),
        ("[::1]:8000", HERE),
        ("192.0.2.7:8000", ("192.0.2.7", 8000)),
        ("[2001:db8::7]:8000", ("2001:db8::7", 8000)),
        ("[fe80::1]:8000", ("fe80::1%eth0", 8000)),
        ("localhost", ("127.0.0.1", 80)),
    ],
)
def test_loopback_names_and_the_address_dialled_are_ours(host: str, server: tuple[str, int]) -> None:
    assert HostCheck().allows_host(host, server)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "localhost",
        "127.0.0.1",
        "localhost:8001",
        "localhost:evil.example",
        "localhost:8000.evil.example",
        "localhost:8000@evil.example",
        "evil.example:8000",
        "evil.example",
        "localhost.:8000",
        "localhost:08000",
        "localhost:8000 ",
        "127.0.0.1:8000, evil.example",
        "127.1:8000",
        "0.0.0.0:8000",
        "[::ffff:127.0.0.1]:8000",
        "192.0.2.7:8000",
        "\u217cocalhost:8000",
    ],
)
def test_any_other_host_is_not_ours(host: str | None) -> None:
    assert not HostCheck().allows_host(host, HERE)


def test_configured_hosts_are_matched_whole() -> None:
    check = HostCheck(["mcp.example", "exact.example:9000"])
    asked = ["mcp.example", "mcp.example:8000", "mcp.example:9000", "exact.example:9000", "exact.example"]
    assert [check.allows_host(host, HERE) for host in asked] == [True, True, False, True, False]
    assert not check.allows_host("www.mcp.example", HERE)


@pytest.mark.parametrize(
    "entry", ["*", "*.example", "localhost:*", "http://a.example", "a.example/x", "", "a:b"]
)
def test_a_wildcard_or_url_is_no_host(entry: str) -> None:
    with pytest.raises(ConfigError, match="allowed host"):
        HostCheck([entry])


@pytest.mark.parametrize("entry", ["*", "a.example", "https://a.example/", "https://*.example", "null"])
def test_a_wildcard_or_bare_name_is_no_origin(entry: str) -> None:
    with pytest.raises(ConfigError, match="allowed origin"):
        HostCheck((), [entry])


def test_only_our_own_pages_and_configured_ones_may_call() -> None:
    check = HostCheck((), ["https://app.example"])
    allowed = [
        None,
        "http://localhost:8000",
        "http://127.0.0.1:8000",
        "https://app.example",
        "HTTPS://App.Example",
    ]
    refused = [
        "",
        "null",
        "http://localhost",
        "http://localhost:3000",
        "https://localhost:8000",
        "http://evil.example",
        "http://localhost:8000.evil.example",
        "https://app.example:8443",
        "https://app.example.evil",
        "https://app.example, https://evil.example",
    ]
    assert all(check.allows_origin(origin, HERE, "http") for origin in allowed)
    assert not any(check.allows_origin(origin, HERE, "http") for origin in refused)


def test_without_a_known_local_address_only_configured_names_are_ours() -> None:
    check = HostCheck(["mcp.example"])
    assert check.allows_host("mcp.example", None)
    assert check.allows_host("mcp.example", ("/run/mcp.sock", None))
    assert not check.allows_host("localhost:8000", None)


def test_shares_are_bounded_for_each_and_for_all() -> None:
    shares = Shares(total=3, each=2)
    assert [shares.take("a"), shares.take("a"), shares.take("a")] == [True, True, False]
    assert [shares.take("b"), shares.take("b")] == [True, False]
    shares.give_back("a")
    assert [shares.take("b"), len(shares)] == [True, 3]
    for holder in ("a", "b", "b"):
        shares.give_back(holder)
    assert len(shares) == 0
    assert not shares._held  # names of past holders are not kept


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def ledger(clock: Clock, *, total: int = 4, each: int = 2) -> SessionLedger:
    return SessionLedger(Shares(total=total, each=each), idle_s=100, clock=clock)


def test_a_session_belongs_to_who_opened_it() -> None:
    """C-11."""
    sessions = ledger(Clock())
    assert sessions.reserve("alice")
    sessions.open("s", "alice")
    assert not sessions.enter("s", "bob")
    assert not sessions.enter("other", "alice")
    assert sessions.enter("s", "alice")


def test_an_idle_session_ends_and_a_busy_one_does_not() -> None:
    clock = Clock()
    sessions = ledger(clock)
    for name in ("idle", "busy"):
        assert sessions.reserve("alice")
        sessions.open(name, "alice")
    assert sessions.enter("busy", "alice")
    clock.now_s = 100
    assert not sessions.enter("idle", "alice")
    assert sessions.enter("busy", "alice")
    sessions.leave("busy")
    sessions.leave("busy")
    clock.now_s = 199
    assert sessions.enter("busy", "alice")


def test_one_principal_cannot_take_every_session_and_idle_ones_make_room() -> None:
    clock = Clock()
    sessions = ledger(clock)
    for name in ("a1", "a2"):
        assert sessions.reserve("alice")
        sessions.open(name, "alice")
    assert not sessions.reserve("alice")
    assert sessions.reserve("bob")
    sessions.forgo("bob")
    clock.now_s = 100
    assert sessions.reserve("alice")
    assert len(sessions) == 0


def test_closing_twice_gives_back_once() -> None:
    sessions = ledger(Clock(), each=1)
    assert sessions.reserve("alice")
    sessions.open("s", "alice")
    sessions.close("s")
    sessions.close("s")
    sessions.leave("s")
    assert sessions.reserve("alice")
    assert not sessions.reserve("alice")

"""Sites, names and rules that were made to do harm: each is bounded, and harms no other site."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from mcp_tools.policy import RulePolicy
from mcp_tools.types import Decision
from mcp_tools.web import names, urls
from mcp_tools.web.robots import MAX_LINES, Robots
from mcp_tools.web.types import Busy, Refused, Unreachable
from tests.web.conftest import MakeClient
from tests.web.listener import listening, says
from tests.web.test_client import certificate, redirecting

WAIT_S = 15.0


# --- robots.txt -------------------------------------------------------------------------------


async def test_a_robots_txt_for_thousands_of_programs_is_read_for_ours(client: MakeClient) -> None:
    """Read as a whole, 137 KB of it take half a minute and more than a gigabyte."""
    agents = "".join(f"User-agent: a{number}\n" for number in range(4_500))
    rules = "".join(f"Allow: /{number}\n" for number in range(4_500))
    ours = "User-agent: mcp-tools/9\nUSER AGENT *\nDisallow: /no\nSitemap: /map\nAllow: /no/but\n"
    body = agents + rules + ours
    with listening(says(body.encode())) as listener, anyio.fail_after(5):
        robots = Robots(client("127.0.0.1"), user_agent="mcp-tools/1.0")
        await robots.check(listener.url("/1"))
        await robots.check(listener.url("/no/but"))
        with pytest.raises(Refused, match="does not allow"):
            await robots.check(listener.url("/no"))


async def test_more_rules_for_us_than_can_be_obeyed_allow_nothing(client: MakeClient) -> None:
    body = b"User-agent: *\n" + b"Allow: /a\n" * (MAX_LINES + 1)
    with listening(says(body)) as listener, pytest.raises(Refused, match="more than 20,000 lines"):
        await Robots(client("127.0.0.1"), user_agent="x").check(listener.url())


async def test_a_redirect_of_robots_txt_is_followed_only_where_its_caller_may_go(client: MakeClient) -> None:
    async def nowhere(target: str) -> None:
        raise PermissionError(target)

    with listening(says(b"User-agent: *\nDisallow: /\n")) as forbidden:
        away = redirecting(forbidden.url("/?leak=1", host="localhost"))
        with listening(away) as listener:
            robots = Robots(client("127.0.0.1", "localhost"), user_agent="x")
            with pytest.raises(PermissionError, match="leak"):
                await robots.check(listener.url(), nowhere)
            assert forbidden.connections == 0
            # Nothing of it is kept: who may go there is asked what the file says.
            with pytest.raises(Refused, match="does not allow"):
                await robots.check(listener.url())
            assert forbidden.connections == 1


async def test_a_limit_of_ours_is_not_held_against_a_site(client: MakeClient) -> None:
    is_busy = True

    async def resolver(host: str, port: int) -> Sequence[str]:
        if is_busy:
            raise Busy("too many names are being looked up", retry_after_s=10)
        return ["127.0.0.1"]

    with listening(says(b"")) as listener:
        robots = Robots(client("site.example", resolver=resolver), user_agent="x")
        with pytest.raises(Busy):
            await robots.check(listener.url(host="site.example"))
        is_busy = False
        await robots.check(listener.url(host="site.example"))


# --- Answers ----------------------------------------------------------------------------------


async def test_an_answer_in_small_pieces_is_cut_early(client: MakeClient) -> None:
    def answer(peer: socket.socket, _: bytes) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _number in range(2_000):
            peer.sendall(b"1\r\na\r\n" * 1_000)

    with listening(answer) as listener, anyio.fail_after(5):
        found = await client("127.0.0.1").get(listener.url())
    assert found.is_cut
    assert found.body == b"a" * 5_000


@pytest.mark.parametrize("place", ["http://[", "//[::1", "//[1.2.3.4]/", "http://exa\u2100mple/"])
async def test_a_redirect_to_what_is_no_url_is_refused_in_our_words(client: MakeClient, place: str) -> None:
    with listening(redirecting(place)) as listener, pytest.raises(Refused) as caught:
        await client("127.0.0.1").get(listener.url())
    assert "exa" not in str(caught.value)


@pytest.mark.parametrize(
    "sent", [b"\x17\x03\x03\x00\x40" + b"Z" * 64, b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 "]
)
async def test_broken_tls_is_an_answer_that_did_not_come(
    client: MakeClient, tmp_path: Path, sent: bytes
) -> None:
    server, trusting = certificate(tmp_path, "site.example")

    def answer(peer: socket.socket, _: bytes) -> None:
        raw = socket.socket(fileno=peer.detach())
        with raw:
            raw.sendall(sent)

    async def resolver(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    with listening(answer, server) as listener, anyio.fail_after(WAIT_S):
        web = client("site.example", resolver=resolver, ssl_context=trusting)
        with pytest.raises(Unreachable):
            await web.get(listener.url(host="site.example", scheme="https"))


# --- Names and addresses ----------------------------------------------------------------------


async def test_a_domain_whose_names_are_never_answered_leaves_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()

    def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        if host.endswith("slow.example"):
            released.wait(WAIT_S)
        return [(0, 0, 0, "", ("93.184.215.14", port))]

    monkeypatch.setattr(names.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(names, "MAX_WAIT_S", 0.2)
    refused: list[str] = []
    most = anyio.Event()

    async def look_up(host: str) -> None:
        try:
            await names.resolve(host, 80)
        except Busy:
            refused.append(host)
            if len(refused) == 40 - names.MAX_OF_DOMAIN:
                most.set()

    try:
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(look_up, f"a{number}.slow.example")
            with anyio.fail_after(WAIT_S):
                await most.wait()
                assert await names.resolve("quick.test", 80) == ["93.184.215.14"]
            released.set()
    finally:
        released.set()
    assert len(refused) == 40 - names.MAX_OF_DOMAIN


async def test_a_lookup_that_was_withdrawn_is_counted_no_more() -> None:
    for _ in range(3 * names.MAX_OF_DOMAIN):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await names.resolve("a.withdrawn.test", 80)
    assert names._under_way["withdrawn.test"] == 0


async def test_this_machines_own_public_address_is_not_asked(
    client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names._binds("127.0.0.1")
    assert not names._binds("192.0.2.1")
    # No public address of this machine can be had here; that one can be bound is how it is known.
    monkeypatch.setattr(names, "_binds", lambda address: address == "93.184.215.14")
    names._binds_anything.cache_clear()
    try:
        with pytest.raises(Refused, match="not public"):
            await client().get("http://93.184.215.14/")
    finally:
        names._binds_anything.cache_clear()


@pytest.mark.parametrize("port", [22, 25, 6379, 6667])
async def test_ports_of_other_protocols_are_not_asked(client: MakeClient, port: int) -> None:
    with pytest.raises(Refused, match="another protocol's"):
        await client().get(f"http://93.184.215.14:{port}/")


@pytest.mark.parametrize(
    "host", ["localhost", "metadata.google.internal", "printer", "nas.local", "a.localhost"]
)
async def test_a_proxy_is_not_asked_for_names_of_the_inside(client: MakeClient, host: str) -> None:
    with listening(says(b"inside")) as proxy:
        web = client(proxy=f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(Refused, match="not public"):
            await web.get(f"http://{host}/")
        assert proxy.connections == 0
        assert (await web.get("http://site.example/")).body == b"inside"


# --- Rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "url"),
    [
        ("https://example.com", "https://example.com/"),
        ("https://example.com", "https://example.com/a?b"),
        ("example.com:443", "https://example.com/a"),
        ("https://example.com:443/**", "https://example.com/a"),
        ("example.com", "http://EXAMPLE.com.:8080/"),
        ("b\u00fccher.example", "http://b\u00fccher.example/"),
        ("*.b\u00fccher.example", "http://a.xn--bcher-kva.example/"),
        ("http://example.com/admin/**", "http://example.com/%61dmin/x"),
        ("http://example.com/admin/**", "http://example.com//admin///x"),
        ("*.b\u00fccher.example", "http://a_b.xn--bcher-kva.example/"),
    ],
)
def test_a_rule_means_a_page_however_either_is_written(rule: str, url: str) -> None:
    policy = RulePolicy.parse(deny=[f"fetch_url({rule})"])
    subjects = [urls.spellings(urls.parse(url))]
    assert any(each.matches("fetch_url", subjects) for each in policy.rules)
    assert policy.rules[0].decision is Decision.DENY


@pytest.mark.parametrize(
    "path", ["/pub/..%2fadmin", "/pub/%252e%252e/admin", "/pub/..%5cadmin", "/a/%252e%252e%252fb"]
)
def test_a_path_that_hides_where_it_leads_is_refused(path: str) -> None:
    with pytest.raises(Refused, match="hides"):
        urls.parse(f"http://example.com{path}")
    assert urls.parse("http://example.com/a%20b/../c%2fd").target == "/c%2fd"


def test_spaces_in_a_redirect_are_written_as_they_should_have_been() -> None:
    base = urls.parse("http://example.com/a/")
    assert str(urls.join(base, " /two words?q=a b ")) == "http://example.com/two%20words?q=a%20b"


async def test_a_page_that_redirects_takes_one_turn_of_a_slow_site(client: MakeClient) -> None:
    with listening(says(b"User-agent: *\nCrawl-delay: 6\n")) as listener:
        robots = Robots(client("127.0.0.1"), user_agent="x")
        await robots.check(listener.url("/a"))
        await robots.check(listener.url("/a/"), is_redirect=True)
        with pytest.raises(Refused, match="6 s between pages"):
            await robots.check(listener.url("/b"))


async def test_a_rule_cut_in_half_is_none(client: MakeClient) -> None:
    head, rule = b"User-agent: *\n", b"\nDisallow: /"
    lines = head + b"#" * (500 * 1024 - len(head) - len(rule)) + rule + b"private\n"
    with listening(says(lines)) as listener:
        await Robots(client("127.0.0.1"), user_agent="x").check(listener.url("/open"))

"""F-02, F-13: what is a URL that may be asked, and how it is written."""

from __future__ import annotations

import ipaddress

import pytest

from mcp_tools.web.addresses import is_public
from mcp_tools.web.types import Refused
from mcp_tools.web.urls import allowed_hosts, join, parse


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://example.com/",
        "dict://example.com/",
        "data:text/html,x",
        "javascript:alert(1)",
        "jar:http://example.com/!/",
        "blob:http://example.com/1",
        "view-source:http://example.com/",
        "http://user@example.com/",
        "http://user:secret@example.com/",
        "http://example.com@127.0.0.1/",
        "http://example.com/\r\nX: y",
        "ht\ttp://example.com/",
        " http://example.com/",
        "http://example.com/a b",
        "http://exam\nple.com/",
        "http:\\\\example.com\\",
        "http://example.com\\@127.0.0.1/",
        "http:/example.com",
        "http:///example.com",
        "http:example.com",
        "//example.com/",
        "",
        "http://",
        "http://:80/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:٨٠/",
        "http://example.com:80:80/",
        "http://exa%6dple.com/",
        "http://example..com/",
        "http://-example.com/",
        "http://" + "a" * 64 + ".com/",
        "http://" + "a." * 130 + "com/",
        "http://xn--zz--.com/",
        "http://a\u200db.com/",
        "http://a\u202eb.com/",
        "http://[::1",
        "http://[::1]x/",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[v1.x]/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.1/",
        "http://0/",
        "http://127.0.0.1.1/",
        "http://256.0.0.1/",
        "http://1.0x/",
        "http://\uff11\uff12\uff17.1/",
        "http://example.com/" + "a" * 9000,
        "http://example.com/\ud800",
    ],
)
def test_what_is_no_plain_url_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse(text)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("HTTP://EXAMPLE.com", "http://example.com/"),
        ("http://example.com:80/a?b=c#d", "http://example.com/a?b=c"),
        ("https://example.com.:8443?q", "https://example.com:8443/?q"),
        ("http://bücher.example/é?ü", "http://xn--bcher-kva.example/%C3%A9?%C3%BC"),
        ("http://\u0430pple.com/", "http://xn--pple-43d.com/"),
        ("http://ⓛocalhost/", "http://localhost/"),
        ("http://\uff11\uff12\uff17.0.0.1/", "http://127.0.0.1/"),
        ("http://[0:0::1]:81/", "http://[::1]:81/"),
        ("http://a_b.example.com/", "http://a_b.example.com/"),
        ("http://example.com/a/./../%2e%2E/b/..", "http://example.com/"),
        ("http://example.com/a//b/?x=/../y", "http://example.com/a//b/?x=/../y"),
    ],
)
def test_a_url_has_one_spelling_in_ascii(text: str, written: str) -> None:
    assert str(parse(text)) == written
    assert str(parse(written)) == written


def test_a_redirect_is_read_from_where_it_stood_and_as_strictly() -> None:
    base = parse("https://example.com/a/b?c")
    assert str(join(base, "../d")) == "https://example.com/d"
    assert str(join(base, "//other.example/x")) == "https://other.example/x"
    for location in ("file:///etc/passwd", "//user@x.example/", "/a\tb", "\\\\x.example", "javascript:1"):
        with pytest.raises(Refused):
            join(base, location)


def test_an_owners_host_is_read_or_the_start_is_refused() -> None:
    read = allowed_hosts(frozenset({"LocalHost", "search.example:8080", "::1", "[::1]:81", "127.0.0.1:80"}))
    expected = {("localhost", None), ("search.example", 8080), ("::1", None), ("::1", 81), ("127.0.0.1", 80)}
    assert read == expected
    for entry in ("http://x", "a b", "x/y", "x@y", "", "10.0.0.0/8"):
        with pytest.raises(ValueError, match="no host"):
            allowed_hosts(frozenset({entry}))


NOT_PUBLIC = """
0.0.0.0 0.1.2.3 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1
172.31.255.255 192.0.0.192 192.0.2.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1
255.255.255.255 192.88.99.1 168.63.129.16
:: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1
64:ff9b::127.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8 64:ff9b:1::7f00:1 100::1 2001::1 2001:db8::1
2002:7f00:1:: 2002:808:808:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1 fe80::1%eth0
2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:7f00:1
""".split()  # noqa: SIM905 - a list of a hundred quotes is harder to read


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_what_leads_elsewhere_is_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_what_everybody_reaches_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("ab--c.b\u00fccher.example", "ab--c.xn--bcher-kva.example"),
        ("a_b.B\u00dcCHER.example", "a_b.xn--bcher-kva.example"),
        ("b\u00fccher\u3002example", "xn--bcher-kva.example"),
    ],
)
def test_a_name_is_encoded_label_by_label(host: str, shown: str) -> None:
    assert parse(f"http://{host}/").host == shown


@pytest.mark.parametrize(
    "host", ["exa\u2100mple", "b\u00fc%41.example", "b\u00fc..example", "\u00ad.example"]
)
def test_what_is_no_name_after_all_is_refused(host: str) -> None:
    with pytest.raises(Refused):
        parse(f"http://{host}/")

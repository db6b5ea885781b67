"""Queries in, results out."""

from __future__ import annotations

import pytest

from mcp_tools.builtin.search.tidy import one_line, safe_url, tidy
from mcp_tools.builtin.search.types import Hit
from mcp_tools.errors import ToolError
from mcp_tools.output.untrusted import mark


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("two words", "two words"),
        ("  a\r\nX-Header: 1\tb ", "a X-Header: 1 b"),
        ("100 %00 %0d%0a", "100 %00 %0d%0a"),
        ("naïve 東京 👩‍💻", "naïve 東京 👩‍💻"),
    ],
)
def test_a_query_becomes_one_line(given: str, asked: str) -> None:
    assert one_line(given) == asked


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (" \r\n\t ", "empty"),
        ("a\x00b", "U+0000"),
        ("a\x1b[2Jb", "U+001B"),
        ("a\ud800b", "U+D800"),
        ("x" * 401, "at most 400"),
    ],
)
def test_a_query_that_no_engine_can_be_asked_is_refused(given: str, said: str) -> None:
    with pytest.raises(ToolError, match=said.replace("+", r"\+")):
        one_line(given)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://Example.COM", "https://example.com/"),
        ("http://host.example:8080/a?b=c&d=%20#part", "http://host.example:8080/a?b=c&d=%20"),
        ("https://bücher.example/größe?q=ü", "https://xn--bcher-kva.example/gr%C3%B6%C3%9Fe?q=%C3%BC"),
        ("https://\u0430pple.com/", "https://xn--pple-43d.com/"),
        ("https://[2001:db8::1]/", "https://[2001:db8::1]/"),
    ],
)
def test_a_url_is_shown_in_ascii_with_its_host_in_punycode(given: str, shown: str) -> None:
    assert safe_url(given) == shown


@pytest.mark.parametrize(
    "given",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "ftp://host.example/",
        "//host.example/",
        "https://google.com@evil.example/",
        "https://good.example\\@evil.example/",
        "https://host.example/a b",
        "https://host.example/a\r\nb",
        "java\tscript:alert(1)",
        "https://" + "a" * 64 + ".example/",
        "https://" + "ü" * 70 + ".example/",
        "https://host.example:99999/",
        "https://[::1/",
        "https://a..b.example/",
        "https://",
        "https://host.example/" + "x" * 2_000,
        "",
    ],
)
def test_a_url_that_nobody_should_follow_is_left_out(given: str) -> None:
    assert safe_url(given) is None
    assert tidy([Hit(title="t", url=given, snippet="s")], 10) == []


def test_each_page_is_shown_once() -> None:
    urls = (
        "https://a.example/x",
        "http://www.a.example/x/",
        "https://a.example/x#part",
        "https://a.example/y",
    )
    rows = tidy([Hit(title="t", url=url, snippet="") for url in urls], 10)
    assert [row["url"] for row in rows] == ["https://a.example/x", "https://a.example/y"]


def test_what_cannot_be_seen_is_removed_and_what_is_long_is_cut() -> None:
    hidden = "".join(chr(0xE0000 + ord(c)) for c in "obey")
    hit = Hit(
        title=f"a\u200bb\u202ec{hidden}\x1b[31m",
        url="https://a.example/",
        snippet="line\none " + "x" * 10_000_000,
        date="2026\u2066-01",
        source="\u200b",
    )
    [row] = tidy([hit], 10)
    assert row["title"] == "abc[31m"
    assert row["snippet"].startswith("line one xxx") and len(row["snippet"]) == 500
    assert row["date"] == "2026-01" and "source" not in row


def test_no_text_ends_its_own_mark() -> None:
    first, second = mark("x", source="s"), mark("x", source="s")
    assert first != second
    name = first.split()[1].rstrip(":")
    assert len(name) == 12 and first.endswith(f"[end of untrusted {name}]")

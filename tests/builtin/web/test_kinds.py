"""F-07: what a body is goes by what is in it."""

from __future__ import annotations

import bz2
import json
import lzma
import random
import subprocess
import sys
import zlib

import pytest

from mcp_tools.builtin.web.extract_worker import from_html, is_markup
from mcp_tools.builtin.web.readable import kind_of, read
from mcp_tools.errors import ToolError
from mcp_tools.types import ExecutionStatus, TextContent, ToolOutput
from mcp_tools.web.types import WebResponse
from tests.builtin.web.test_fetch_url import Site, call, site, structured

__all__ = ["site"]  # the fixture
LITTLE = b"few words, many times. " * 9


def answer(content_type: str, body: bytes, *, is_cut: bool = False) -> WebResponse:
    headers = {"content-type": content_type}
    return WebResponse(url="http://a.example/", status=200, headers=headers, body=body, is_cut=is_cut)


@pytest.mark.parametrize(
    ("content_type", "body", "what"),
    [
        ("application/x-bzip2", bz2.compress(LITTLE), "bzip2 data of"),
        ("text/plain", lzma.compress(LITTLE), "xz data of"),
        ("text/plain", b"\x28\xb5\x2f\xfd" + bytes(20), "zstd data of"),
        ("text/plain", b"7z\xbc\xaf\x27\x1c" + bytes(20), "a 7z archive of"),
        ("text/html", b"MZ\x90\0\x03\0\0\0", "a program of"),
        ("text/plain", b"RIFF\x24\x01\x01\x01WEBPVP8 ", "a picture, sound or film of"),
        ("text/plain", b"\0\0\0\x18ftypmp42", "a film or picture of"),
        ("text/plain", b"ID3\x03\0\0\0", "a sound file of"),
        ("image/webp", b"some picture", "image/webp of 12 bytes"),
        ("audio/ogg", b"OggS", "audio/ogg of"),
        ("", zlib.compress(random.Random(1).randbytes(300)), "binary data of"),
        ("application/octet-stream", bytes(n % 255 + 1 for n in range(600)), "application/octet-stream of"),
    ],
)
def test_what_is_no_text_is_called_what_it_is(content_type: str, body: bytes, what: str) -> None:
    with pytest.raises(ToolError, match=what):
        kind_of(answer(content_type, body))


def test_the_size_of_what_was_cut_is_the_least_it_has() -> None:
    with pytest.raises(ToolError, match="of at least 12 bytes"):
        kind_of(answer("image/webp", b"some picture", is_cut=True))


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/plain", b"MZ is a label for Mozambique.", "MZ is a label for Mozambique."),
        ("text/plain", b"BZh is how it begins, ID3 is another", "BZh is how it begins, ID3 is another"),
        ("text/plain; charset=utf-16", "wide words".encode("utf-16-le"), "wide words"),
        (
            "text/plain; charset=utf-16be",
            "\u043d\u0435 \u0430\u0441\u043a\u0438".encode("utf-16-be"),
            "\u043d\u0435 \u0430\u0441\u043a\u0438",
        ),
        ("text/plain", "wide words".encode("utf-16-le"), "wide words"),
        ("text/plain", "wide words".encode("utf-16-be"), "wide words"),
        ("text/plain", "Gr\u00fc\u00dfe \u2026".encode("cp1252"), "Gr\u00fc\u00dfe \u2026"),
        ("text/plain; charset=iso-2022-jp", "\u65e5\u672c\u8a9e".encode("iso2022_jp"), "\u65e5\u672c\u8a9e"),
        ("image/svg+xml", b"<svg><text>drawn</text></svg>", "<svg><text>drawn</text></svg>"),
        ("text/plain", b"<!doctype html><p>source</p>", "<!doctype html><p>source</p>"),
        ("text/plain", b"\x1b[1mbold\x1b[0m", "\x1b[1mbold\x1b[0m"),
    ],
)
async def test_what_is_text_is_read_as_it_is(content_type: str, body: bytes, text: str) -> None:
    assert (await read(answer(content_type, body), raw=False, principal="one")).text == text


@pytest.mark.parametrize("text", ['[1, 2]\n[3]"', "line one\n  line two < three & four\n", "1 < 2"])
def test_text_that_is_called_html_is_no_markup(text: str) -> None:
    assert not is_markup(text)


def test_markup_is_told_from_data() -> None:
    assert is_markup("<p>words") and is_markup("[see] <b>this</b>") and is_markup("a &amp; b")
    assert not is_markup(json.dumps({"page": "<p>words</p>"}))
    assert is_markup("[" * 100_000 + "<p>")


async def test_data_that_is_called_a_page_comes_as_it_is(site: Site) -> None:
    body = b'{"a": [1, 2],\n "b": "<p>"}'
    site.pages["/"] = (200, {"Content-Type": "text/html"}, body)
    assert structured(await call(url=site.url + "/"))["content"] == body.decode()


def test_an_index_comes_with_its_links_and_an_article_as_before() -> None:
    items = "".join(f"<li><a href='p{n}'>Page <b>num</b>ber {n}</a></li>" for n in range(12))
    index = f"<html><title>T</title><body><h1>Index</h1><ul>{items}</ul></body></html>"
    assert "[Page number 3](http://a.example/dir/p3)" in from_html(index, "http://a.example/dir/")[1]
    intro = "<p>" + "What this list is for, in some words. " * 5 + "</p>"
    listed = from_html(f"<body>{intro}<ul>{items}</ul></body>", "http://a.example/dir/")[1]
    assert "What this list is for" in listed and "[Page number 3](http://a.example/dir/p3)" in listed
    card = "<div><a href='/x (y)'><h3>Head</h3><p>words</p></a></div>"
    assert from_html(card, "http://a.example/")[1] == "[Head words](http://a.example/x%20%28y%29)"
    words = "<p>" + "Some words of an article to read. " * 20 + "</p>"
    article = f"<body><nav><a href='/n'>Navigation</a></nav><article><h1>H</h1>{words}</article></body>"
    assert from_html(article, "http://a.example/")[1].startswith("# H\n\nSome words")
    assert from_html("<title>T</title><body><div id=root></div>", "http://a.example/")[1] == ""


def test_what_stands_in_an_attribute_does_not_come_in_place_of_the_page() -> None:
    words = "words that nobody sees " * 20
    unseen = json.dumps({"topic_1": json.dumps({"post_stream": {"posts": [{"cooked": f"<p>{words}</p>"}]}})})
    items = "".join(f"<li><a href='p{n}'>Page {n}</a></li>" for n in range(12))
    page = f"<body><div id=data-preloaded data-preloaded='{unseen}'></div><ul>{items}</ul></body>"
    found = from_html(page, "http://a.example/")[1]
    assert "nobody sees" not in found and "[Page 3](http://a.example/p3)" in found


def test_a_page_of_many_unclosed_elements_comes_whole() -> None:
    page = "<body>" + "".join(f"<font><p>Line {n} of an old page.</p>" for n in range(400))
    assert "Line 399 of an old page." in from_html(page, "http://a.example/")[1]


@pytest.mark.parametrize("source", ["<!-- only words for nobody -->", "<!doctype html>", " "])
def test_a_page_without_an_element_has_no_text(source: str) -> None:
    assert from_html(source, "http://a.example/") == ("", "")


def test_a_page_of_no_named_kind_is_known_by_its_beginning() -> None:
    for begins in (b"<!DOCTYPE html>", b"\n<HTML>", b"<head><title>", b"<body>"):
        assert kind_of(answer("", begins)) == "html"
    assert kind_of(answer("", b"<data>")) == "text"


@pytest.mark.parametrize(("status", "body"), [(204, b""), (304, b""), (200, b"")])
async def test_an_answer_without_a_body_says_so(site: Site, status: int, body: bytes) -> None:
    site.pages["/"] = (status, {"Content-Type": "text/html"}, body)
    result = await call(url=site.url + "/")
    assert structured(result)["status"] == status
    assert isinstance(result.result, ToolOutput)
    last = result.result.content[-1]
    assert isinstance(last, TextContent)
    assert f"answered {status} and sent nothing to read" in last.text


async def test_what_a_site_says_of_its_error_comes_marked_and_cut(site: Site) -> None:
    said = b"no such issue\xe2\x80\xae, see /new " + b"x" * 2_000
    site.pages["/"] = (404, {"Content-Type": "text/plain"}, said)
    result = await call(url=site.url + "/")
    assert result.status is ExecutionStatus.ERROR
    first, mark, words, end = str(result.error).splitlines()
    assert first.endswith("answered 404 and said:")
    assert mark.startswith("[untrusted ") and end.startswith("[end of untrusted ")
    assert words.startswith("no such issue, see /new xxx") and len(words) <= 500
    site.pages["/"] = (404, {"Content-Type": "text/html"}, b"<p>call write_file")
    assert str((await call(url=site.url + "/")).error).endswith("answered 404")
    site.pages["/"] = (500, {"Content-Type": "text/plain"}, b"\x89PNG" + bytes(50))
    assert str((await call(url=site.url + "/")).error).endswith("answered 500")


def test_a_system_without_resource_limits_can_load_the_reader() -> None:
    """Windows has no such module."""
    code = (
        "import sys; sys.modules['resource'] = None; import mcp_tools.builtin.web.readable as r; "
        "from mcp_tools.builtin.web.extract_worker import limit_itself; limit_itself(); print('loaded')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "loaded\n"

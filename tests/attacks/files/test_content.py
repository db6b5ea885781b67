"""A-12, A-16, A-17: names and bytes are what they are, or an error says so."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mcp_tools.builtin.files import pages
from mcp_tools.types import MediaContent

TEXTS = {
    "crlf": "a\r\nb\r\n",
    "bom": "\ufeffhello",
    "nul": "a\0b\0",
    "control": "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029",
    "no last newline": "a\nb",
    "astral": "𝄞🜚\U0010ffff",
    "empty": "",
    "long line": "x" * 200_000,
    "only newlines": "\n\n\n",
    "lone cr": "a\rb\r",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_a16_what_is_written_is_stored_and_read_back(one_way: Any, text: str) -> None:
    written = await one_way.call("write_file", path="x", content=text)
    assert (one_way.root / "x").read_bytes() == text.encode()
    assert written["bytes_written"] == len(text.encode())
    assert await one_way.call("read_file", path="x") == text
    if len(text) <= pages.PAGE_BYTES:
        assert await one_way.call("read_text_file", path="x") == text
        assert await one_way.call("read_text_file", path="x", tail=1000) == text
    if text:
        await one_way.call("edit_file", path="x", edits=[{"oldText": text, "newText": "!"}])
        assert (one_way.root / "x").read_bytes() == b"!"


@pytest.mark.parametrize(
    "content",
    [
        b"caf\xe9",
        b"\xff\xfeh\0\xe9\0",
        b"ok then \xc3\x28",
        b"\xed\xa0\x80",
        b"\xf5\x80\x80\x80",
        bytes(range(256)).replace(b"\n", b""),
    ],
    ids=["latin-1", "utf-16", "broken utf-8", "encoded surrogate", "beyond unicode", "all bytes"],
)
async def test_a17_what_is_no_utf8_is_an_error_and_never_a_replacement(one_way: Any, content: bytes) -> None:
    (one_way.root / "x").write_bytes(content)
    assert "\ufffd" in content.decode(errors="replace")  # what an unprotected reader would hand on
    for tool, arguments in (
        ("read_file", {}),
        ("read_text_file", {}),
        ("read_text_file", {"head": 1}),
        ("read_text_file", {"tail": 1}),
        ("edit_file", {"edits": [{"oldText": "a", "newText": "b"}]}),
    ):
        error = await one_way.refusal(tool, path="x", **arguments)
        assert "is not utf-8 text" in error
        assert "offset" in error
        assert "\ufffd" not in error
    assert (one_way.root / "x").read_bytes() == content


async def test_a17_a_real_replacement_character_is_content(one_way: Any) -> None:
    (one_way.root / "x").write_text("\ufffd")
    assert await one_way.call("read_file", path="x") == "\ufffd"


async def test_a17_declared_encodings_read_and_a_picture_comes_as_a_picture(one_way: Any) -> None:
    (one_way.root / "latin").write_bytes(b"caf\xe9")
    assert await one_way.call("read_file", path="latin", encoding="latin-1") == "café"
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    (one_way.root / "picture").write_bytes(png)
    assert "read_media_file" in await one_way.refusal("read_file", path="picture")
    output = await one_way.call("read_media_file", path="picture")
    assert output.content == [MediaContent(data=png, media_type="image/png")]


async def test_a12_two_normal_forms_of_a_name_are_two_files(one_way: Any) -> None:
    composed, decomposed = "caf\xe9.txt", "cafe\u0301.txt"
    for mode in ("x", "w"):
        await one_way.call("write_file", path=composed, content="composed", mode=mode)
        await one_way.call("write_file", path=decomposed, content="decomposed", mode=mode)
    assert sorted(os.listdir(one_way.root)) == sorted([composed, decomposed])
    assert await one_way.call("read_file", path=composed) == "composed"
    assert await one_way.call("read_file", path=decomposed) == "decomposed"

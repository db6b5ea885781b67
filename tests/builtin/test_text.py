"""Bytes and text: exact, or an error that says what to try."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_tools.builtin.files.text import check_encoding, decode, media_type_of, trimmed_to_characters
from mcp_tools.errors import ToolError


@pytest.mark.parametrize("name", ["utf-8", "UTF8", "utf-16", "latin-1", "cp1252", "shift_jis", "ascii"])
def test_text_encodings_are_known(name: str) -> None:
    check_encoding(name)


@pytest.mark.parametrize(
    "name", ["rot13", "hex", "zlib", "idna", "unicode_escape", "utf-7", "nope", "", "a\0"]
)
def test_everything_else_is_refused(name: str) -> None:
    with pytest.raises(ToolError, match="is not a text encoding"):
        check_encoding(name)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"ab\xff", "byte 0xff at offset 2"),
        (b"\x89PNG\r\n\x1a\n", "use read_media_file"),
        ("\ufeffhé".encode("utf-16-le"), "encoding='utf-16'"),
        (b"%PDF-\xff", "application/pdf"),
        ("é".encode("latin-1"), "latin-1"),
    ],
)
def test_what_is_no_utf8_says_where_and_what_to_try(content: bytes, says: str) -> None:
    with pytest.raises(ToolError, match=says):
        decode(content, "x")


@given(st.text(min_size=1), st.integers(0, 20), st.integers(0, 20))
def test_a_cut_text_decodes_and_loses_at_most_a_character_at_each_end(
    text: str, start: int, back: int
) -> None:
    content = text.encode()
    cut = content[start : len(content) - back]
    trimmed = trimmed_to_characters(cut)
    assert trimmed.decode() in text
    assert len(cut) - len(trimmed) <= 6


def test_types_are_told_by_content() -> None:
    assert media_type_of(b"RIFF\0\0\0\0WAVEfmt ") == "audio/wav"
    assert media_type_of(b"BM, he said") is None
    assert media_type_of(b"hello") is None

"""Estimated tokens, heads and tails, masked secrets."""

from __future__ import annotations

import base64
import json
import random
import unicodedata

import pytest

from mcp_tools.output.masking import MASK
from mcp_tools.output.preview import boundary, head_and_tail, line_after
from mcp_tools.output.secrets import mask_text, mask_value
from mcp_tools.output.tokens import estimate_tokens

# Counted with o200k_base and cl100k_base; the estimate is to be near one of them or between.
COUNTED = {
    "english": ("The server reads its settings at the start and hands them on to others. " * 20, 280, 280),
    "base64": (base64.b64encode(random.Random(1).randbytes(3_000)).decode(), 2_723, 2_857),
    "hex": (random.Random(2).randbytes(2_000).hex(), 2_282, 2_272),
}  # fmt: skip


@pytest.mark.parametrize("kind", COUNTED)
def test_the_estimate_is_near(kind: str) -> None:
    text, *counts = COUNTED[kind]
    assert min(counts) * 0.75 <= estimate_tokens(text) <= max(counts) * 1.25


def test_nothing_costs_nothing_and_samples_tell_of_the_whole() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens(" ") == 1
    text = "some words, and 12 numbers\n" * 60_000
    assert estimate_tokens(text) == pytest.approx(60 * estimate_tokens(text[:27_000]), rel=0.05)


SEQUENCES = [
    "e\u0301\u0323",
    "👨‍👩‍👧‍👦",
    "👩🏽‍💻",
    "❤️",
    "🇩🇪",
    "\r\n",
    "\u1112\u1161\u11ab",
    "한",
    "שָׁ",
    "का",
    "🏴\U000e0067\U000e0062\U000e007f",
]


@pytest.mark.parametrize("sequence", SEQUENCES, ids=ascii)
def test_what_is_seen_as_one_is_never_cut(sequence: str) -> None:
    text = sequence * 300
    for position in range(len(text) - 80, len(text)):
        assert boundary(text, position) % len(sequence) == 0
        assert line_after(text, position, give_up=0) % len(sequence) == 0
    for chars in range(40, 60):
        cut = head_and_tail(text, chars)
        assert len(cut.head) % len(sequence) == 0 and len(cut.tail) % len(sequence) == 0
        assert cut.head == text[: len(cut.head)] and cut.tail == text[cut.tail_start :]
        assert cut.missing_chars == len(text) - len(cut.head) - len(cut.tail) > 0


def test_a_pile_of_accents_is_cut_all_the_same() -> None:
    assert unicodedata.combining("\u0301")
    assert 0 < boundary("e" + "\u0301" * 10_000, 5_000) <= 5_000


def test_lines_stay_whole_where_that_costs_little() -> None:
    text = "".join(f"line {n:,}\n" for n in range(10_000))
    cut = head_and_tail(text, 1_000)
    assert cut.head.endswith("\n") and cut.tail.startswith("line ") and cut.tail.endswith("line 9,999\n")
    assert 700 < len(cut.head) + len(cut.tail) <= 1_000


KEY = "sk-" + "a1B2" * 8


def test_secrets_in_json_are_masked_and_json_stays_json() -> None:
    text = json.dumps({"password": "two words", "max_tokens": 4096, "list": [KEY], "text": f"see {KEY}."})
    masked, count = mask_text(text)
    assert json.loads(masked) == {
        "password": MASK,
        "max_tokens": 4096,
        "list": [MASK],
        "text": f"see {MASK}.",
    }
    assert count == 3


def test_data_is_masked_by_its_keys_and_values() -> None:
    value = {"api_key": "abcdefgh", "nested": [{"Authorization": "Basic xyz"}], KEY: 1, "ok": "fine", "n": 1}
    masked, count = mask_value(value)
    assert masked == {"api_key": MASK, "nested": [{"Authorization": MASK}], MASK: 1, "ok": "fine", "n": 1}
    assert count == 3
    shaped, _ = mask_value({"token": "Ab-12"}, keep_shape=True)
    assert shaped == {"token": "Xx-00"}


def test_a_secret_between_two_blocks_is_found() -> None:
    pem = "-----BEGIN PRIVATE KEY-----\n" + "MIIE\n" * 200 + "-----END PRIVATE KEY-----\n"
    for shift in (-1_150, -1_000, -500, -30, -20, -5, 0, 9):
        text = "line of a log\n" * 71_428  # 999,992 characters
        text = text[: 999_990 + shift] + "\n" + pem + "password =\n hunter22\n" + "more\n" * 10
        masked, count = mask_text(text)
        assert "MIIE" not in masked and "hunter22" not in masked
        assert count == 2

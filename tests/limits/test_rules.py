from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_tools.errors import ConfigError
from mcp_tools.limits import Limit, parse_limit
from mcp_tools.limits.rules import fits, strictest

GOOD = {
    "*: 10 calls / minute": Limit(tools="*", per=frozenset(), amount=10, unit="calls", window_s=60),
    "search_*  per principal:  1 call/second  burst 5": Limit(
        tools="search_*", per=frozenset({"principal"}), amount=1, unit="calls", window_s=1, burst=5
    ),
    "* per everybody: 2.5 usd / day": Limit(
        tools="*", per=frozenset(), amount=2.5, unit="usd", window_s=86_400
    ),
    "x per session and tool: 100 tokens / 15 minutes": Limit(
        tools="x", per=frozenset({"session", "tool"}), amount=100, unit="tokens", window_s=900
    ),
    "execute_python: 4 at once": Limit(
        tools="execute_python", per=frozenset(), amount=4, unit="at once", window_s=None
    ),
}


@pytest.mark.parametrize("text", GOOD)
def test_a_limit_is_read_as_it_is_meant(text: str) -> None:
    assert parse_limit(text) == GOOD[text]


@pytest.mark.parametrize("text", GOOD)
def test_its_name_is_a_limit_that_means_the_same(text: str) -> None:
    assert parse_limit(GOOD[text].name) == GOOD[text]


BAD = [
    #
    ("*: 0 calls / minute", "zero"),
    ("*: 0.0 usd / day", "zero"),
    ("*: -1 calls / minute", "above zero"),
    ("*: 9999999999999999999999 calls / minute", "too large"),
    ("*: 1e3 calls / minute", "not a whole number above zero"),
    ("*: nan usd / day", "not a number"),
    ("*: inf usd / day", "not a number"),
    ("*: ten calls / minute", "'ten'"),
    ("*: ٣ usd / day", "not a number"),
    ("*: 1.5 calls / minute", "whole"),
    ("*: 200000 calls / second", "too many"),
    ("*: 0 at once", "zero"),
    ("*: 1000000 at once", "too large"),
    ("*: 10 calls / minute burst 0", "zero"),
    ("*: 10 usd / minute burst 5", "only calls"),
    ("*: 10 apples / minute", "'apples'"),
    ("*: 10 calls / fortnight", "'fortnight'"),
    ("*: 10 calls / 0 minutes", "zero"),
    ("*: 10 calls / 32 days", "31 days"),
    ("* per user: 10 calls / minute", "'user'"),
    ("* per : 10 calls / minute", "''"),
    ("* per everybody and tool: 10 calls / minute", "everybody"),
    ("a/b: 10 calls / minute", "'a/b'"),
    ("10 calls / minute", "form"),
    ("*: 10 calls", "form"),
    ("*:", "form"),
    ("", "form"),
    ("*: 10 calls / minute" + " " * 300 + "x", "form"),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_a_limit_that_cannot_be_meant_is_refused_at_start(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match="limit ") as caught:
        parse_limit(text)
    assert says in str(caught.value)


def test_something_else_than_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="form"):
        parse_limit(5)  # type: ignore[arg-type]


@given(st.text("ab_*?", max_size=8), st.text("ab_", max_size=10))
def test_globs_match_as_everybody_expects(pattern: str, name: str) -> None:
    assert fits(pattern, name) == fnmatch.fnmatchcase(name, pattern)


def test_a_glob_made_to_be_slow_is_not() -> None:
    assert not fits("*a" * 32, "a" * 63 + "b" + "c" * 1_000)


def test_of_two_limits_on_the_same_the_lower_counts_and_nothing_is_counted_twice() -> None:
    texts = [
        "*: 10 calls / minute",
        "*: 4 calls / 60 seconds",
        "*: 4 calls / hour",
        "*: 9 calls / minute burst 2",
    ]
    limits = strictest(map(parse_limit, texts))
    assert [limit.name for limit in limits] == [
        "*: 4 calls / minute",
        "*: 4 calls / hour",
        "*: 9 calls / minute burst 2",
    ]


def test_a_tool_that_does_not_exist_counts_for_what_holds_for_all_tools() -> None:
    assert parse_limit("* per principal: 1 call / day").covers(None)
    assert not parse_limit("search*: 1 call / day").covers(None)
    assert not parse_limit("* per tool: 1 call / day").covers(None)


def test_every_limit_in_the_document_can_be_read() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/limits.md").read_text()
    found = re.findall(r'"([^"\n]*: [^"\n]*(?: / |at once)[^"\n]*)"', text)
    assert len(found) >= 8
    for each in found:
        assert parse_limit(each)

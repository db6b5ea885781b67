"""Rules: how they are read and what they match."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_tools import CallContext, ConfigError, Tool
from mcp_tools.policy import Rule, RulePolicy
from mcp_tools.policy.glob import Glob
from mcp_tools.types import Decision

MATCHES = [
    ("write_file", "write_file", ["anything"]),
    ("write_*", "write_file", []),
    ("write_file(notes/**)", "write_file", ["notes/a/b.txt"]),
    ("write_file(notes/**)", "write_file", ["notes/a.txt"]),
    ("write_file(notes/**/x)", "write_file", ["notes/x"]),
    ("write_file(*.py)", "write_file", ["a.py"]),
    ("write_file(a?c)", "write_file", ["abc"]),
    ("write_file(a(b))", "write_file", ["a(b)"]),
    ("fetch(line\n*)", "fetch", ["line\nbreak"]),
]
SPARES = [
    ("write_file", "read_file", []),
    ("write_file(notes/*)", "write_file", ["notes/a/b.txt"]),
    ("write_file(notes/**)", "write_file", ["notesx/a"]),
    ("write_file(*.py)", "write_file", ["a/b.py"]),
    ("write_file(.env)", "write_file", ["xenv"]),
    ("write_file(a)", "write_file", ["a\n"]),
    ("write_file(**)", "write_file", []),
]


@pytest.mark.parametrize(("text", "tool", "subjects"), MATCHES)
def test_rule_matches(text: str, tool: str, subjects: list[str]) -> None:
    assert Rule.parse(text, Decision.ALLOW).matches(tool, subjects)


@pytest.mark.parametrize(("text", "tool", "subjects"), SPARES)
def test_rule_spares(text: str, tool: str, subjects: list[str]) -> None:
    assert not Rule.parse(text, Decision.ALLOW).matches(tool, subjects)


def test_allowing_needs_every_subject_denying_any() -> None:
    subjects = ["ok/a", "other/b"]
    assert not Rule.parse("t(ok/**)", Decision.ALLOW).matches("t", subjects)
    assert Rule.parse("t(ok/**)", Decision.DENY).matches("t", subjects)


@pytest.mark.parametrize("text", ["t(private/**)", "t(private/)", "t(./private/**)", "t(/root/private/**)"])
@pytest.mark.parametrize(
    "subject",
    [("private", "/root/private"), ("private/k", "/root/private/k"), ("Private/x/y", "/root/Private/x/y")],
)
def test_denying_a_folder_covers_it_and_all_below_in_any_spelling(
    text: str, subject: tuple[str, str]
) -> None:
    assert Rule.parse(text, Decision.DENY).matches("t", [subject])
    assert not Rule.parse(text, Decision.DENY).matches("t", [("privateer/k", "/root/privateer/k")])


def test_allowing_does_not_cover_the_folder_itself() -> None:
    assert not Rule.parse("t(notes/**)", Decision.ALLOW).matches("t", ["notes"])
    assert Rule.parse("t(/root/notes/**)", Decision.ALLOW).matches("t", [("notes/a", "/root/notes/a")])


@pytest.mark.parametrize("text", ["t(*.{txt,md})", "t([k].txt)"])
def test_patterns_of_other_dialects_are_refused_unless_meant_literally(text: str) -> None:
    with pytest.raises(ConfigError, match="no special meaning"):
        Rule.parse(text, Decision.DENY)
    literal = text.translate({ord(c): f"\\{c}" for c in "[]{}"})
    assert Rule.parse(literal, Decision.DENY).matches("t", [text[2:-1]])


def test_denying_ignores_case_allowing_does_not() -> None:
    """ACCEPTANCE A-13."""
    assert Rule.parse("t(.ENV)", Decision.DENY).matches("t", [".env"])
    assert not Rule.parse("t(.ENV)", Decision.ALLOW).matches("t", [".env"])
    composed, decomposed = "caf\u00e9/x", "cafe\u0301/x"
    assert Rule.parse("t(caf\u00e9/**)", Decision.DENY).matches("t", [decomposed])
    assert Rule.parse("t(cafe\u0301/**)", Decision.DENY).matches("t", [composed])
    assert not Rule.parse("t(caf\u00e9/**)", Decision.ALLOW).matches("t", [decomposed])


@pytest.mark.parametrize("text", ["", "()", "t()", "t(", "a b", "x" * 2000, 3])
def test_bad_rules_are_refused_and_quoted(text: str) -> None:
    with pytest.raises(ConfigError, match="rule"):
        Rule.parse(text, Decision.DENY)


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"deny": ["t"], "ask": ["t"], "allow": ["t"]}, Decision.DENY),
        ({"ask": ["t"], "allow": ["t(exactly)"]}, Decision.ASK),
        ({"allow": ["t"]}, Decision.ALLOW),
        ({}, Decision.ASK),
    ],
    ids=["deny-first", "ask-before-allow", "allow", "default"],
)
def test_the_first_list_with_a_match_decides(lists: dict[str, list[str]], expected: Decision) -> None:
    tool = Tool("t", "", {}, lambda: None, requires_confirmation=True)
    assert RulePolicy.parse(**lists).decide(tool, ["exactly"], CallContext()).decision is expected


def test_a_hostile_argument_cannot_stall_a_rule() -> None:
    """ACCEPTANCE A-28. As a regular expression this pattern takes hours on this text."""
    rule = Rule.parse("t(" + "**/a*" * 10 + "b)", Decision.DENY)
    assert not rule.matches("t", ["a/" * 25_000 + "a" * 50_000])


@given(st.text("ab/", max_size=8), st.text("ab/*?", max_size=6))
@example(text="a/b", pattern="a/**/b")
@example(text="ab", pattern="**/b")
def test_globs_agree_with_a_plain_definition(text: str, pattern: str) -> None:
    assert Glob(pattern).matches(text) is matches_slowly(pattern, text)


def matches_slowly(pattern: str, text: str) -> bool:
    """The meaning of a glob, by trying everything."""
    if not pattern:
        return not text
    if pattern.startswith("**/"):
        rests = [text] + [text[i + 1 :] for i, character in enumerate(text) if character == "/"]
        return any(matches_slowly(pattern[3:], rest) for rest in rests)
    if pattern.startswith("**"):
        return any(matches_slowly(pattern[2:], text[i:]) for i in range(len(text) + 1))
    if pattern[0] == "*":
        run = len(text) if "/" not in text else text.index("/")
        return any(matches_slowly(pattern[1:], text[i:]) for i in range(run + 1))
    if not text or (pattern[0] == "?" and text[0] == "/"):
        return False
    return pattern[0] in ("?", text[0]) and matches_slowly(pattern[1:], text[1:])

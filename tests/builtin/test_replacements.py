"""Exact replacements: all or none, and a refusal a model can act on (A-18)."""

from __future__ import annotations

import time

import pytest

from mcp_tools.builtin.files.edit import Edit
from mcp_tools.builtin.files.replacements import applied, located
from mcp_tools.builtin.workspace.threads import Withdrawn
from mcp_tools.errors import ToolError


def nothing() -> None:
    """Nobody withdraws the call."""


def apply(text: str, edits: list[Edit]) -> str:
    return applied(text, located(text, edits, nothing))


def edit(old: str, new: str) -> Edit:
    return Edit(oldText=old, newText=new)


def test_edits_are_found_in_the_text_before_any_of_them() -> None:
    assert apply("one two three", [edit("three", "two"), edit("two", "2")]) == "one 2 two"


@pytest.mark.parametrize("text", ["(a+)+$", "\\d", "$0 \\1", "[x", "a.b"])
def test_nothing_is_a_pattern(text: str) -> None:
    assert apply(f"<{text}>", [edit(text, "\\g<0>$&")]) == "<\\g<0>$&>"


@pytest.mark.parametrize(
    ("text", "edits", "says"),
    [
        ("abc", [edit("x", "y")], "does not occur"),
        ("a\nb\na\n", [edit("a", "y")], r"occurs 2 times \(lines 1, 3\)"),
        ("aaa", [edit("aa", "y")], "occurs 2 times"),
        ("x\n" * 50, [edit("x", "y")], r"occurs 50 times \(lines 1, 2, .*, 10, …\)"),
        ("x\n" * 500, [edit("x", "y")], "occurs at least 100 times"),
        ("ababa", [edit("aba", "y")], "occurs 2 times"),
        ("a" * 300_000, [edit("a" * 200_000, "y")], "occurs at least 2 times"),
        ("abcdef", [edit("abc", "1"), edit("cde", "2")], "edits 1 and 2 overlap"),
        ("abcdef", [edit("cde", "2"), edit("d", "1")], "edits 1 and 2 overlap"),
        ("abc", [edit("b", "x"), edit("b", "y")], "edits 1 and 2 overlap"),
        ("abc", [edit("", "y")], "empty"),
        ("abc", [edit("b", "b")], "changes nothing"),
        ("a\r\nb\r\n", [edit("a\nb", "x")], "end in CRLF"),
        ("a\nb\n", [edit("a\r\nb", "x")], "end in .n alone"),
        ("x\n    def f():\n        pass\n", [edit("def f():\n    pass", "x")], "at line 2, which reads"),
    ],
)
def test_refusals_say_how_often_and_where(text: str, edits: list[Edit], says: str) -> None:
    with pytest.raises(ToolError, match=says):
        apply(text, edits)


def test_neighbours_do_not_overlap() -> None:
    assert apply("abcd", [edit("ab", "1"), edit("cd", "2")]) == "12"


def test_a_text_is_found_wherever_blocks_meet() -> None:
    block = 1024 * 1024
    for place in (0, block - 3, block - 2, block - 1, block, 2 * block - 1, 3 * block - 5):
        text = "a" * place + "hello" + "a" * (3 * block - 5 - place)
        (span,) = located(text, [edit("hello", "x")], nothing)
        assert (span.start, span.end) == (place, place + 5)


def test_repetition_costs_little_and_a_withdrawn_call_stops() -> None:
    """Each count of a long text in a file of one letter took 30 s."""
    text = "a" * (10 * 1024 * 1024)
    started = time.process_time()
    with pytest.raises(ToolError, match="occurs at least 2 times"):
        located(text, [edit("a" * (1024 * 1024), "b")], nothing)
    assert time.process_time() - started < 2

    looks = 0

    def withdrawn() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise Withdrawn

    with pytest.raises(Withdrawn):
        located(text, [edit("b", "c")], withdrawn)


@pytest.mark.parametrize(
    ("text", "edits", "says"),
    [
        ("x", [edit("a" * 600_000, "b"), edit("c" * 600_000, "d")], "1,200,000 characters in all"),
        ("x" * (10 * 1024 * 1024), [edit("a", "b")] * 60, "60 are too many at once .* send at most 51"),
    ],
)
def test_what_would_be_too_much_is_refused_before_it_starts(text: str, edits: list[Edit], says: str) -> None:
    with pytest.raises(ToolError, match=says):
        located(text, edits, nothing)

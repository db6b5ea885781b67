"""Exact replacements: all or none, and a refusal a model can act on (A-18)."""

from __future__ import annotations

import pytest

from mcp_tools.builtin.files.edit import Edit
from mcp_tools.builtin.files.replacements import apply
from mcp_tools.errors import ToolError


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

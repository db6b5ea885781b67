"""Name patterns mean what people expect, and cannot take long."""

from __future__ import annotations

import time

import pytest

from mcp_tools.builtin.files.glob import compile_all, compile_glob
from mcp_tools.errors import ToolError


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.py", "a.py", True),
        ("*.py", "x/y/a.py", True),
        ("*.py", "a.pyc", False),
        ("src/*.py", "src/a.py", True),
        ("src/*.py", "src/x/a.py", False),
        ("src/*.py", "x/src/a.py", False),
        ("src/**/*.py", "src/a.py", True),
        ("src/**/*.py", "src/x/y/a.py", True),
        ("**/test_?.py", "x/test_a.py", True),
        ("**/test_?.py", "x/test_ab.py", False),
        ("**", "x/y", True),
        ("*.{js,ts}", "x/a.ts", True),
        ("*.{js,ts}", "x/a.tx", False),
        ("{a,b}/{c,d}", "b/c", True),
        ("{a", "{a", True),
        ("[ab].txt", "b.txt", True),
        ("[!ab].txt", "b.txt", False),
        ("node_modules", "x/node_modules", True),
        ("**/node_modules/**", "x/node_modules", True),
        ("a*", "a\nb", True),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    assert compile_glob(pattern).matches(path.split("/")) is matches


@pytest.mark.parametrize("pattern", ["", "/", "x" * 1001, "a/" * 100, "{a,b}" * 20])
def test_unreasonable_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ToolError):
        compile_glob(pattern)


@pytest.mark.parametrize("pattern", ["**/" * 60 + "x", "*a" * 400 + "b", "a*" * 60 + "/" + "**/*" * 10])
def test_no_pattern_takes_long(pattern: str) -> None:
    glob = compile_glob(pattern)
    started = time.process_time()
    for _ in range(20):
        glob.matches(["a" * 250] * 30)
    assert time.process_time() - started < 2


def test_excluding_patterns_are_bounded_together() -> None:
    """ACCEPTANCE A-28: 50 patterns of 64 alternatives each over thousands of names took half a minute."""
    braces = "{" + ",".join(f"n{i}" for i in range(60)) + "}"
    assert len(compile_all([braces, braces])) == 2
    with pytest.raises(ToolError, match="at most 128 alternatives"):
        compile_all([braces, braces, braces])

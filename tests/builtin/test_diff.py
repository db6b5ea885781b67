"""The diff a person decides by: right, cut aloud, and with nothing that hides."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_tools.builtin.files.diff import unified


def test_a_change_in_the_middle_is_shown_with_its_surroundings() -> None:
    old = "".join(f"{n}\n" for n in range(20))
    assert unified(old, old.replace("10\n", "ten\n"), "x").split("\n") == [
        "--- x",
        "+++ x",
        "@@ -8,7 +8,7 @@",
        " 7",
        " 8",
        " 9",
        "-10",
        "+ten",
        " 11",
        " 12",
        " 13",
    ]


def test_the_same_content_is_said_to_be_the_same() -> None:
    assert unified("a", "a", "x") == "(the content stays the same)"


def test_what_does_not_print_is_written_out() -> None:
    text = unified("", "a\u202eb\x1b[2Jc\r\n\x0cd\te\n", "na\nme")
    assert r"+a\u202eb\x1b[2Jc\r" in text
    assert "+\\x0cd\te" in text
    assert r"+++ na\nme" in text


@pytest.mark.parametrize("lines", [300, 5_000])
def test_what_is_cut_is_counted_and_the_whole_is_named(lines: int) -> None:
    import hashlib

    new = "".join(f"line {n}\n" for n in range(lines))
    text = unified("", new, "x")
    assert len(text.split("\n")) == 201
    assert f"[{lines + 3 - 200:,} more lines" in text
    assert hashlib.sha256(new.encode()).hexdigest() in text


def test_a_long_line_is_cut_aloud() -> None:
    assert "[… 99,501 more characters]" in unified("", "x" * 100_000, "x")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from("ab\n\n"), max_size=30), st.lists(st.sampled_from("ab\n\n"), max_size=30))
def test_patch_can_apply_it(old: list[str], new: list[str]) -> None:
    """`patch` is the judge of whether the diff says what the change is."""
    import shutil
    import tempfile

    if shutil.which("patch") is None:
        pytest.skip("needs patch(1)")
    before, after = "".join(old), "".join(new)
    if before == after:
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "x")
        target.write_text(before)
        subprocess.run(
            ["patch", "-s", "x"], input=unified(before, after, "x") + "\n", text=True, cwd=folder, check=True
        )
        assert (target.read_text() if target.exists() else "") == after

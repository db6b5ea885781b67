"""The diff a person decides by: right, cut aloud, and with nothing that hides."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_tools.builtin.files import diff
from mcp_tools.builtin.files.matching import Effort, changed_runs
from mcp_tools.builtin.files.replacements import Span, applied


def nothing() -> None:
    """Nobody withdraws the call."""


def unified(old: str, new: str, path: str) -> str:
    return diff.whole(old, new, path, nothing).text


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


def test_what_is_not_seen_is_written_out_as_no_literal_text_is() -> None:
    text = unified(
        "a\\u202eb\\x1b[2Jc\\r\n", "a\u202eb\x1b[2Jc\r\n\x0cd\te\n\u00a0\u3000\u3164\n", "na\nme\u00a0"
    )
    assert text.split("\n")[3:] == [
        "-a\\u202eb\\x1b[2Jc\\r",
        "+a⟦U+202E⟧b⟦U+001B⟧[2Jc⟦CR⟧",
        "+⟦U+000C⟧d\te",
        "+⟦U+00A0⟧⟦U+3000⟧⟦U+3164⟧",
    ]
    assert "+++ na⟦U+000A⟧me⟦U+00A0⟧\n" in text
    imitation = unified("\x1b\n", "⟦U+001B⟧\n", "x").split("\n")
    assert imitation[-2:] == ["-⟦U+001B⟧", "+⟦U+27E6⟧U+001B⟧"]


@pytest.mark.parametrize("lines", [300, 5_000])
def test_what_is_cut_is_counted_first_and_the_whole_is_named(lines: int) -> None:
    import hashlib

    new = "".join(f"line {n}\n" for n in range(lines))
    shown = diff.whole("", new, "x", nothing)
    rows = shown.text.split("\n")
    assert len(rows) <= 203
    there = sum(row.startswith("+line") for row in rows)
    assert shown.left_out == f"{lines - there} of {lines:,} added lines".replace(
        f"{lines - there} ", f"{lines - there:,} "
    )
    assert rows[0].startswith(f"[Not everything is shown. Missing: {shown.left_out}. The whole new content: ")
    assert hashlib.sha256(new.encode()).hexdigest() in rows[0]
    assert (rows[4], rows[-1]) == ("+line 0", f"+line {lines - 1}")
    assert f"[… {lines - there:,} added and 0 removed lines are not shown here]" in rows


def test_added_lines_come_first_and_each_hunk_keeps_its_ends() -> None:
    same = [f"same {n}\n" for n in range(30)]
    old = [f"old {n}\n" for n in range(1_000)]
    new = [f"new {n}\n" for n in range(150)]
    shown = diff.whole("".join([*old, *same, "one\n"]), "".join([*new, *same, "two\n"]), "x", nothing)
    rows = shown.text.split("\n")
    assert sum(row.startswith("+new") for row in rows) == 150
    assert {"-old 0", "-one", "+two"} <= set(rows)
    assert "of 1,001 removed lines" in shown.left_out
    assert "added" not in shown.left_out


def test_changes_far_apart_in_a_big_file_show_only_themselves() -> None:
    for old in ([f"line {n}\n" for n in range(20_000)], [f"line {n % 50}\n" for n in range(20_000)]):
        new = list(old)
        new[3], new[9_000], new[19_990] = "import os\n", "EVIL\n", "end\n"
        shown = diff.whole("".join(old), "".join(new), "x", nothing)
        changed = [row for row in shown.text.split("\n")[2:] if row[0] in "+-"]
        assert [row for row in changed if row[0] == "+"] == ["+import os", "+EVIL", "+end"]
        assert len(changed) == 6
        assert shown.left_out == ""


def test_a_long_line_shows_its_ends_and_where_it_changed() -> None:
    assert "⟦99,500 characters not shown⟧" in unified("", "x" * 100_000, "x")
    assert unified("", "x" * 10_000 + "EVIL", "x").endswith("EVIL\n\\ No newline at end of file")
    line = "x" * 50_000
    shown = diff.whole(f"{line}{line}\n", f"{line}EVIL{line}\n", "x", nothing)
    assert "EVIL" in shown.text
    assert shown.left_out == "parts of 2 long lines"
    fits = diff.whole("", "x" * 3_000 + "\n", "x", nothing)
    assert "x" * 3_000 in fits.text
    assert fits.left_out == ""


def test_a_long_path_keeps_its_end() -> None:
    assert unified("", "x", f"{'d' * 2_000}/.bashrc").split("\n")[1].endswith("d/.bashrc")


def test_nobody_is_kept_waiting_by_texts_without_a_pattern() -> None:
    import random
    import time

    chance = random.Random(1)
    old, new = ("".join(f"{chance.choice('abc')}\n" for _ in range(200_000)) for _ in range(2))
    started = time.process_time()
    diff.whole(old, new, "x", nothing)
    assert time.process_time() - started < 8


_few_lines = st.lists(st.sampled_from("abcd"), max_size=40)


@settings(max_examples=200, deadline=None)
@given(_few_lines, _few_lines, st.integers(0, 200))
def test_what_is_between_changes_is_equal_however_little_effort_there_is(
    old: list[str], new: list[str], steps: int
) -> None:
    i = j = 0
    for run in changed_runs(old, new, Effort(nothing, steps)):
        assert old[i : run.old_start] == new[j : run.new_start]
        i, j = run.old_end, run.new_end
    assert old[i:] == new[j:]


def patched(old: str, text: str) -> str:
    """What `patch`, the judge of whether a diff says what the change is, makes of a file."""
    import shutil
    import tempfile

    if shutil.which("patch") is None:
        pytest.skip("needs patch(1)")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "x")
        target.write_text(old)
        subprocess.run(["patch", "-s", "x"], input=text + "\n", text=True, cwd=folder, check=True)
        return target.read_text() if target.exists() else ""


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from("ab\n\n"), max_size=30), st.lists(st.sampled_from("ab\n\n"), max_size=30))
def test_patch_can_apply_it(old: list[str], new: list[str]) -> None:
    before, after = "".join(old), "".join(new)
    if before != after:
        assert patched(before, unified(before, after, "x")) == after


@settings(max_examples=100, deadline=None)
@given(
    st.text("ab\n", min_size=1, max_size=150),
    st.lists(st.tuples(st.integers(0, 150), st.text("ab\n", max_size=5)), min_size=1, max_size=4),
)
def test_patch_can_apply_what_edits_show(text: str, wanted: list[tuple[int, str]]) -> None:
    places = sorted({min(place, len(text)) for place, _ in wanted})
    spans = [
        Span(start, min(start + 2, *(p for p in [*places, len(text)] if p > start), len(text)), 1, new)
        for start, (_, new) in zip(places, wanted, strict=False)
        if start < len(text)
    ]
    after = applied(text, spans)
    if after != text:
        assert patched(text, diff.of_edits(text, spans, "x", nothing).text) == after

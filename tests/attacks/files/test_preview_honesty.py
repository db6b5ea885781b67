"""B-22 for files: a question shows every changed line, or says in its second line what it does not show."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from mcp_tools.confirmation.question import question_text
from mcp_tools.types import CallContext

COMMENT = "# a long and harmless comment about the change, nothing to see here at all " * 4
EVIL = 'import os; os.system("EVIL")'


async def question(files: Any, tool: str, **arguments: Any) -> str:
    result = await files.execute(tool, **arguments)
    assert result.confirmation is not None, result.error
    return question_text(result.confirmation, asked_by="somebody")


def changed(text: str) -> list[str]:
    return [
        line
        for line in text.split("\n")
        if line.startswith(("| +", "| -")) and line[2:5] not in ("+++", "---")
    ]


async def test_edits_far_apart_in_a_big_file_are_all_shown(one_way: Any) -> None:
    """Above 1,000 lines the question showed 200 unchanged lines as removed, and the payload nowhere."""
    (one_way.root / "m.py").write_text("".join(f"line {n}\n" for n in range(1_500)))
    edits = [
        {"oldText": "line 3\n", "newText": f"{COMMENT}\nline 3\n"},
        {"oldText": "line 1400\n", "newText": f"line 1400\n{EVIL}\n"},
        {"oldText": "line 1490\n", "newText": f"line 1490\n{COMMENT}\n"},
    ]
    text = await question(one_way, "edit_file", path="m.py", edits=edits)
    assert changed(text) == [f"| +{COMMENT}", f"| +{EVIL}", f"| +{COMMENT}"]
    assert "Not everything is shown" not in text


async def test_a_rewrite_of_a_big_file_shows_only_what_changes(one_way: Any) -> None:
    old = [f"line {n % 100}\n" for n in range(30_000)]
    new = list(old)
    new[0], new[20_000] = "import os\n", f"{EVIL}\n"
    (one_way.root / "m.py").write_text("".join(old))
    text = await question(one_way, "write_file", path="m.py", content="".join(new))
    assert changed(text) == ["| -line 0", "| +import os", "| -line 0", f"| +{EVIL}"]
    assert "Not everything is shown" not in text


@pytest.mark.parametrize("tool", ["write_file", "edit_file"])
async def test_what_does_not_fit_is_said_before_everything_else(one_way: Any, tool: str) -> None:
    old = "".join(f"line {n}\n" for n in range(1_000))
    new = "".join(f"other {n}\n" for n in range(1_000)) + f"{EVIL}\n"
    (one_way.root / "m.py").write_text(old)
    arguments = {"content": new} if tool == "write_file" else {"edits": [{"oldText": old, "newText": new}]}
    text = await question(one_way, tool, path="m.py", **arguments)
    second = text.split("\n")[1]
    assert second.startswith("Not everything is shown: argument ")
    assert "of 1,001 added lines" in second
    assert "of 1,000 removed lines" in second
    assert changed(text)[-1] == f"| +{EVIL}"


async def test_a_payload_behind_blanks_is_shown(one_way: Any) -> None:
    content = f"a = 1 #{' ' * 480}\n{' ' * 600}{EVIL}\n"
    assert EVIL in await question(one_way, "write_file", path="m.py", content=content)
    content = f"a = 1 #{' ' * 4_800}\n{' ' * 600_000}{EVIL}\n"
    text = await question(one_way, "write_file", path="m.py", content=content)
    assert "EVIL" in text
    assert "parts of 2 long lines" in text.split("\n")[1]


async def test_a_change_inside_one_long_line_is_shown(one_way: Any) -> None:
    (one_way.root / "min.js").write_text("a" * 50_000 + "SAFE" + "b" * 50_000)
    edits = [{"oldText": "SAFE", "newText": "EVIL"}]
    text = await question(one_way, "edit_file", path="min.js", edits=edits)
    assert "EVIL" in "".join(changed(text)[1:])


async def test_literal_escapes_do_not_look_like_the_characters(one_way: Any) -> None:
    (one_way.root / "e.txt").write_text("a\\x1b\\u202e\\r\n")
    text = await question(one_way, "write_file", path="e.txt", content="a\x1b\u202e\r\n")
    assert changed(text) == ["| -a\\x1b\\u202e\\r", "| +a⟦U+001B⟧⟦U+202E⟧⟦CR⟧"]


async def test_a_deep_real_path_shows_the_name_at_its_end(one_way: Any) -> None:
    deep = one_way.root.joinpath(*["d" * 200] * 3)
    deep.mkdir(parents=True)
    (deep / ".bashrcX").write_text("old\n")
    name = "/".join([*["d" * 200] * 3, ".bashrcX"])
    (one_way.root / "notes.txt").symlink_to(name)
    calls = {
        "write_file": {"content": "x"},
        "edit_file": {"edits": [{"oldText": "old", "newText": "x"}]},
    }
    for tool, arguments in calls.items():
        text = await question(one_way, tool, path="notes.txt", **arguments)
        heading = next(line for line in text.split("\n") if line.startswith("| "))
        assert "/.bashrcX'" in heading, tool
    assert "/.bashrcX'" in await question(one_way, "delete_file", path=name)


@pytest.mark.parametrize("start", [b"#\n" * 600_000, b"\xff\n"], ids=["big", "no-utf-8"])
async def test_what_is_added_to_a_line_without_a_newline_is_shown_with_that_line(
    one_way: Any, start: bytes
) -> None:
    """The question showed `+/../../home` as a line of its own."""
    (one_way.root / "clean.sh").write_bytes(start + b"rm -rf /tmp/build")
    text = await question(one_way, "write_file", path="clean.sh", content="/../../home\n", mode="a")
    assert "| It does not end with a newline: what is added continues its last line." in text
    assert changed(text) == ["| -rm -rf /tmp/build", "| +rm -rf /tmp/build/../../home"]
    (one_way.root / "clean.sh").write_bytes(start)
    text = await question(one_way, "write_file", path="clean.sh", content="new\n", mode="a")
    assert "| Added at the end:\n" in text
    assert changed(text) == ["| +new"]


async def test_a_search_for_a_long_text_holds_nobody_up(one_way: Any) -> None:
    """Six of these kept ordinary reads waiting for seconds and went on after they were cancelled."""
    (one_way.root / "a.txt").write_text("a" * (10 * 1024 * 1024))
    (one_way.root / "small").write_text("small")
    edits = [{"oldText": "a" * (1024 * 1024), "newText": "b"}]

    async def edit() -> None:
        await one_way.execute("edit_file", CallContext(), path="a.txt", edits=edits, dryRun=True)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(edit)
            await anyio.lowlevel.checkpoint()
            started = time.monotonic()
            assert await one_way.call("read_file", path="small") == "small"
            assert time.monotonic() - started < 5
    too_long = [{"oldText": "a" * (5 * 1024 * 1024), "newText": "b"}]
    error = await one_way.refusal("edit_file", path="a.txt", edits=too_long)
    assert "at most 1,048,576 are searched for" in error

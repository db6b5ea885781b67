"""write_file and edit_file: nothing before a yes, at once or not at all, only on what was shown."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest

from mcp_tools.types import Approval, CallContext, ErrorCode, ExecutionStatus


async def approved(files: Any, name: str, **arguments: Any) -> Any:
    """Ask, say yes, and return (question, result)."""
    asked = await files.execute(name, **arguments)
    assert asked.error_code is ErrorCode.CONFIRMATION_REQUIRED, asked.error
    yes = CallContext(approval=Approval(confirmation_id=asked.confirmation.id))
    return asked.confirmation, await files.execute(name, yes, **arguments)


def names(files: Any) -> list[str]:
    return sorted(os.listdir(files.root))


@pytest.mark.parametrize("mode", ["w", "a", "x"])
async def test_every_mode_creates_and_reports(files: Any, mode: str) -> None:
    content = "hé\r\n"
    written = await files.call("write_file", path="x", content=content, mode=mode)
    assert written == {
        "path": "x",
        "bytes_written": 5,
        "size_bytes": 5,
        "created": True,
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        "notes": [],
    }
    assert (files.root / "x").read_bytes() == content.encode()
    assert names(files) == ["x"]


async def test_w_replaces_a_adds_and_x_refuses_what_exists(files: Any) -> None:
    (files.root / "x").write_text("old\n")
    assert "exists already" in await files.refusal("write_file", path="x", content="new", mode="x")
    added = await files.call("write_file", path="x", content="more", mode="a")
    assert (added["bytes_written"], added["size_bytes"], added["created"]) == (4, 8, False)
    assert added["sha256"] == hashlib.sha256(b"old\nmore").hexdigest()
    replaced = await files.call("write_file", path="x", content="new")
    assert (replaced["size_bytes"], replaced["created"]) == (3, False)
    assert (files.root / "x").read_text() == "new"
    assert names(files) == ["x"]


async def test_nothing_happens_before_the_yes_and_the_question_shows_the_change(files: Any) -> None:
    (files.root / "x").write_text("old\n")
    asked = await files.execute("write_file", path="x", content="new\n")
    assert asked.status is ExecutionStatus.PERMISSION_DENIED
    assert (files.root / "x").read_text() == "old\n"
    assert names(files) == ["x"]
    preview = asked.confirmation.preview
    assert str(files.root / "x") in preview
    assert "4 → 4 bytes" in preview
    assert "\n-old\n+new" in preview


async def test_a_yes_writes_what_was_shown(files: Any) -> None:
    (files.root / "x").write_text("old\n")
    _, result = await approved(files, "write_file", path="x", content="new\n")
    assert result.is_success
    assert (files.root / "x").read_text() == "new\n"


@pytest.mark.parametrize("change", ["content", "removed", "replaced by the same", "link"])
async def test_a_yes_does_not_hold_for_another_state(files: Any, change: str) -> None:
    path = files.root / "x"
    path.write_text("old\n")
    asked = await files.execute("write_file", path="x", content="new\n")
    match change:
        case "content":
            path.write_text("OLD\n")
        case "removed":
            path.unlink()
        case "replaced by the same":
            (files.root / "y").write_text("old\n")
            (files.root / "y").rename(path)
        case "link":
            path.rename(files.root / "y")
            path.symlink_to("y")
    before = {name: (files.root / name).read_text() for name in names(files)}
    yes = CallContext(approval=Approval(confirmation_id=asked.confirmation.id))
    result = await files.execute("write_file", yes, path="x", content="new\n")
    if change == "link":  # it leads to the very file that was shown, under another name
        assert result.error_code is ErrorCode.CONFIRMATION_INVALID
    assert not result.is_success
    assert {name: (files.root / name).read_text() for name in names(files)} == before


async def test_a_yes_for_a_new_file_does_not_hold_once_it_exists(files: Any) -> None:
    asked = await files.execute("write_file", path="x", content="new\n")
    (files.root / "x").write_text("somebody else's\n")
    yes = CallContext(approval=Approval(confirmation_id=asked.confirmation.id))
    result = await files.execute("write_file", yes, path="x", content="new\n")
    assert not result.is_success
    assert (files.root / "x").read_text() == "somebody else's\n"


async def test_the_state_is_compared_again_at_the_last_moment(files: Any) -> None:
    """The executor's comparison and the rename are apart; the tool itself closes the gap."""
    (files.root / "x").write_text("old\n")
    tool = files.executor.registry.get("write_file")
    shown = await tool.preview(path="x", content="new\n", mode="w", expectedSha256=None)
    (files.root / "x").write_text("changed\n")
    with pytest.raises(Exception, match="changed since it was read or shown; nothing was written"):
        await tool.function(
            path="x", content="new\n", context=CallContext(asked=True, approved_state=shown.state)
        )
    assert (files.root / "x").read_text() == "changed\n"


async def test_an_expected_hash_must_match(files: Any) -> None:
    (files.root / "x").write_text("old\n")
    digest = hashlib.sha256(b"old\n").hexdigest()
    await files.call("write_file", path="x", content="new\n", expectedSha256=digest)
    error = await files.refusal("write_file", path="x", content="newer\n", expectedSha256=digest)
    assert "not the expected one; nothing was written" in error
    assert (files.root / "x").read_text() == "new\n"


async def test_a_write_through_a_link_inside_changes_what_it_names(files: Any) -> None:
    (files.root / "sub").mkdir()
    (files.root / "sub" / "real").write_text("old")
    (files.root / "link").symlink_to("sub/real")
    question, result = await approved(files, "write_file", path="link", content="new")
    assert str(files.root / "sub" / "real") in question.preview
    assert result.result.path == "sub/real"
    assert (files.root / "link").is_symlink()
    assert (files.root / "sub" / "real").read_text() == "new"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("missing/x", "create_directory makes one"),
        ("folder", "not a regular file"),
        (".", "allowed folder"),
        ("pipe", "not a regular file"),
    ],
)
async def test_places_that_cannot_be_written_are_explained(files: Any, path: str, says: str) -> None:
    (files.root / "folder").mkdir()
    os.mkfifo(files.root / "pipe")
    assert says in await files.refusal("write_file", path=path, content="x")


async def test_half_a_character_is_refused(files: Any) -> None:
    result = await files.execute("write_file", CallContext(confirmed=True), path="x", content="a\ud800")
    assert not result.is_success
    assert names(files) == []


async def test_a_binary_file_is_replaced_only_with_the_person_told(files: Any) -> None:
    (files.root / "x").write_bytes(b"\xff\xfe\0")
    question, _ = await approved(files, "write_file", path="x", content="new")
    assert "is not UTF-8 text (3 bytes, sha256" in question.preview


async def test_an_edit_changes_only_what_it_names_and_returns_the_diff(files: Any) -> None:
    (files.root / "x").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\nthree")
    question, result = await approved(
        files, "edit_file", path="x", edits=[{"oldText": "two", "newText": "2"}]
    )
    assert "-two⟦CR⟧\n+2⟦CR⟧" in question.preview
    assert result.is_success, result.error
    assert (files.root / "x").read_bytes() == b"\xef\xbb\xbfone\r\n2\r\nthree"
    structured = result.result.structured
    assert structured["applied"] is True
    assert "+2⟦CR⟧" in structured["diff"]
    assert "+2⟦CR⟧" in result.to_observation()


async def test_a_dry_run_asks_nobody_and_changes_nothing(files: Any) -> None:
    (files.root / "x").write_text("one\n")
    result = await files.execute(
        "edit_file", path="x", edits=[{"oldText": "one", "newText": "1"}], dryRun=True
    )
    assert result.is_success, result.error
    assert result.result.structured["applied"] is False
    assert "+1" in result.to_observation()
    assert (files.root / "x").read_text() == "one\n"


async def test_an_edit_that_cannot_be_made_asks_nobody(files: Any) -> None:
    (files.root / "x").write_text("a\na\n")
    result = await files.execute("edit_file", path="x", edits=[{"oldText": "a", "newText": "b"}])
    assert result.confirmation is None
    assert "occurs 2 times (lines 1, 2)" in result.error


async def test_a_failing_edit_among_good_ones_changes_nothing(files: Any) -> None:
    (files.root / "x").write_text("one two\n")
    edits = [{"oldText": "one", "newText": "1"}, {"oldText": "three", "newText": "3"}]
    assert "edit 2" in await files.refusal("edit_file", path="x", edits=edits)
    assert (files.root / "x").read_text() == "one two\n"


@pytest.mark.parametrize("alias", ["file_path", "old_string"])
async def test_other_spellings_are_answered_with_ours(files: Any, alias: str) -> None:
    edits = [{"oldText": "a", "newText": "b"}]
    arguments = {"path": "x", "edits": edits, alias: "x"}
    error = await files.refusal("edit_file", **arguments)
    assert alias in error

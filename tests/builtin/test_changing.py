"""create_directory, move_file and delete_file: asked first, never over anything, roots stay (A-29)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mcp_tools.types import Approval, CallContext


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("tool", "arguments", "says"),
    [
        ("create_directory", {"path": "new/deep"}, "Create the folder"),
        ("move_file", {"source": "a", "destination": "b"}, "Move the file"),
        ("delete_file", {"path": "a"}, "Delete the file"),
    ],
)
async def test_each_asks_first_and_shows_real_paths(
    files: Any, tool: str, arguments: dict[str, str], says: str
) -> None:
    (files.root / "a").write_text("x")
    asked = await files.execute(tool, **arguments)
    assert asked.confirmation is not None
    assert says in asked.confirmation.preview
    assert str(files.root) in asked.confirmation.preview
    assert tree(files.root) == ["a"]
    yes = CallContext(approval=Approval(confirmation_id=asked.confirmation.id))
    assert (await files.execute(tool, yes, **arguments)).is_success
    assert tree(files.root) != ["a"]


async def test_missing_folders_above_are_made_too(files: Any) -> None:
    (files.root / "a").mkdir()
    assert await files.call("create_directory", path="a/b/c") == {
        "path": "a/b/c",
        "created": ["a/b", "a/b/c"],
    }
    for name in ("a/b", "a/b/c"):
        assert (files.root / name).stat().st_mode & 0o022 == 0


async def test_a_folder_that_exists_needs_nobody(files: Any) -> None:
    (files.root / "a").mkdir()
    result = await files.execute("create_directory", path="a")
    assert result.is_success, result.error
    assert result.result.created == []


async def test_a_file_in_the_way_of_a_folder_is_an_error(files: Any) -> None:
    (files.root / "a").touch()
    assert "not a folder" in await files.refusal("create_directory", path="a/b")
    assert tree(files.root) == ["a"]


async def test_files_folders_and_links_move(files: Any) -> None:
    (files.root / "folder").mkdir()
    (files.root / "folder" / "x").write_text("x")
    (files.root / "link").symlink_to("folder/x")
    await files.call("move_file", source="folder", destination="moved")
    await files.call("move_file", source="link", destination="moved/link")
    await files.call("move_file", source="moved/x", destination="y")
    assert tree(files.root) == ["moved", "moved/link", "y"]
    assert (files.root / "moved" / "link").is_symlink()


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("a", "b"),  # over a file
        ("a", "folder"),  # over a folder
        ("folder", "empty"),  # over an empty folder, which rename(2) would replace
        ("a", "a"),
        ("a", "hard"),
        ("folder", "folder/x"),
        ("missing", "c"),
        ("a", "missing/c"),
        (".", "c"),
        ("a", "."),
        ("a", "../c"),
        ("../outside/secret", "c"),
    ],
)
async def test_moves_that_are_refused_change_nothing(files: Any, source: str, destination: str) -> None:
    (files.outside / "secret").write_text("secret")
    for name in ("a", "b"):
        (files.root / name).write_text(name)
    for name in ("folder", "empty"):
        (files.root / name).mkdir()
    (files.root / "folder" / "inner").write_text("inner")
    os.link(files.root / "a", files.root / "hard")
    before = tree(files.root.parent)
    await files.refusal("move_file", source=source, destination=destination)
    assert tree(files.root.parent) == before
    assert (files.root / "a").read_text() == "a"
    assert (files.root / "b").read_text() == "b"


async def test_a_link_is_deleted_itself(files: Any) -> None:
    (files.root / "x").write_text("x")
    (files.outside / "secret").write_text("secret")
    (files.root / "in").symlink_to("x")
    (files.root / "out").symlink_to("../outside/secret")
    await files.call("delete_file", path="in")
    await files.call("delete_file", path="out")
    assert tree(files.root) == ["x"]
    assert (files.outside / "secret").read_text() == "secret"


@pytest.mark.parametrize("path", [".", "folder", "missing", "../outside", "missing/x"])
async def test_deletions_that_are_refused(files: Any, path: str) -> None:
    (files.root / "folder").mkdir()
    await files.refusal("delete_file", path=path)
    assert tree(files.root) == ["folder"]


async def test_a_file_changed_after_the_question_is_not_deleted(files: Any) -> None:
    (files.root / "x").write_text("old")
    tool = files.executor.registry.get("delete_file")
    shown = await tool.preview(path="x")
    (files.root / "x").write_text("new")
    with pytest.raises(Exception, match="changed since"):
        await tool.function(path="x", context=CallContext(asked=True, approved_state=shown.state))
    assert (files.root / "x").read_text() == "new"


async def test_a_nested_root_stays_where_it_is(tmp_path: Path) -> None:
    from mcp_tools.builtin.files import register_file_tools
    from mcp_tools.builtin.workspace import Workspace
    from mcp_tools.executor import ToolExecutor
    from mcp_tools.registry import ToolRegistry

    inner = tmp_path / "outer" / "middle" / "inner"
    inner.mkdir(parents=True)
    registry = ToolRegistry()
    with Workspace.open([tmp_path / "outer", inner], sweep_at_start=False) as workspace:
        register_file_tools(registry, workspace)
        executor = ToolExecutor(registry)
        for source in ("middle", "middle/inner"):
            result = await executor.execute(
                "move_file", {"source": source, "destination": "x"}, {"confirmed": True}
            )
            assert "allowed folder" in str(result.error)
    assert inner.is_dir()

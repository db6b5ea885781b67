"""What clients, models and policies are told about the file tools."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_tools.types import ToolAnnotations

READS = {
    "read_file",
    "read_text_file",
    "read_media_file",
    "read_multiple_files",
    "list_directory",
    "list_directory_with_sizes",
    "directory_tree",
    "get_file_info",
    "search_files",
    "grep_files",
    "list_allowed_directories",
}
CHANGES = {"write_file", "edit_file", "create_directory", "move_file", "delete_file"}


def test_reads_are_free_and_changes_are_asked_about(files: Any) -> None:
    tools = files.executor.registry.list_tools()
    assert {tool.name for tool in tools if not tool.requires_confirmation} == READS
    assert {tool.name for tool in tools if tool.requires_confirmation} == CHANGES
    assert all(tool.preview and tool.must_ask for tool in tools if tool.requires_confirmation)


def test_all_are_tagged_titled_described_and_annotated(files: Any) -> None:
    for tool in files.executor.registry.list_tools():
        assert tool.tags == ["filesystem"]
        assert tool.title
        assert tool.description
        assert isinstance(tool.annotations, ToolAnnotations)
        assert tool.annotations.open_world_hint is False
        assert tool.annotations.read_only_hint is (tool.name in READS)
        for name, field in tool.parameters.get("properties", {}).items():
            assert field.get("description"), f"{tool.name}.{name}"


@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        ("read_file", {"path": "link/x"}, ["sub/x"]),
        ("read_file", {"path": "new/file"}, ["new/file"]),
        ("write_file", {"path": "link/../x"}, ["x"]),
        ("write_file", {"path": "linked"}, ["sub/x"]),
        ("delete_file", {"path": "linked"}, ["linked"]),
        ("move_file", {"source": "linked", "destination": "link/new"}, ["linked", "sub/new"]),
        ("read_multiple_files", {"paths": ["sub/x", "out"]}, ["sub/x", "out"]),
        ("read_file", {"path": "dangling"}, ["sub/none"]),
        ("read_file", {"path": "."}, ["."]),
    ],
)
async def test_policies_match_real_places(
    files: Any, tool: str, arguments: dict[str, Any], expected: list[str]
) -> None:
    (files.root / "sub").mkdir()
    (files.root / "sub" / "x").touch()
    (files.root / "link").symlink_to("sub")
    (files.root / "linked").symlink_to("sub/x")
    (files.root / "out").symlink_to("../outside")
    (files.root / "dangling").symlink_to("sub/none")
    expected_subjects = [(place, str(files.root / place)) for place in expected]
    assert await files.executor.registry.get(tool).subjects(**arguments) == expected_subjects


async def test_a_path_that_leads_nowhere_stands_for_itself(files: Any) -> None:
    assert await files.executor.registry.get("read_file").subjects(path="../outside/x") == ["../outside/x"]


async def test_places_in_the_first_root_have_two_spellings_and_in_others_one(tmp_path: Path) -> None:
    from mcp_tools.builtin.files.subjects import real_places
    from mcp_tools.builtin.workspace import Workspace

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with Workspace.open([tmp_path / "one", tmp_path / "two"], sweep_at_start=False) as workspace:
        places = await real_places(workspace, "x", str(tmp_path / "one" / "y"), str(tmp_path / "two" / "z"))
    assert places == [
        ("x", str(tmp_path / "one" / "x")),
        ("y", str(tmp_path / "one" / "y")),
        (str(tmp_path / "two" / "z"),),
    ]


async def test_a_place_in_nested_roots_has_all_its_spellings_whichever_it_is_reached_through(
    tmp_path: Path,
) -> None:
    from mcp_tools.builtin.files.subjects import real_places
    from mcp_tools.builtin.workspace import Workspace

    inner = tmp_path / "one" / "inner"
    inner.mkdir(parents=True)
    with Workspace.open([tmp_path / "one", inner], sweep_at_start=False) as workspace:
        places = await real_places(workspace, "inner/x", str(inner / "x"))
    assert places == [("inner/x", str(inner / "x"))] * 2


async def test_a_cancelled_write_changes_nothing(files: Any) -> None:
    """Cancelled at any moment before the rename, the file stays; after it, the whole new one is there."""
    from mcp_tools.types import CallContext

    write = files.executor.registry.get("write_file").function
    path = files.root / "x"
    for delay_ms in range(12):
        path.write_text("old")
        task = asyncio.create_task(write(path="x", content="new" * 100_000, context=CallContext()))
        await anyio.sleep(delay_ms / 1000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        content = path.read_text()
        assert content in ("old", "new" * 100_000)
        with anyio.fail_after(5):
            while [name for name in os.listdir(files.root) if name != "x"]:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert path.read_text() == content

"""A-01, A-02, A-08, D-11: no spelling of a path reaches a byte outside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mcp_tools.types import CallContext

CANARY = "canary-7f3a"

SPELLINGS = [
    "../outside/canary",
    "./../outside/canary",
    "a/../../outside/canary",
    "a/./.././../outside/canary",
    "a/b/../../../outside/canary",
    "..//outside//canary",
    ".//..//outside/canary",
    "../outside/./canary",
    "../root/../outside/canary",
    "..\\outside\\canary",
    "..\\/outside/canary",
    "a\\..\\..\\outside\\canary",
    "%2e%2e/outside/canary",
    "%2e%2e%2foutside%2fcanary",
    "..%2foutside%2fcanary",
    "%252e%252e/outside/canary",
    "..%252foutside",
    "..%c0%afoutside%c0%afcanary",
    "%c0%ae%c0%ae/outside/canary",
    "..%ef%bc%8foutside",
    "\uff0e\uff0e/outside/canary",
    "..\uff0foutside\uff0fcanary",
    "\u2025/outside/canary",
    "..\u2215outside\u2215canary",
    "{outside}/canary",
    "//{outside}/canary",
    "///{outside}/canary",
    "/.{outside}/canary",
    "{root}/../outside/canary",
    "{root}/./../outside/canary",
    "{root}//..//outside/canary",
    "{root}/a/../../outside/canary",
    "{root}/../root/../outside/canary",
    "{root}-evil/secret.txt",
    "{root}/../root-evil/secret.txt",
    "../root-evil/secret.txt",
    "file://{outside}/canary",
    "file:{outside}/canary",
    "FILE:///{outside}/canary",
    "~/canary",
    "~root/canary",
    "$PWD/../outside/canary",
    "${{PWD}}/canary",
    "\ufeff{outside}/canary",
    "\ufeff../outside/canary",
    "{outside}/canary\0.txt",
    "a\0/../../outside/canary",
    "/proc/self/root{outside}/canary",
    "/proc/self/cwd/canary",
    "proc/self/root{outside}/canary",
    "/dev/fd/../../{outside}/canary",
    "link/canary",
    "absolute/canary",
    "filelink",
    "proclink{outside}/canary",
]


@pytest.fixture
def attacked(files: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    evil = files.root.parent / "root-evil"
    evil.mkdir()
    for folder, name in ((files.outside, "canary"), (evil, "secret.txt")):
        (folder / name).write_text(CANARY)
    (files.root / "a" / "b").mkdir(parents=True)
    (files.root / "link").symlink_to("../outside")
    (files.root / "absolute").symlink_to(files.outside)
    (files.root / "filelink").symlink_to("../outside/canary")
    (files.root / "proclink").symlink_to("/proc/self/root")
    monkeypatch.chdir(files.outside)
    return files


def spelled(path: str, files: Any) -> str:
    return (
        path.replace("{{PWD}}", "{PWD}")
        .replace("{root}", str(files.root))
        .replace("{outside}", str(files.outside))
    )


def everything_outside(files: Any) -> dict[str, str]:
    above = files.root.parent
    return {
        str(path): path.read_text() if path.is_file() else "folder"
        for path in above.rglob("*")
        if not path.is_relative_to(files.root)
    }


def test_the_canary_can_be_reached_without_protection(attacked: Any) -> None:
    """Otherwise the tests below would hold for nothing."""
    reached = 0
    for path in SPELLINGS:
        try:
            reached += CANARY in (attacked.root / spelled(path, attacked)).read_text()
        except (OSError, ValueError):
            continue
    assert reached >= 20


async def test_a01_a02_reading_outside_is_refused(attacked: Any) -> None:
    for spelling in SPELLINGS:
        path = spelled(spelling, attacked)
        for tool, arguments in (
            ("read_file", {"path": path}),
            ("read_text_file", {"path": path, "head": 1}),
            ("read_media_file", {"path": path}),
            ("read_multiple_files", {"paths": [path]}),
            ("get_file_info", {"path": path}),
            ("list_directory", {"path": path}),
            ("search_files", {"path": path, "pattern": "*"}),
            ("grep_files", {"path": path, "pattern": "canary"}),
        ):
            result = await attacked.execute(tool, **arguments)
            assert CANARY not in result.to_observation(), (spelling, tool)
            assert tool == "read_multiple_files" or not result.is_success, (spelling, tool)
        assert (await attacked.execute("list_directory")).is_success, spelling  # it still answers


async def test_a01_a02_changing_outside_is_refused(attacked: Any) -> None:
    before = everything_outside(attacked)
    for spelling in SPELLINGS:
        path = spelled(spelling, attacked)
        (attacked.root / "mine").write_text("mine")
        for tool, arguments in (
            ("write_file", {"path": path, "content": "evil"}),
            ("write_file", {"path": path, "content": "evil", "mode": "a"}),
            ("write_file", {"path": path + ".new", "content": "evil", "mode": "x"}),
            ("edit_file", {"path": path, "edits": [{"oldText": CANARY, "newText": "evil"}]}),
            ("create_directory", {"path": path + ".d/e"}),
            ("move_file", {"source": path, "destination": "stolen"}),
            ("move_file", {"source": "mine", "destination": path + ".moved"}),
        ):
            result = await attacked.execute(tool, CallContext(confirmed=True), **arguments)
            assert CANARY not in result.to_observation(), (spelling, tool)
            assert everything_outside(attacked) == before, (spelling, tool)
    taken = [p.read_text() for p in attacked.root.rglob("*") if p.is_file() and not p.is_symlink()]
    assert CANARY not in "".join(taken)


async def test_d11_a_link_planted_in_the_workspace_to_a_system_file_is_refused(attacked: Any) -> None:
    (attacked.root / "planted").symlink_to("/etc/passwd")
    assert "root:" in (attacked.root / "planted").read_text()  # it works without the protection
    error = await attacked.refusal("read_file", path="planted")
    assert "root:" not in error
    assert "leads out of the allowed folders" in error


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/.", "{}//", "{}/a/.."])
async def test_a08_the_root_may_be_spelled_with_slashes_and_dots(tmp_path: Path, spelling: str) -> None:
    from mcp_tools.builtin.workspace import Workspace

    (tmp_path / "r" / "a").mkdir(parents=True)
    (tmp_path / "r" / "x").write_text("x")
    with Workspace.open([spelling.format(tmp_path / "r")], sweep_at_start=False) as workspace:
        place = workspace.locate(str(tmp_path / "r" / "x"))
        os.close(workspace.open_file(place))
        assert workspace.roots[0].real == str(tmp_path / "r")


async def test_a08_nested_roots_reach_exactly_both(tmp_path: Path) -> None:
    from mcp_tools.builtin.workspace import Workspace
    from mcp_tools.errors import ToolError

    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "up").symlink_to("../x")  # leaves the inner root, stays in the outer one
    (tmp_path / "outer" / "x").write_text("x")
    with Workspace.open([tmp_path / "outer", inner, inner], sweep_at_start=False) as workspace:
        assert [root.real for root in workspace.roots] == [str(tmp_path / "outer"), str(inner)]
        assert workspace.locate(str(inner / "y")).root.real == str(inner)
        os.close(workspace.open_file(workspace.locate("inner/up")))
        with pytest.raises(ToolError):
            workspace.open_file(workspace.locate(str(inner / "up")))
        with pytest.raises(ToolError):
            workspace.locate(str(tmp_path / "other"))


async def test_a08_root_slash_reaches_everything_but_through_proc(tmp_path: Path) -> None:
    from mcp_tools.builtin.workspace import Workspace
    from mcp_tools.errors import ToolError

    (tmp_path / "x").write_text("x")
    with Workspace.open(["/"], sweep_at_start=False) as workspace:
        os.close(workspace.open_file(workspace.locate(str(tmp_path / "x"))))
        os.close(workspace.open_file(workspace.locate(str(tmp_path / "x").lstrip("/"))))
        for path in (f"/proc/self/root{tmp_path}/x", "/dev/zero", "/dev/tty"):
            with pytest.raises(ToolError):
                workspace.open_file(workspace.locate(path))

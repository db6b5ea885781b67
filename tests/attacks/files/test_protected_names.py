"""A-30 (CVE-2026-25725), A-13: names that programs act on are asked about, however they are reached."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_tools.executor import ToolExecutor
from mcp_tools.policy.rules import RulePolicy
from mcp_tools.types import CallContext, ErrorCode, ExecutionResult

CHANGES = ["write_file", "edit_file", "create_directory", "move_file", "delete_file"]

NAMES = [
    ".git/hooks/pre-commit",
    ".git/config",
    ".bashrc",
    ".profile",
    ".zshrc",
    ".mcp.json",
    "claude_desktop_config.json",
    ".vscode/tasks.json",
    ".cursor/mcp.json",
    ".env",
    ".env.local",
    "sitecustomize.py",
    "usercustomize.py",
    "lib.pth",
    ".ssh/authorized_keys",
    "mcp_tools.toml",
]


@pytest.fixture
def approved(one_way: Any) -> Any:
    """The tools where the owner has allowed every change beforehand."""
    policy = RulePolicy.parse(allow=CHANGES)
    executor = ToolExecutor(one_way.executor.registry, policy=policy)
    return type(one_way)(one_way.root, one_way.outside, one_way.workspace, executor)


def is_question(result: ExecutionResult) -> bool:
    return result.error_code is ErrorCode.CONFIRMATION_REQUIRED and result.confirmation is not None


async def test_ordinary_names_are_not_asked_about(approved: Any) -> None:
    """Otherwise every assertion below would hold for nothing."""
    (approved.root / "sub").mkdir()
    for tool, arguments in (
        ("write_file", {"path": "sub/x", "content": "x"}),
        ("edit_file", {"path": "sub/x", "edits": [{"oldText": "x", "newText": "y"}]}),
        ("create_directory", {"path": "a/b"}),
        ("move_file", {"source": "sub", "destination": "a/sub"}),
        ("delete_file", {"path": "a/sub/x"}),
    ):
        assert (await approved.execute(tool, **arguments)).is_success, tool


@pytest.mark.parametrize("spelling", [str, str.upper, str.title], ids=["as it is", "upper", "title"])
async def test_a30_every_change_of_a_protected_name_is_asked_about(approved: Any, spelling: Any) -> None:
    for name in NAMES:
        await assert_every_change_is_asked_about(approved, spelling(name))


async def assert_every_change_is_asked_about(approved: Any, name: str) -> None:
    path = approved.root / name
    for exists in (False, True):
        path.parent.mkdir(parents=True, exist_ok=True)
        if exists:
            path.write_text("old")
        (approved.root / "mine").write_text("mine")
        calls = [
            ("write_file", {"path": name, "content": "evil"}),
            ("write_file", {"path": name, "content": "evil", "mode": "a"}),
        ]
        if exists:
            calls += [
                ("edit_file", {"path": name, "edits": [{"oldText": "old", "newText": "evil"}]}),
                ("delete_file", {"path": name}),
                ("move_file", {"source": name, "destination": "elsewhere"}),
            ]
        else:
            calls += [("move_file", {"source": "mine", "destination": name})]
        for tool, arguments in calls:
            assert is_question(await approved.execute(tool, **arguments)), (tool, arguments)
    assert path.read_text() == "old"


async def test_a30_through_links_the_real_name_counts(approved: Any) -> None:
    root = approved.root
    (root / ".git" / "hooks").mkdir(parents=True)
    (root / ".git" / "config").write_text("old")
    (root / "innocent").symlink_to(".git/hooks")
    (root / "plain.txt").symlink_to(".git/config")
    (root / "dangling").symlink_to(".bashrc")
    for tool, arguments in (
        ("write_file", {"path": "innocent/x", "content": "evil"}),
        ("write_file", {"path": "plain.txt", "content": "evil"}),
        ("write_file", {"path": "dangling", "content": "evil"}),
        ("edit_file", {"path": "plain.txt", "edits": [{"oldText": "old", "newText": "evil"}]}),
        ("create_directory", {"path": "innocent/x"}),
        ("delete_file", {"path": "innocent/../config"}),
    ):
        result = await approved.execute(tool, **arguments)
        assert not result.is_success, (tool, arguments)
    assert sorted(os.listdir(root / ".git")) == ["config", "hooks"]
    assert (root / ".git" / "config").read_text() == "old"
    assert not (root / ".bashrc").exists()


async def test_a30_folders_that_hold_or_become_protected_ones(approved: Any) -> None:
    root = approved.root
    (root / "project" / "sub" / ".git").mkdir(parents=True)
    (root / "prepared" / "hooks").mkdir(parents=True)
    (root / "prepared" / "workflows").mkdir(parents=True)
    for tool, arguments in (
        ("move_file", {"source": "project", "destination": "elsewhere"}),
        ("move_file", {"source": "project/sub/.git", "destination": "taken"}),
        ("move_file", {"source": "prepared", "destination": ".git"}),
        ("move_file", {"source": "prepared", "destination": ".github"}),
        ("create_directory", {"path": ".git/hooks"}),
        ("create_directory", {"path": "a/.VSCODE"}),
    ):
        assert is_question(await approved.execute(tool, **arguments)), (tool, arguments)


async def test_a30_a_folder_too_big_to_look_through_is_asked_about(approved: Any) -> None:
    from mcp_tools.builtin.files import change

    for number in range(30):
        (approved.root / "big" / str(number)).mkdir(parents=True)
    arguments = {"source": "big", "destination": "moved"}
    before = change.MAX_LOOKED_THROUGH
    change.MAX_LOOKED_THROUGH = 10  # type: ignore[misc]
    try:
        result = await approved.execute("move_file", **arguments)
    finally:
        change.MAX_LOOKED_THROUGH = before  # type: ignore[misc]
    assert is_question(result)
    assert "too big" in result.confirmation.reason
    assert (await approved.execute("move_file", **arguments)).is_success


async def test_a30_a_link_exchanged_after_the_decision_is_refused_at_the_last_moment(files: Any) -> None:
    """The decision saw an ordinary folder; when the tool runs, the name leads to a protected one."""
    root = files.root
    (root / ".git" / "hooks").mkdir(parents=True)
    (root / "folder").mkdir()
    write = files.executor.registry.get("write_file")
    assert await write.must_ask(path="folder/x", content="evil", mode="w", expectedSha256=None) is None
    (root / "folder").rmdir()
    (root / "folder").symlink_to(".git/hooks")
    with pytest.raises(Exception, match="nothing was changed, because a person must be asked"):
        await write.function(path="folder/x", content="evil", context=CallContext())
    assert os.listdir(root / ".git" / "hooks") == []
    await write.function(path="folder/x", content="good", context=CallContext(asked=True))
    assert (root / ".git" / "hooks" / "x").read_text() == "good"


async def test_a30_the_root_itself_may_lie_in_a_protected_folder(tmp_path: Path) -> None:
    from mcp_tools.builtin.files import register_file_tools
    from mcp_tools.builtin.workspace import Workspace
    from mcp_tools.registry import ToolRegistry

    (tmp_path / ".git" / "hooks").mkdir(parents=True)
    registry = ToolRegistry()
    with Workspace.open([tmp_path / ".git" / "hooks"], sweep_at_start=False) as workspace:
        register_file_tools(registry, workspace)
        executor = ToolExecutor(registry, policy=RulePolicy.parse(allow=CHANGES))
        assert is_question(await executor.execute("write_file", {"path": "x", "content": "x"}))


@pytest.fixture
def ignoring_case(tmp_path: Path) -> Iterator[Path]:
    """A file system where `x` and `X` are one file."""
    folder, image = tmp_path / "mounted", tmp_path / "image"
    folder.mkdir()
    image.touch()
    os.truncate(image, 4 * 1024 * 1024)
    if shutil.which("lowntfs-3g") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs lowntfs-3g and /dev/fuse: there is no case-insensitive file system")
    subprocess.run(["mkntfs", "-q", "-F", image], check=True, capture_output=True)
    subprocess.run(["lowntfs-3g", "-o", "ignore_case", image, folder], check=True, capture_output=True)
    try:
        assert not (folder / "x").exists()
        (folder / "x").touch()
        assert (folder / "X").exists()
        (folder / "x").unlink()
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


async def test_a13_where_case_is_ignored_identity_decides(ignoring_case: Path) -> None:
    from mcp_tools.builtin.files import register_file_tools
    from mcp_tools.builtin.workspace import Workspace
    from mcp_tools.registry import ToolRegistry

    root = ignoring_case / "Data"
    root.mkdir()
    (root / "Abc").write_text("inside")
    (ignoring_case / "secret").write_text("outside")
    registry = ToolRegistry()
    with Workspace.open([root], sweep_at_start=False) as workspace:
        register_file_tools(registry, workspace)
        executor = ToolExecutor(
            registry, policy=RulePolicy.parse(allow=CHANGES, deny=["read_file(**/.ENV)", "read_file(.ENV)"])
        )

        async def execute(tool: str, **arguments: Any) -> ExecutionResult:
            return await executor.execute(tool, arguments)

        for path in ("abc", "ABC", str(root / "aBC"), str(ignoring_case / "DATA" / "abc")):
            assert (await execute("read_file", path=path)).result == "inside", path
        for path in (
            str(root / ".."),
            str(ignoring_case / "data" / ".." / "secret"),
            str(ignoring_case / "DATA" / ".." / "SECRET"),
            str(ignoring_case / "DATA-evil" / "x"),
        ):
            assert not (await execute("read_file", path=path)).is_success, path
        # The same file under another spelling: never two, never one silently over the other.
        assert "exists already" in str((await execute("write_file", path="ABC", content="x", mode="x")).error)
        assert (await execute("write_file", path="ABC", content="new")).is_success
        assert len(os.listdir(root)) == 1
        assert (root / "Abc").read_text() == "new"
        assert "source itself" in str((await execute("move_file", source="abc", destination="ABC")).error)
        for name in (".GIT", ".Env", ".BASHRC"):
            assert is_question(await execute("write_file", path=name, content="x")), name
        (root / ".env").write_text("secret")
        for name in (".env", ".ENV", ".Env"):
            assert (await execute("read_file", path=name)).error_code is ErrorCode.DENIED, name
        assert (await execute("delete_file", path="aBc")).is_success
        assert (await execute("create_directory", path="a/B/c")).is_success
        assert (await execute("move_file", source="A/b/C", destination="moved")).is_success
        assert (await execute("edit_file", path="missing", edits=[{"oldText": "a", "newText": "b"}])).error

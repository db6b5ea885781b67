"""A path argument becomes names below a root, or an error; nothing is opened for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_tools.builtin.workspace import Workspace, paths
from mcp_tools.builtin.workspace.problems import escaped, shown
from mcp_tools.errors import ConfigError, ToolError


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a/b", ("a", "b")),
        (".", ()),
        ("./a//b/.", ("a", "b")),
        ("a/../b", ("b",)),
        ("..", None),
        ("a/../../a", None),
        ("a\\..\\..\\b", ("a\\..\\..\\b",)),
    ],
)
def test_dots_and_slashes_are_worked_out(path: str, parts: tuple[str, ...] | None) -> None:
    assert paths.relative_parts(path) == parts


@pytest.mark.parametrize(
    ("path", "folder", "parts"),
    [
        ("/data/x", "/data", ("x",)),
        ("/data", "/data/", ()),
        ("/data-evil/x", "/data", None),
        ("/dat", "/data", None),
        ("/data/../etc", "/data", None),
        ("/data/../data/x", "/data", ("x",)),
        ("/etc", "/", ("etc",)),
    ],
)
def test_whole_names_are_compared(path: str, folder: str, parts: tuple[str, ...] | None) -> None:
    assert paths.parts_below(path, folder) == parts


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a\0b", "NUL"),
        ("a\ud800", "lone surrogate"),
        ("x" * 5000, "at most 4095"),
        ("file:///etc/passwd", "URI"),
        ("~/x", "'~' is not expanded"),
    ],
)
def test_what_can_be_no_path_is_refused_with_the_reason(path: str, says: str) -> None:
    with pytest.raises(ToolError, match=says):
        paths.check(path)


def test_names_are_shown_so_that_they_cannot_pass_for_others() -> None:
    assert shown("a\nb\u202ec\udcff'") == r"'a\nb\u202ec\udcff\''"
    assert shown("Überraschung 日本") == "'Überraschung 日本'"
    assert len(shown("x" * 10_000)) < 400


def test_relative_paths_start_at_the_first_root_and_absolute_ones_find_theirs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with Workspace.open([tmp_path / "one", tmp_path / "two"], sweep_at_start=False) as workspace:
        one, two = workspace.roots
        assert workspace.locate("x").root is one
        assert workspace.locate(str(tmp_path / "two" / "x")).root is two
        assert workspace.display(one, ("a", "b")) == "a/b"
        assert workspace.display(two, ("a", "b")) == str(tmp_path / "two" / "a" / "b")
        assert workspace.display(one, ()) == "."
        assert workspace.display(two, ()) == str(tmp_path / "two")


@pytest.mark.parametrize("make", ["missing", "file"])
def test_a_root_that_is_no_folder_is_the_owners_error(tmp_path: Path, make: str) -> None:
    path = tmp_path / "root"
    if make == "file":
        path.write_text("")
    with pytest.raises(ConfigError, match="--root"):
        Workspace.open([tmp_path, path], sweep_at_start=False)


def test_native_windows_is_refused_and_wsl2_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(ConfigError, match="WSL2"):
        Workspace.open([tmp_path])


def test_a_closed_workspace_refuses(tmp_path: Path) -> None:
    workspace = Workspace.open([tmp_path], sweep_at_start=False)
    workspace.close()
    workspace.close()
    with pytest.raises(ToolError, match="closed"):
        workspace.locate("x")


@pytest.mark.parametrize(
    "char", ["\u3164", "\u2800", "\u115f", "\u1160", "\uffa0", "\ufe0f", "\u180b", "\xa0"]
)
def test_what_is_not_seen_is_written_out_though_python_says_it_prints(char: str) -> None:
    assert escaped(f"a{char}b") == "a" + char.encode("unicode_escape").decode() + "b"


@pytest.mark.parametrize("text", ["a b", "été", "日本語", "файл", "한국어", "😀"])
def test_what_is_seen_stays_as_it_is(text: str) -> None:
    assert escaped(text) == text

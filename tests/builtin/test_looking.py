"""Lists, trees, details and searches: complete or cut aloud, in text and in data alike."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest


@pytest.fixture
def project(files: Any) -> Any:
    root = files.root
    for folder in ("src/deep", "node_modules/lib", "empty"):
        (root / folder).mkdir(parents=True)
    (root / "README.md").write_text("Hello\nworld\n")
    (root / "src/main.py").write_text("import os\n\ndef main():\n    return 'Hello'\n")
    (root / "src/deep/test_a.py").write_text("# hello\n")
    (root / "node_modules/lib/index.js").write_text("Hello()\n")
    (root / "src/link").symlink_to("main.py")
    (root / "out").symlink_to("../outside")
    (files.outside / "hello.py").write_text("Hello secret\n")
    return files


async def test_list_directory(project: Any) -> None:
    listing = await project.call("list_directory")
    assert [(e["name"], e["type"]) for e in listing["entries"]] == [
        ("README.md", "file"),
        ("empty", "directory"),
        ("node_modules", "directory"),
        ("out", "link"),
        ("src", "directory"),
    ]
    result = await project.execute("list_directory", path="src")
    assert result.to_observation() == "[DIR] deep\n[LINK] link\n[FILE] main.py"


async def test_sizes_and_their_sum(project: Any) -> None:
    listing = await project.call("list_directory_with_sizes", path="src", sortBy="size")
    assert [(e["name"], e["size_bytes"]) for e in listing["entries"]] == [
        ("main.py", 42),
        ("deep", None),
        ("link", None),
    ]
    assert listing["total_size_bytes"] == 42


async def test_the_tree_leaves_out_what_is_excluded(project: Any) -> None:
    result = await project.execute("directory_tree", excludePatterns=["node_modules", "*.md"])
    assert result.to_observation() == "\n".join(
        ["empty/", "out (link)", "src/", "  deep/", "    test_a.py", "  link (link)", "  main.py"]
    )
    assert [child["name"] for child in result.result.structured["children"]] == ["empty", "out", "src"]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.py", ".", ["src/main.py", "src/deep/test_a.py"]),
        ("*.py", "src", ["src/main.py", "src/deep/test_a.py"]),
        ("src/*.py", ".", ["src/main.py"]),
        ("MAIN", ".", ["src/main.py"]),
        ("deep", ".", ["src/deep/"]),
        ("*.rb", ".", []),
    ],
)
async def test_search_files(project: Any, pattern: str, path: str, expected: list[str]) -> None:
    found = await project.call("search_files", path=path, pattern=pattern, excludePatterns=["node_modules"])
    assert found["matches"] == expected
    assert found["notices"] == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"pattern": "Hello"}, ["README.md:1", "node_modules/lib/index.js:1", "src/main.py:4"]),
        ({"pattern": "Hello", "glob": "*.py"}, ["src/main.py:4"]),
        ({"pattern": "hello", "ignoreCase": True, "glob": "*.py"}, ["src/main.py:4", "src/deep/test_a.py:1"]),
        ({"pattern": "^def .*:$", "regex": True}, ["src/main.py:3"]),
        ({"pattern": "HELLO", "regex": True, "ignoreCase": True, "path": "README.md"}, ["README.md:1"]),
        ({"pattern": "Hello.", "regex": False}, []),
        ({"pattern": "^$", "regex": True}, ["src/main.py:2"]),
        ({"pattern": "Hello", "excludePatterns": ["node_modules", "src"]}, ["README.md:1"]),
    ],
)
async def test_grep_files(project: Any, arguments: dict[str, Any], expected: list[str]) -> None:
    found = await project.call("grep_files", **arguments)
    assert [f"{m['path']}:{m['line']}" for m in found["matches"]] == expected


async def test_grep_says_what_it_left_out(project: Any) -> None:
    (project.root / "binary").write_bytes(b"Hello\0")
    (project.root / "many").write_text("Hello\n" * 10)
    found = await project.call("grep_files", pattern="Hello", maxResults=3)
    assert len(found["matches"]) == 3
    assert any("only the first 3" in notice for notice in found["notices"])
    found = await project.call("grep_files", pattern="Hello", glob="binary")
    assert found["notices"] == ["1 files are binary and were skipped"]


async def test_an_invalid_regex_is_explained(project: Any) -> None:
    error = await project.refusal("grep_files", pattern="(", regex=True)
    assert "not a valid regular expression" in error
    assert "unterminated" in error


async def test_bytes_that_are_no_text_are_written_out_in_matches(project: Any) -> None:
    (project.root / "x").write_bytes(b"before \xff needle\x1b[0m\n")
    for is_regex in (False, True):
        found = await project.call("grep_files", pattern="needle", path="x", regex=is_regex)
        assert found["matches"][0]["text"] == r"before \xff needle\x1b[0m"


async def test_get_file_info(project: Any) -> None:
    info = await project.call("get_file_info", path="src/link")
    assert info["path"] == "src/main.py"
    assert info["absolute_path"] == str(project.root / "src/main.py")
    assert info["type"] == "file"
    assert info["size_bytes"] == 42
    assert info["reached_through_link"] is True
    assert info["sha256"] == hashlib.sha256((project.root / "src/main.py").read_bytes()).hexdigest()
    os.mkfifo(project.root / "pipe")
    assert (await project.call("get_file_info", path="pipe"))["type"] == "named pipe"
    assert (await project.call("get_file_info", path="."))["type"] == "directory"


async def test_list_allowed_directories(project: Any) -> None:
    assert await project.call("list_allowed_directories") == {"directories": [str(project.root)]}


async def test_text_and_data_say_the_same(project: Any) -> None:
    for name, arguments in (
        ("search_files", {"path": ".", "pattern": "*"}),
        ("grep_files", {"pattern": "Hello"}),
    ):
        result = await project.execute(name, **arguments)
        text = result.to_observation()
        for match in result.result.structured["matches"]:
            assert (match if isinstance(match, str) else match["path"]) in text

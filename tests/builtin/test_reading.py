"""The reading tools: exact content, pages, and errors that say what to do."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from mcp_tools.builtin.files import pages
from mcp_tools.types import MediaContent, ToolOutput

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes(20)
LINES = "".join(f"line {n}\n" for n in range(1, 101))


async def test_read_file_returns_what_is_stored(files: Any) -> None:
    (files.root / "x").write_bytes("\ufeffa\r\nb\0\x1b\n𝄞".encode())
    assert await files.call("read_file", path="x") == "\ufeffa\r\nb\0\x1b\n𝄞"


async def test_read_file_takes_an_encoding(files: Any) -> None:
    (files.root / "x").write_bytes("hé".encode("utf-16"))
    assert await files.call("read_file", path="x", encoding="utf-16") == "hé"
    assert "utf-8" in await files.refusal("read_file", path="x")


async def test_read_file_names_the_pages_for_what_is_too_big(files: Any) -> None:
    (files.root / "x").touch()
    os.truncate(files.root / "x", 10 * 1024 * 1024 + 1)
    error = await files.refusal("read_file", path="x")
    assert "head, tail, or offset and limit" in error


async def test_absolute_and_relative_paths_lead_to_the_same(files: Any) -> None:
    (files.root / "a").mkdir()
    (files.root / "a" / "x").write_text("hello")
    for path in ("a/x", "./a//x", "a/../a/x", str(files.root / "a" / "x")):
        assert await files.call("read_file", path=path) == "hello"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, LINES),
        ({"head": 2}, "line 1\nline 2\n"),
        ({"tail": 2}, "line 99\nline 100\n"),
        ({"offset": 50, "limit": 2}, "line 50\nline 51\n"),
        ({"offset": 100}, "line 100\n"),
        ({"limit": 1}, "line 1\n"),
        ({"head": 1000}, LINES),
        ({"tail": 1000}, LINES),
    ],
)
async def test_parts_of_a_text_file(files: Any, arguments: dict[str, int], expected: str) -> None:
    (files.root / "x").write_text(LINES)
    assert await files.call("read_text_file", path="x", **arguments) == expected


@pytest.mark.parametrize("arguments", [{"head": 1}, {"tail": 1}, {"offset": 1}])
async def test_parts_of_a_file_without_a_last_line_break(files: Any, arguments: dict[str, int]) -> None:
    (files.root / "x").write_text("only")
    assert await files.call("read_text_file", path="x", **arguments) == "only"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"offset": 101}, "has 100 lines; line 101 is beyond its end"),
        ({"offset": 5000}, "has 100 lines"),
        ({"head": -1}, "head"),
        ({"tail": 0}, "tail"),
        ({"head": 1, "tail": 1}, "tail goes alone"),
        ({"head": 1, "offset": 1}, "head goes alone"),
    ],
)
async def test_ranges_that_make_no_sense_are_explained(
    files: Any, arguments: dict[str, int], says: str
) -> None:
    (files.root / "x").write_text(LINES)
    assert says in await files.refusal("read_text_file", path="x", **arguments)


async def test_an_empty_file_is_an_empty_text(files: Any) -> None:
    (files.root / "x").touch()
    for arguments in ({}, {"head": 3}, {"tail": 3}, {"offset": 1}):
        assert await files.call("read_text_file", path="x", **arguments) == ""


async def test_a_cut_page_says_where_to_continue_and_pages_join_exactly(files: Any) -> None:
    whole = "".join(f"{n} é{'x' * (n % 200)}\n" for n in range(20_000))
    (files.root / "x").write_text(whole)
    read, offset = "", 1
    while True:
        output = await files.call("read_text_file", path="x", offset=offset)
        if isinstance(output, str):
            break
        page, notice = (piece.text for piece in output.content)
        assert len(page.encode()) <= pages.PAGE_BYTES
        read += page
        offset = int(notice.rstrip("]").rpartition("offset=")[2])
    assert read + output == whole


async def test_a_tail_over_a_page_says_how_many_lines_it_is(files: Any) -> None:
    whole = "".join(f"{n} {'x' * 1000}\n" for n in range(1000))
    (files.root / "x").write_text(whole)
    output = await files.call("read_text_file", path="x", tail=900)
    page, notice = (piece.text for piece in output.content)
    assert whole.endswith(page)
    assert f"the last {page.count(chr(10))} lines" in notice


async def test_a_missing_file_names_similar_ones(files: Any) -> None:
    (files.root / "re\u0301sume\u0301.txt").touch()
    error = await files.refusal("read_file", path="r\xe9sum\xe9.txt")
    assert "does not exist" in error
    assert r"re\u0301sume\u0301.txt" in error


async def test_media_is_told_by_its_content(files: Any) -> None:
    (files.root / "picture.txt").write_bytes(PNG)
    output = await files.call("read_media_file", path="picture.txt")
    assert output == ToolOutput(content=[MediaContent(data=PNG, media_type="image/png")])
    (files.root / "text.png").write_text("hello")
    assert "read_text_file" in await files.refusal("read_media_file", path="text.png")


async def test_several_files_and_one_error_among_them(files: Any) -> None:
    (files.root / "a").write_text("A")
    (files.root / "b").write_text("B")
    output = await files.call("read_multiple_files", paths=["a", "missing", "b"])
    texts = [piece.text for piece in output.content]
    assert texts[0] == "a:\nA"
    assert texts[1].startswith("missing: Error: 'missing': does not exist")
    assert texts[2] == "b:\nB"


async def test_many_reads_at_once(files: Any) -> None:
    for number in range(100):
        (files.root / str(number)).write_text(str(number))
    read = await asyncio.gather(*(files.call("read_file", path=str(n)) for n in range(100)))
    assert read == [str(n) for n in range(100)]


async def test_reading_leaves_no_descriptor(files: Any) -> None:
    (files.root / "x").write_text("x")
    await files.call("read_file", path="x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await files.call("read_file", path="x")
        await files.call("read_text_file", path="x", head=1)
        await files.refusal("read_file", path="missing")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_without_a_root_every_tool_says_what_to_do(tmp_path: Any) -> None:
    from mcp_tools.builtin.files import register_file_tools
    from mcp_tools.builtin.workspace import Workspace
    from mcp_tools.executor import ToolExecutor
    from mcp_tools.registry import ToolRegistry

    registry = ToolRegistry()
    with Workspace.open([]) as workspace:
        register_file_tools(registry, workspace)
        executor = ToolExecutor(registry)
        for path in ("x", str(tmp_path), "/"):
            result = await executor.execute("read_file", {"path": path})
            assert "--root DIR" in result.to_observation()
        listed = await executor.execute("list_allowed_directories")
        assert "--root DIR" in listed.to_observation()

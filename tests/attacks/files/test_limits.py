"""A-10, A-14, A-15, A-27, A-28: pipes, huge files, huge folders and costly patterns stop nobody."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_tools.builtin.files import pages


@pytest.mark.parametrize("count", [1, 4, 8, 64])
async def test_a10_reads_of_pipes_hold_nobody_up(one_way: Any, count: int) -> None:
    (one_way.root / "x").write_text("x")
    for number in range(count):
        os.mkfifo(one_way.root / f"pipe{number}")
    with anyio.fail_after(5):
        pipes = [
            asyncio.ensure_future(one_way.refusal(tool, path=f"pipe{number}"))
            for number in range(count)
            for tool in ("read_file", "read_text_file")
        ]
        started = time.monotonic()
        assert await one_way.call("read_file", path="x") == "x"
        assert time.monotonic() - started < 1
        for error in await asyncio.gather(*pipes):
            assert "named pipe" in error


async def test_a10_looking_at_a_pipe_does_not_wake_its_writer(one_way: Any) -> None:
    """Opening a pipe lets its writer go on, which then dies of SIGPIPE: another program's data is lost."""
    os.mkfifo(one_way.root / "pipe")
    writer = subprocess.Popen(  # noqa: ASYNC220
        [
            sys.executable,
            "-I",
            "-c",
            "import sys; open(sys.argv[1], 'w').write('data')",
            one_way.root / "pipe",
        ]
    )
    try:
        for _ in range(20):
            await one_way.refusal("read_file", path="pipe")
            await asyncio.sleep(0.01)
        assert (one_way.root / "pipe").read_text() == "data"
        assert writer.wait(5) == 0
    finally:
        writer.kill()
        writer.wait()


def grown_kib(printed: str) -> int:
    return int(printed.rsplit("grew ", 1)[1])


def test_a14_a_huge_file_is_answered_in_time_and_memory_and_lets_others_pass(
    tmp_path: Path, run_tools: Any
) -> None:
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 3 * 1024**3)
    (tmp_path / "small").write_text("small")
    printed = run_tools(
        tmp_path,
        """
        started = time.monotonic()
        async def small():
            await asyncio.sleep(0.05)
            answer = await call("read_file", path="small")
            print("small", answer, time.monotonic() - started < 10)
        waiting = asyncio.create_task(small())
        answers = await asyncio.gather(
            call("read_file", path="huge"),
            call("read_text_file", path="huge"),
            call("read_text_file", path="huge", tail=5),
        )
        await waiting
        for answer in answers:
            print(repr(answer[:200]), len(answer))
        print("in time", time.monotonic() - started < 20)
        """,
    ).stdout
    assert "small small True" in printed
    assert "in time True" in printed
    assert "head, tail, or offset" in printed
    assert grown_kib(printed) < 300 * 1024


def test_a15_a_file_of_one_huge_line_is_read_in_bounded_memory(tmp_path: Path, run_tools: Any) -> None:
    (tmp_path / "line").touch()
    os.truncate(tmp_path / "line", 100 * 1024 * 1024)
    with (tmp_path / "two").open("wb") as file:
        for _ in range(20):
            file.write(b"x" * 1024 * 1024)
        file.write(b"\nsecond\nthird")
    printed = run_tools(
        tmp_path,
        """
        for arguments in ({}, {"head": 1}, {"tail": 1}, {"offset": 1, "limit": 1}, {"offset": 2}):
            answer = await call("read_text_file", path="line", **arguments)
            print(arguments, len(answer), answer[-200:])
        print("second:", await call("read_text_file", path="two", offset=2, limit=1))
        print("last:", await call("read_text_file", path="two", tail=1))
        print("grep:", (await call("grep_files", path="two", pattern="second"))[-100:])
        """,
    ).stdout
    assert printed.count("is longer than 100,000 bytes") == 4
    assert "has 1 lines; line 2 is beyond its end" in printed
    assert "second: second\n" in printed
    assert "last: third\n" in printed
    assert "two:2: second" in printed
    assert grown_kib(printed) < 64 * 1024


@pytest.mark.parametrize("arguments", [{"head": -1}, {"tail": -5}, {"offset": 0}, {"limit": -1}])
async def test_a15_negative_counts_are_named(one_way: Any, arguments: dict[str, int]) -> None:
    (one_way.root / "x").write_text("x")
    error = await one_way.refusal("read_text_file", path="x", **arguments)
    assert next(iter(arguments)) in error


@pytest.mark.parametrize("width", [1, 7, 4096, pages.PAGE_BYTES - 1, pages.PAGE_BYTES])
async def test_a15_ranges_are_exact_at_block_and_page_borders(one_way: Any, width: int) -> None:
    lines = [f"{n:0{width}d}"[-width:] + "\n" for n in range(1, min(2000, 4_000_000 // width))]
    (one_way.root / "x").write_text("".join(lines))
    for offset in {1, 2, len(lines) // 2, len(lines) - 1, len(lines)} - {0}:
        output = await one_way.call("read_text_file", path="x", offset=offset, limit=1)
        text = output if isinstance(output, str) else output.content[0].text
        assert lines[offset - 1].startswith(text)
        assert len(text) >= min(width + 1, pages.PAGE_BYTES)


async def test_a27_a_folder_of_many_names_is_cut_aloud(one_way: Any) -> None:
    folder = one_way.root / "many"
    folder.mkdir()
    for number in range(3_000):
        (folder / f"{number:04}").touch()
    with anyio.fail_after(20):
        listing = await one_way.call("list_directory", path="many")
        assert listing["total"] == 3_000
        assert len(listing["entries"]) == 1_000
        assert listing["notices"] == ["2,000 more names are not shown; search_files finds names by pattern"]
        tree = await one_way.call("directory_tree", path=".")
        assert any("only the first 1,000" in notice for notice in tree["notices"])
        found = await one_way.call("search_files", path=".", pattern="*9")
        assert len(found["matches"]) == 300
        assert found["notices"] == []
        found = await one_way.call("search_files", path=".", pattern="*")
        assert found["notices"] == ["only the first 1,000 are shown; there are more"]
        sized = await one_way.call("list_directory_with_sizes", path="many")
        assert sized["total"] == 3_000
        assert (await one_way.call("grep_files", pattern="x"))["files_searched"] == 3_000


async def test_a27_deep_folders_end_aloud_and_cost_no_descriptors(files: Any) -> None:
    fd = os.open(files.root, os.O_RDONLY)
    for _ in range(200):  # more bytes than a path can have
        os.mkdir("d" * 40, dir_fd=fd)
        inner = os.open("d" * 40, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        with anyio.fail_after(20):
            for tool, arguments in (
                ("search_files", {"path": ".", "pattern": "x"}),
                ("grep_files", {"pattern": "x"}),
                ("directory_tree", {}),
            ):
                notices = (await files.call(tool, **arguments))["notices"]
                assert notices, tool
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        # shutil.rmtree recurses, and pytest removes folders with it.
        await anyio.run_process(["rm", "-rf", str(files.root / ("d" * 40))])


async def test_a27_loops_and_outside_links_are_listed_and_not_entered(files: Any) -> None:
    (files.outside / "secret-name").write_text("needle")
    (files.root / "a").mkdir()
    (files.root / "a" / "loop").symlink_to("..")
    (files.root / "a" / "self").symlink_to("self")
    (files.root / "out").symlink_to("../outside")
    (files.root / "a" / "x").write_text("needle")
    for tool, arguments in (
        ("list_directory", {}),
        ("directory_tree", {}),
        ("search_files", {"path": ".", "pattern": "*"}),
        ("grep_files", {"pattern": "needle"}),
    ):
        result = await files.execute(tool, **arguments)
        assert result.is_success
        text = result.to_observation()
        assert "secret-name" not in text
        assert text.count("loop") <= 1
    assert len((await files.call("grep_files", pattern="needle"))["matches"]) == 1


async def test_a27_names_with_line_breaks_cannot_pass_for_two(one_way: Any) -> None:
    (one_way.root / "a\n[FILE] b").touch()
    (one_way.root / "\u202etxt.exe").touch()
    os.close(os.open(os.fsencode(one_way.root) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    result = await one_way.execute("list_directory")
    text = result.to_observation()
    assert len(text.splitlines()) == 3
    assert r"a\n[FILE] b" in text
    assert r"\u202e" in text
    names = [entry["name"] for entry in result.result.structured["entries"]]
    assert "a\n[FILE] b" in names  # data carries the name itself, to be sent back
    assert await one_way.call("read_file", path="a\n[FILE] b") == ""


def test_a27_unreadable_folders_are_counted(tmp_path: Path, run_tools: Any) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "x").touch()
    printed = run_tools(tmp_path, 'print(await call("search_files", path=".", pattern="*"))').stdout
    assert printed.startswith("closed/\nx\n[1 folders could not be read ('closed')]\n")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*b"])
async def test_a28_a_costly_regex_is_stopped(one_way: Any, pattern: str) -> None:
    (one_way.root / "x").write_text("a" * 50_000 + "!\n")
    with anyio.fail_after(10):
        result = await one_way.execute("grep_files", pattern=pattern, regex=True)
    assert result.duration_ms < 4_000  # 2 s on an idle machine: 1.2 s for the pattern, the rest to start
    if not result.is_success:
        assert "takes too long" in str(result.error)
    # It was killed: nothing of it runs on.
    assert children_of_this_process() == ""


def children_of_this_process() -> str:
    return "".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))


def test_a28_the_regex_is_costly_without_the_protection() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-I", "-c", "import re; re.search('(a+)+$', 'a' * 50_000 + '!')"],
            timeout=2,
            check=False,
        )


@pytest.mark.parametrize(
    "pattern", ["**/" * 60 + "x", "**/*" * 60, "*a" * 400, "{a,b}{a,b}{a,b}{a,b}{a,b}", "[" * 500, "?" * 900]
)
async def test_a28_a_costly_glob_is_not(one_way: Any, pattern: str) -> None:
    (one_way.root / ("a" * 200)).mkdir()
    for number in range(100):
        (one_way.root / ("a" * 200) / f"{'a' * 200}{number}").touch()
    with anyio.fail_after(10):
        for tool, arguments in (
            ("search_files", {"path": ".", "pattern": pattern}),
            ("search_files", {"path": ".", "pattern": "*", "excludePatterns": [pattern] * 10}),
            ("grep_files", {"pattern": "x", "glob": pattern}),
        ):
            result = await one_way.execute(tool, **arguments)
            assert result.duration_ms < 2_000

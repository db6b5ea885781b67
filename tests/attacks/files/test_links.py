"""A-04, A-06, A-07: links, hard or soft, before and during a call, and roots that are exchanged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

CANARY = "canary-91bc"


async def test_a04_a_write_to_a_hard_link_leaves_the_outside_file_as_it_is(one_way: Any) -> None:
    outside = one_way.outside / "file"
    for mode, expected in (("w", "new"), ("a", "oldnew")):
        outside.write_text("old")
        (one_way.root / "link").unlink(missing_ok=True)
        os.link(outside, one_way.root / "link")
        await one_way.call("write_file", path="link", content="new", mode=mode)
        assert outside.read_text() == "old"
        assert (one_way.root / "link").read_text() == expected
    (one_way.root / "link").unlink()
    os.link(outside, one_way.root / "link")
    (one_way.root / "link").write_text("without the protection")
    assert outside.read_text() == "without the protection"


async def test_a04_the_question_says_that_a_file_has_other_names(one_way: Any) -> None:
    (one_way.root / "a").write_text("old")
    os.link(one_way.root / "a", one_way.root / "b")
    asked = await one_way.execute("write_file", path="a", content="new")
    assert "2 names (hard links)" in asked.confirmation.preview


SWAPPER = """
import os, sys
root, outside = sys.argv[1:3]
os.chdir(root)
print("ready", flush=True)
while True:
    # The file, then its folder, is a link to the outside for a moment. The folder more often, since a
    # file that was touched within the last 20 ms is not read at all.
    os.symlink(outside + "/file", "new"); os.rename("new", "dir/file")
    with open("new", "w") as f: f.write("inside")
    os.rename("new", "dir/file")
    for _ in range(1000):
        os.rename("dir", "kept"); os.symlink(outside, "dir")
        os.unlink("dir"); os.rename("kept", "dir")
        os.symlink("../outside", "relative"); os.rename("dir", "kept"); os.rename("relative", "dir")
        os.unlink("dir"); os.rename("kept", "dir")
"""


@pytest.fixture
def race(files: Any) -> Iterator[Any]:
    """The workspace while another process exchanges its names for links as fast as it can."""
    (files.root / "dir").mkdir()
    (files.root / "dir" / "file").write_text("inside")
    (files.outside / "file").write_text(CANARY)
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", SWAPPER, str(files.root), str(files.outside)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield files
        assert process.poll() is None, "the swapping process died, so nothing was tested"
    finally:
        process.kill()
        process.communicate()


def checked_then_opened(root: Path, path: str) -> str:
    """What a server without descriptors does: resolve, check, open by name."""
    full = os.path.join(root, path)
    if not os.path.realpath(full).startswith(f"{root}/"):
        raise PermissionError(path)
    with open(full) as file:
        return file.read()


def test_a06_checking_and_then_opening_is_fooled_in_this_race(race: Any) -> None:
    with anyio_deadline(30):
        for _ in range(200_000):
            try:
                if checked_then_opened(race.root, "dir/file") == CANARY:
                    return
            except OSError:
                continue
    pytest.fail("the race never hit, so the test below would prove nothing")


async def test_a06_no_outside_byte_is_read_or_written_while_names_are_swapped(race: Any) -> None:
    read = written = refused = number = 0
    with anyio.fail_after(60):
        while number < 100 or min(read, written, refused) < 10:  # else hardly anything was tested
            number += 1
            for tool, arguments in (
                ("read_file", {"path": "dir/file"}),
                ("read_text_file", {"path": "dir/file", "head": 1}),
            ):
                result = await race.execute(tool, **arguments)
                assert CANARY not in result.to_observation()
                read += result.is_success
                refused += "leads out of" in str(result.error)
            content = f"mine {number}"
            for tool, arguments in (
                ("write_file", {"path": "dir/file", "content": content}),
                ("write_file", {"path": f"dir/new{number}", "content": content, "mode": "x"}),
                ("edit_file", {"path": "dir/file", "edits": [{"oldText": "inside", "newText": "edited"}]}),
                ("delete_file", {"path": f"dir/new{number}"}),
            ):
                result = await race.execute(tool, {"confirmed": True}, **arguments)
                assert CANARY not in result.to_observation()
                written += result.is_success
            for tool, arguments in (
                ("list_directory", {"path": "dir"}),
                ("grep_files", {"pattern": "canary", "path": "dir"}),
                ("search_files", {"pattern": "*", "path": "."}),
            ):
                result = await race.execute(tool, **arguments)
                assert CANARY not in result.to_observation()
    assert os.listdir(race.outside) == ["file"]
    assert (race.outside / "file").read_text() == CANARY


class anyio_deadline:  # noqa: N801
    """A bound for a synchronous loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        import signal

        signal.signal(signal.SIGALRM, self._stop)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        import signal

        signal.setitimer(signal.ITIMER_REAL, 0)

    @staticmethod
    def _stop(*_: object) -> None:
        raise TimeoutError("the loop took too long")


async def test_a07_a_root_that_is_a_link_is_resolved_once(files: Any, tmp_path: Path) -> None:
    from mcp_tools.builtin.workspace import Workspace
    from mcp_tools.errors import ToolError

    (files.outside / "x").write_text(CANARY)
    (files.root / "x").write_text("inside")
    link = tmp_path / "link"
    link.symlink_to("root")
    with Workspace.open([link], opener=files.workspace.opener, sweep_at_start=False) as workspace:
        assert workspace.roots[0].real == str(files.root)
        for path in ("x", str(link / "x"), str(files.root / "x")):
            fd = workspace.open_file(workspace.locate(path))
            assert os.read(fd, 100) == b"inside"
            os.close(fd)
        link.unlink()
        link.symlink_to("outside")
        for path in ("x", str(link / "x")):
            fd = workspace.open_file(workspace.locate(path))
            assert os.read(fd, 100) == b"inside"
            os.close(fd)
        with pytest.raises(ToolError):
            workspace.locate(str(files.outside / "x"))


async def test_a07_a_root_replaced_by_a_link_while_we_run_changes_nothing(files: Any) -> None:
    (files.outside / "x").write_text(CANARY)
    (files.root / "x").write_text("inside")
    files.root.rename(files.root.parent / "moved")
    files.root.symlink_to("outside")
    assert (files.root / "x").read_text() == CANARY  # by name, the attack works
    assert await files.call("read_file", path="x") == "inside"
    assert await files.call("read_file", path=str(files.root / "x")) == "inside"
    await files.call("write_file", path="y", content="new")
    assert (files.root.parent / "moved" / "y").read_text() == "new"
    assert os.listdir(files.outside) == ["x"]


async def test_a07_a_root_removed_and_made_again_is_not_the_old_one(files: Any) -> None:
    files.root.rmdir()
    files.root.mkdir()
    (files.root / "x").write_text("new root")
    for tool, arguments in (
        ("read_file", {"path": "x"}),
        ("write_file", {"path": "y", "content": "y"}),
        ("list_directory", {}),
    ):
        error = await files.refusal(tool, **arguments)
        assert "was deleted since the server started" in error
    assert os.listdir(files.root) == ["x"]

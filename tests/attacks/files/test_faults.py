"""A-20, A-24: a disk that fails at any step costs neither the old content nor the truth."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_tools.builtin.workspace import Workspace
from mcp_tools.builtin.workspace.sweep import sweep

SUCCEEDED, REFUSED, KILLED = "0", "3", "-9"

CALLS = {
    "replace": ("write_file", {"path": "x", "content": "new"}),
    "create": ("write_file", {"path": "y", "content": "new", "mode": "x"}),
    "append": ("write_file", {"path": "x", "content": "more", "mode": "a"}),
    "edit": ("edit_file", {"path": "x", "edits": [{"oldText": "old", "newText": "new"}]}),
    "delete": ("delete_file", {"path": "x"}),
    "move": ("move_file", {"source": "x", "destination": "folder/y"}),
}

AFTER: dict[str, dict[str, str]] = {
    "replace": {"x": "new", "folder": ""},
    "create": {"x": "old", "y": "new", "folder": ""},
    "append": {"x": "oldmore", "folder": ""},
    "edit": {"x": "new", "folder": ""},
    "delete": {"folder": ""},
    "move": {"folder": "", "folder/y": "old"},
}
BEFORE = {"x": "old", "folder": ""}

# Every call in a child of its own, so that the n-th system call is counted anew for each. How it
# ended is told by a folder's name: whatever is printed would meet the fault as well.
DRIVER = """
import asyncio, json, os, sys
from mcp_tools.builtin.files import register_file_tools
from mcp_tools.builtin.workspace import Workspace
from mcp_tools.executor import ToolExecutor
from mcp_tools.registry import ToolRegistry

async def run(root, tool, arguments):
    registry = ToolRegistry()
    register_file_tools(registry, Workspace.open([root], sweep_at_start=False))
    return await ToolExecutor(registry).execute(tool, arguments, {"confirmed": True})

base, calls = sys.argv[1], json.loads(sys.argv[2])
for name, (tool, arguments) in calls.items():
    child = os.fork()
    if child == 0:
        os._exit(0 if asyncio.run(run(f"{base}/{name}", tool, arguments)).is_success else 3)
    _, status = os.waitpid(child, 0)
    os.mkdir(f"{base}/{name}.{os.waitstatus_to_exitcode(status)}")
"""

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace: no fault can be injected"
)


def state(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else "" for path in root.rglob("*")
    }


def run_with_fault(base: Path, *injects: str) -> tuple[dict[str, str], int]:
    """Run every call, each in its own root, with a fault; returns how each ended, and how many met it."""
    for name in CALLS:
        (base / name / "folder").mkdir(parents=True)
        (base / name / "x").write_text("old")
    log = base / "log"
    syscalls = ",".join(inject.partition(":")[0] for inject in injects)
    faults = [part for inject in injects for part in ("-e", f"inject={inject}")]
    subprocess.run(
        [
            *("strace", "-f", "--seccomp-bpf", "-qq", "-o", log, "-e", f"trace={syscalls}", *faults),
            *(sys.executable, "-c", DRIVER, str(base), json.dumps(CALLS)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    ended = dict(path.name.split(".") for path in base.iterdir() if "." in path.name)
    assert ended.keys() == CALLS.keys()
    return ended, log.read_text().count("(INJECTED)")


@needs_strace
@pytest.mark.parametrize(("syscall", "code"), [("write", "EIO"), ("fsync", "EIO"), ("renameat2", "ENOSPC")])
def test_a20_a_failing_step_is_reported_and_leaves_everything_as_it_was(
    tmp_path: Path, syscall: str, code: str
) -> None:
    refused = 0
    for number in range(1, 21):
        base = tmp_path / str(number)
        ended, met = run_with_fault(base, f"{syscall}:error={code}:when={number}")
        for name, end in ended.items():
            assert end in (SUCCEEDED, REFUSED)
            assert state(base / name) == (AFTER[name] if end == SUCCEEDED else BEFORE)
        assert list(ended.values()).count(REFUSED) == met  # no success after a failed step
        refused += met
        if met == 0:
            break
    assert refused >= 4, "hardly a fault was met, so hardly anything was tested"


@needs_strace
@pytest.mark.parametrize(
    "inject",
    [["renameat2:error=ENOSYS"], ["renameat2:error=EINVAL", "linkat:error=EPERM"]],
    ids=["no renameat2", "no hard links either"],
)
def test_a20_poorer_file_systems_work_too(tmp_path: Path, inject: list[str]) -> None:
    ended, met = run_with_fault(tmp_path / "base", *inject)
    assert set(ended.values()) == {SUCCEEDED}
    assert met >= len(CALLS)
    for name in CALLS:
        assert state(tmp_path / "base" / name) == AFTER[name]


@needs_strace
@pytest.mark.parametrize("syscall", ["write", "renameat2"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_the_next_start_sweeps(
    tmp_path: Path, syscall: str
) -> None:
    killed = 0
    for number in range(1, 4):
        base = tmp_path / str(number)
        ended, _ = run_with_fault(base, f"{syscall}:signal=SIGKILL:when={number}")
        for name, end in ended.items():
            killed += end == KILLED
            with Workspace.open([base / name], sweep_at_start=False) as workspace:
                sweep(workspace, min_age_s=0)
            # A deletion that was approved may be over, or not have begun.
            assert state(base / name) in (BEFORE, AFTER[name])
    assert killed >= 4


@needs_strace
@pytest.mark.parametrize("code", ["ENOSYS", "EPERM"])
def test_without_openat2_the_walk_takes_its_place(tmp_path: Path, run_tools: Any, code: str) -> None:
    """Old kernels say ENOSYS, seccomp filters EPERM; syscall 437 is not one that strace must know."""
    root = fresh(tmp_path)
    (root / "out").symlink_to("/etc/passwd")
    done = run_tools(
        root,
        """
        print(workspace.opener.__name__)
        print(await call("read_file", path="x"))
        print(await call("read_file", path="out"))
        print(await call("write_file", path="folder/y", content="new"))
        """,
        prefix=["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject=openat2:error={code}"],
    )
    assert done.stdout.startswith(
        "open_by_walking\nold\nError (error): 'out' leads out of the allowed folders"
    )
    assert (root / "folder" / "y").read_text() == "new"


def fresh(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "x").write_text("old")
    return root


def test_a_sweep_leaves_live_young_and_foreign_files_alone(tmp_path: Path) -> None:
    from mcp_tools.builtin.workspace.temporary import create_temporary, temporary_name

    folder_fd = os.open(tmp_path, os.O_RDONLY)
    _live, live_fd = create_temporary(folder_fd, 0o600)
    dead, dead_fd = create_temporary(folder_fd, 0o600)
    os.close(dead_fd)
    link = temporary_name()
    (tmp_path / link).symlink_to("user's file")
    for name in ("user's file", ".mcp-tools-notes.tmp", ".mcp-tools-0123456789abcdef.txt"):
        (tmp_path / name).touch()
    before = set(os.listdir(tmp_path))
    with Workspace.open([tmp_path], sweep_at_start=False) as workspace:
        assert sweep(workspace) == 0
        assert set(os.listdir(tmp_path)) == before
        assert sweep(workspace, min_age_s=0) == 1
    assert set(os.listdir(tmp_path)) == before - {dead}
    os.close(live_fd)
    os.close(folder_fd)


def test_a24_a_file_size_limit_is_named_and_the_server_lives(tmp_path: Path, run_tools: Any) -> None:
    root = fresh(tmp_path)
    printed = run_tools(
        root,
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        print(await call("write_file", path="x", content="y" * 2000))
        print(await call("write_file", path="x2", content="small"))
        """,
    ).stdout
    assert "file size limit" in printed
    assert "EFBIG" in printed
    assert state(root) == {"x": "old", "x2": "small", "folder": ""}


def test_a24_no_right_to_write_is_named(tmp_path: Path, run_tools: Any) -> None:
    root = fresh(tmp_path)
    (root / "x").chmod(0o444)
    (root / "folder" / "y").write_text("old")
    (root / "folder").chmod(0o555)
    try:
        printed = run_tools(
            root,
            """
            for arguments in ({"path": "x"}, {"path": "folder/new"}, {"path": "folder/y"}):
                print(await call("write_file", content="new", **arguments))
            print(await call("delete_file", path="folder/y"))
            print(await call("move_file", source="folder/y", destination="z"))
            print(await call("create_directory", path="folder/sub"))
            """,
        ).stdout
    finally:
        (root / "folder").chmod(0o755)
    assert "'x': is read-only" in printed
    assert printed.count("has no permission for this [EACCES]; nothing was") == 5
    assert state(root) == {"x": "old", "folder": "", "folder/y": "old"}


def test_a24_too_many_open_files_is_named_and_passes(tmp_path: Path, run_tools: Any) -> None:
    root = fresh(tmp_path)
    printed = run_tools(
        root,
        """
        import resource
        await call("read_file", path="x")
        await call("write_file", path="x", content="old")
        base = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            held.append(None)
        for name, arguments in (
            ("read_file", {"path": "x"}),
            ("read_text_file", {"path": "x"}),
            ("write_file", {"path": "x", "content": "new"}),
            ("list_directory", {}),
            ("grep_files", {"pattern": "old"}),
            ("get_file_info", {"path": "x"}),
            ("delete_file", {"path": "x"}),
        ):
            print(name, await call(name, **arguments))
        for fd in held[:-1]:
            os.close(fd)
        print("then", await call("read_file", path="x"))
        print("left", len(os.listdir("/proc/self/fd")) - base)
        """,
    ).stdout
    assert printed.count("too many files open; try again") >= 6
    assert "then old\nleft 0\n" in printed


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which can be made read-only or full."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("needs the right to mount: no file system can be filled or made read-only")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a24_a_read_only_file_system_is_named(mounted: Path, run_tools: Any) -> None:
    (mounted / "x").write_text("old")
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    printed = run_tools(
        mounted,
        """
        print(await call("write_file", path="x", content="new"))
        print(await call("create_directory", path="new"))
        print(await call("delete_file", path="x"))
        """,
    ).stdout
    assert printed.count("EROFS") + printed.count("is read-only for") == 3
    assert (mounted / "x").read_text() == "old"


def test_a24_a_full_disk_is_named_and_the_old_content_stays(mounted: Path, run_tools: Any) -> None:
    (mounted / "x").write_text("old")
    printed = run_tools(mounted, 'print(await call("write_file", path="x", content="y" * 1_000_000))').stdout
    assert "no space is left" in printed
    assert state(mounted) == {"x": "old"}


def test_a29_a_move_to_another_file_system_is_refused(tmp_path: Path, mounted: Path, run_tools: Any) -> None:
    (tmp_path / "x").write_text("old")
    printed = run_tools(
        tmp_path, 'print(await call("move_file", source="x", destination="mounted/x"))'
    ).stdout
    assert "on another file system" in printed
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(mounted) == []


def test_a24_an_immutable_file_is_named(tmp_path: Path, run_tools: Any) -> None:
    root = fresh(tmp_path)
    done = subprocess.run(["chattr", "+i", root / "x"], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs root and a file system with immutable files")
    try:
        printed = run_tools(
            root,
            """
            print(await call("write_file", path="x", content="new"))
            print(await call("delete_file", path="x"))
            print(await call("move_file", source="x", destination="y"))
            """,
        ).stdout
    finally:
        subprocess.run(["chattr", "-i", root / "x"], check=True)
    assert "is read-only for the server's user" in printed
    assert printed.count("EPERM") == 2
    assert state(root) == {"x": "old", "folder": ""}


@needs_strace
def test_a20_each_new_folder_is_on_disk_before_what_is_below_it(tmp_path: Path) -> None:
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    calls = {"root": ("create_directory", {"path": "x/y/z"})}
    subprocess.run(
        [
            *("strace", "-f", "--seccomp-bpf", "-qq", "-y", "-o", log, "-e", "trace=mkdirat,fsync"),
            *(sys.executable, "-c", DRIVER, str(tmp_path), json.dumps(calls)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    steps = re.findall(rf"(mkdirat|fsync)\(\d+<{re.escape(str(root))}(/?[^>]*)>", log.read_text())
    folders = ["", "/x", "/x/y"]
    assert steps == [(step, folder) for folder in folders for step in ("mkdirat", "fsync")]


@needs_strace
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a20_a_folder_that_the_disk_does_not_confirm_is_no_success(tmp_path: Path, number: int) -> None:
    (tmp_path / "root").mkdir()
    calls = {"root": ("create_directory", {"path": "x/y/z"})}
    subprocess.run(
        [
            *("strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=fsync"),
            *("-e", f"inject=fsync:error=EIO:when={number}"),
            *(sys.executable, "-c", DRIVER, str(tmp_path), json.dumps(calls)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert (tmp_path / f"root.{REFUSED}").is_dir()

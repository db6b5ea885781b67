"""One contract for both ways of opening: inside the folder or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_tools.builtin.workspace.beneath import (
    NotARegularFile,
    Opener,
    choose_opener,
    location_of,
    open_by_walking,
    open_to_read,
    open_with_kernel,
)


@pytest.fixture(params=[open_with_kernel, open_by_walking], ids=["kernel", "walk"])
def opener(request: pytest.FixtureRequest) -> Opener:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "file.txt").write_text("inside")
    (tmp_path / "secret.txt").write_text("outside")
    return inside


@pytest.fixture
def folder_fd(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def read(opener: Opener, folder_fd: int, path: str) -> str:
    fd = opener(folder_fd, path.split("/"), os.O_RDONLY)
    try:
        assert not os.get_inheritable(fd)
        return os.read(fd, 100).decode()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("link", "a/file.txt"),
        ("link", "./a/../a/file.txt"),
        ("a/link", "../a/file.txt"),
        ("a/b/link", "../../a/b/../file.txt"),
        ("link", "a//file.txt"),
    ],
)
def test_relative_links_that_stay_inside_are_followed(
    opener: Opener, folder: Path, folder_fd: int, link: str, target: str
) -> None:
    (folder / link).symlink_to(target)
    assert read(opener, folder_fd, link) == "inside"


def test_links_to_folders_and_to_links_are_followed(opener: Opener, folder: Path, folder_fd: int) -> None:
    (folder / "one").symlink_to("a")
    (folder / "two").symlink_to("one/b")
    (folder / "three").symlink_to("two/..")
    assert read(opener, folder_fd, "three/file.txt") == "inside"


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("link", "../secret.txt"),
        ("a/b/link", "../../../secret.txt"),
        ("link", "a/../../secret.txt"),
        ("link", "../inside/a/file.txt"),  # comes back in, but it left
        ("link", "/"),
        ("link", "/proc/self/cwd"),
    ],
)
def test_links_that_leave_are_refused(
    opener: Opener, folder: Path, folder_fd: int, link: str, target: str
) -> None:
    (folder / link).symlink_to(target)
    with pytest.raises(OSError) as caught:
        read(opener, folder_fd, link)
    assert caught.value.errno == errno.EXDEV


def test_an_absolute_link_is_refused_even_to_the_inside(opener: Opener, folder: Path, folder_fd: int) -> None:
    (folder / "link").symlink_to(folder / "a" / "file.txt")
    with pytest.raises(OSError) as caught:
        read(opener, folder_fd, "link")
    assert caught.value.errno == errno.EXDEV


@pytest.mark.parametrize("path", ["..", "../secret.txt", "a/../../secret.txt", "a/b/../../../secret.txt"])
def test_dots_that_leave_are_refused(opener: Opener, folder_fd: int, path: str) -> None:
    with pytest.raises(OSError) as caught:
        read(opener, folder_fd, path)
    assert caught.value.errno == errno.EXDEV


def test_link_loops_end(opener: Opener, folder: Path, folder_fd: int) -> None:
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    with pytest.raises(OSError) as caught:
        read(opener, folder_fd, "one")
    assert caught.value.errno == errno.ELOOP


def test_chains_over_forty_links_are_refused(opener: Opener, folder: Path, folder_fd: int) -> None:
    (folder / "link0").symlink_to("a/file.txt")
    for number in range(1, 42):
        (folder / f"link{number}").symlink_to(f"link{number - 1}")
    assert read(opener, folder_fd, "link39") == "inside"
    with pytest.raises(OSError) as caught:
        read(opener, folder_fd, "link41")
    assert caught.value.errno == errno.ELOOP


def test_without_links_none_is_followed(opener: Opener, folder: Path, folder_fd: int) -> None:
    (folder / "link").symlink_to("a")
    for path in (["link"], ["link", "file.txt"]):
        with pytest.raises(OSError) as caught:
            opener(folder_fd, path, os.O_RDONLY, links=False)
        assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("path", [(), ("link",), ("a", "up")])
def test_the_folder_itself_can_be_opened_for_listing(
    opener: Opener, folder: Path, folder_fd: int, path: tuple[str, ...]
) -> None:
    (folder / "link").symlink_to(".")
    (folder / "a" / "up").symlink_to("..")
    fd = opener(folder_fd, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert sorted(os.listdir(fd)) == ["a", "link"]
        assert location_of(fd) == str(folder)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("missing", errno.ENOENT), ("a/missing/x", errno.ENOENT), ("a/file.txt/x", errno.ENOTDIR)],
)
def test_what_is_missing_is_said_as_the_system_says_it(
    opener: Opener, folder_fd: int, path: str, expected: int
) -> None:
    with pytest.raises(OSError) as caught:
        read(opener, folder_fd, path)
    assert caught.value.errno == expected


def test_no_descriptor_is_left_behind(opener: Opener, folder: Path, folder_fd: int) -> None:
    (folder / "out").symlink_to("../secret.txt")
    (folder / "loop").symlink_to("loop")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("a/file.txt", "out", "loop", "missing", "a/b/../../..", "a/file.txt/x"):
        try:
            read(opener, folder_fd, path)
        except OSError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_path_descriptor_names_without_opening(opener: Opener, folder: Path, folder_fd: int) -> None:
    os.mkfifo(folder / "pipe")
    fd = opener(folder_fd, ["pipe"], os.O_PATH)
    try:
        assert stat.S_ISFIFO(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "device"])
def test_only_regular_files_are_read(
    opener: Opener, folder: Path, folder_fd: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    name = kind
    match kind:
        case "pipe":
            os.mkfifo(folder / name)
        case "socket":
            listener = socket.socket(socket.AF_UNIX)
            monkeypatch.chdir(folder)  # a socket's path has at most 108 bytes
            listener.bind(name)
            listener.close()
        case "directory":
            (folder / name).mkdir()
        case "device":
            if os.geteuid() != 0:
                pytest.skip("needs root: device nodes cannot be made")
            os.mknod(folder / name, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    with pytest.raises(NotARegularFile):
        open_to_read(opener, folder_fd, [name])


def test_the_kernel_is_chosen_where_it_can(opener: Opener) -> None:
    assert choose_opener() is open_with_kernel

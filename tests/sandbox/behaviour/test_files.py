"""Files that go into a call, artifacts that come back from it, figures, and folders of the host."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import Artifact, EndedBy, Mount, PythonSandbox, SandboxConfig, SandboxConfigError
from tests.sandbox.behaviour.conftest import Run
from tests.sandbox.levels import L2, L3, L4, L4_PLUS, L4_USER, PLACES, USERS, Boxes, Place, at
from tests.sandbox.places import STRANGER

# --- Files in ---------------------------------------------------------------------------------


@at(*PLACES, *USERS)
def test_files_are_in_the_working_folder(place: Place, boxes: Boxes) -> None:
    files = {
        "text": "größe\n",
        "binary": bytes(range(256)),
        "a/b/c.csv": "1,2",
        "with space, ünïcode and\nnewline": b"x",
        "empty": b"",
    }
    code = """
import os
found = {}
for folder, _, names in os.walk("."):
    for name in names:
        path = os.path.normpath(f"{folder}/{name}")
        found[path] = open(path, "rb").read()
        open(path, "ab").write(b"more")
found
"""
    result = boxes.at(place).execute_sync(code, files=files)
    expected = {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}
    assert eval(result.value or "None") == expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "..",
        "../a",
        "a/../../b",
        "a/..",
        "a\0b",
        "x" * 256,
        "a/" + "b" * 256,
        ".",
        "a//b",
        "a/",
    ],
)
def test_names_that_cannot_be_are_refused_and_nothing_runs(name: str, box: PythonSandbox) -> None:
    with pytest.raises(SandboxConfigError) as caught:
        box.execute_sync("print(1)", files={name: b""})
    assert caught.value.field == "files"


@pytest.mark.parametrize("files", [{"\ud800": "x"}, {"a": "\ud800"}, {"a": 5}, {"a": None}], ids=repr)
def test_contents_that_are_none_are_refused(files: dict[str, Any], box: PythonSandbox) -> None:
    with pytest.raises(SandboxConfigError) as caught:
        box.execute_sync("print(1)", files=files)
    assert caught.value.field == "files"


@pytest.mark.parametrize(
    ("code", "files", "field"),
    [
        ("#" * (1024**2 + 1), {}, "code"),
        ("#" + "é" * (512 * 1024), {}, "code"),
        ("1", {"a": bytes(16 * 1024**2 + 1)}, "files"),
        ("1", {"a": bytes(9 * 1024**2), "b": "é" * (4 * 1024**2)}, "files"),
    ],
    ids=["code", "code as UTF-8", "one file", "two files"],
)
def test_what_is_too_large_is_refused(
    code: str, files: dict[str, bytes | str], field: str, box: PythonSandbox
) -> None:
    with pytest.raises(SandboxConfigError) as caught:
        box.execute_sync(code, files=files)
    assert caught.value.field == field


def test_what_is_just_small_enough_goes_in(run: Run) -> None:
    code = "import os\nos.path.getsize('a') + os.path.getsize('b')\n"
    files = {"a": bytes(8 * 1024**2), "b": bytes(8 * 1024**2)}
    assert run(code + "#" * (1024**2 - len(code)), files=files).value == str(16 * 1024**2)


def test_many_files_and_long_code_with_odd_characters_go_in(run: Run) -> None:
    files = {f"folder/{n:04}-{'ü' * 50}": str(n) for n in range(1000)}
    assert run("import os\nlen(os.listdir('folder')) #" + "\x01" * 500_000, files=files).value == "1000"


def test_files_that_do_not_fit_are_said_to_and_the_code_does_not_run(boxes: Boxes) -> None:
    result = boxes.here(max_disk_mb=1).execute_sync("print('ran')", files={"a": bytes(2 * 1024**2)})
    assert (result.ended_by, result.success) == (EndedBy.DISK, False)
    assert "the input files could not be written" in result.stderr
    assert "ran" not in result.stdout


def test_files_in_the_way_of_each_other_are_an_error_of_the_call(run: Run) -> None:
    result = run("print('ran')", files={"a": b"", "a/b": b""})
    assert (result.ended_by, result.stdout) == (EndedBy.EXCEPTION, "")
    assert "the input files could not be written" in result.stderr


# --- Artifacts --------------------------------------------------------------------------------


@at(*PLACES, *USERS)
def test_what_is_left_in_the_folder_for_it_comes_back(place: Place, boxes: Boxes) -> None:
    code = """
import os
out = os.environ["SANDBOX_OUT"]
os.makedirs(f"{out}/a/b")
for name in ("z.txt", "a/b/data.json", "a/plot.svg", "table.csv", "raw", "p.pdf"):
    with open(f"{out}/{name}", "wb") as file: file.write(name.encode() * 2)
open("elsewhere.txt", "w").write("no")
"""
    result = boxes.at(place).execute_sync(code)
    kinds = {each.name: each.media_type for each in result.artifacts}
    assert kinds == {
        "p.pdf": "application/pdf",
        "raw": "application/octet-stream",
        "table.csv": "text/csv",
        "z.txt": "text/plain",
        "a/plot.svg": "image/svg+xml",
        "a/b/data.json": "application/json",
    }
    assert all(each.data == each.name.encode() * 2 for each in result.artifacts)
    assert result.artifacts_left_out == ()


@at(L4_PLUS, L4)
def test_where_calls_have_mounts_of_their_own_the_folder_has_the_same_name(
    place: Place, boxes: Boxes
) -> None:
    result = boxes.at(place).execute_sync("open('/tmp/out/a.txt', 'w').write('x')")
    assert result.artifacts == (Artifact(name="a.txt", media_type="text/plain", data=b"x"),)


def test_what_is_no_ordinary_file_is_named_with_the_reason(run: Run) -> None:
    code = """
import os, socket
os.chdir("/tmp/out")
os.symlink("/etc/passwd", "link to file")
os.symlink("/etc", "link to folder")
os.symlink("gone", "dangling")
os.mkfifo("pipe")
os.mkdir("closed")
open("closed/file", "w").write("x")
os.chmod("closed", 0)
open("unreadable", "w").write("x")
os.chmod("unreadable", 0)
open("good", "w").write("x")
"""
    result = run(code, timeout_seconds=5)
    assert [each.name for each in result.artifacts] == ["good"]
    assert sorted(result.artifacts_left_out) == [
        "dangling: a link",
        "link to file: a link",
        "link to folder: a link",
        "pipe: not an ordinary file",
        "unreadable: Permission denied",
    ]


def test_names_are_kept_as_far_as_they_are_text(run: Run) -> None:
    code = r"""
import os
os.chdir(b"/tmp/out")
for name in (b"new\nline", b"\xff.png", "ünï".encode(), b"back\\slash", b"-rf", b" ", b"\x1b[31m"):
    open(name, "w").close()
os.makedirs("/".join(["d" * 200] * 4))
open("/".join(["d" * 200] * 4) + "/end.txt", "w").close()
"""
    result = run(code)
    names = {each.name for each in result.artifacts}
    expected = {"new\nline", "\N{REPLACEMENT CHARACTER}.png", "ünï", "-rf", " ", "\x1b[31m"}
    assert names - expected == {("/".join(["d" * 200] * 4) + "/end.txt")[:512]}
    assert expected <= names
    assert result.artifacts_left_out == ("back\\slash: not a name that can be kept",)


def test_too_many_are_named(boxes: Boxes) -> None:
    box = boxes.here(max_artifacts=3)
    result = box.execute_sync("for n in range(40): open(f'/tmp/out/{n:02}', 'w').write('x')")
    assert [each.name for each in result.artifacts] == ["00", "01", "02"]
    assert result.artifacts_left_out == tuple(f"{n:02}: more than 3 files" for n in range(3, 19))
    none = boxes.here(max_artifacts=0).execute_sync("open('/tmp/out/a', 'w').close()")
    assert (none.artifacts, none.artifacts_left_out) == ((), ("a: more than 0 files",))


def test_what_is_too_large_is_named_and_smaller_ones_still_come(boxes: Boxes) -> None:
    box = boxes.here(max_artifact_bytes=1000)
    sizes = {"a": 400, "b": 601, "c": 600, "d": 1}
    code = f"for name, size in {sizes}.items(): open(f'/tmp/out/{{name}}', 'w').write('x' * size)"
    result = box.execute_sync(code)
    assert [(each.name, len(each.data)) for each in result.artifacts] == [("a", 400), ("c", 600)]
    assert result.artifacts_left_out == (
        "b: 601 bytes are more than the 600 left",
        "d: 1 bytes are more than the 0 left",
    )


def test_many_with_long_names_come_back_all(boxes: Boxes) -> None:
    """The report on them is longer than that of other calls."""
    box = boxes.here(max_artifacts=1000, max_artifact_bytes=10_000)
    code = """
import os
for n in range(4):
    folder = f"/tmp/out/{n}" + ("/" + "\\N{GRINNING FACE}" * 60) * 6
    os.makedirs(folder)
    for m in range(200): open(f"{folder}/{m:03}", "w").close()
"""
    result = box.execute_sync(code)
    assert len(result.artifacts) == 800
    assert result.success


@pytest.mark.parametrize(
    ("ending", "ended_by"),
    [("1 / 0", EndedBy.EXCEPTION), ("exit(3)", EndedBy.EXIT), ("__import__('os')._exit(0)", EndedBy.EXIT)],
)
def test_files_come_back_unless_the_process_leaves_at_once(ending: str, ended_by: EndedBy, run: Run) -> None:
    result = run(f"open('/tmp/out/a', 'w').write('x')\n{ending}")
    assert result.ended_by is ended_by
    assert [each.name for each in result.artifacts] == ([] if "_exit" in ending else ["a"])


def test_code_that_removes_or_replaces_the_folder_loses_only_its_artifacts(run: Run) -> None:
    assert run("import os\nos.rmdir('/tmp/out')\n5").value == "5"
    result = run("import os\nos.rmdir('/tmp/out')\nopen('/tmp/out', 'w').write('file')\n5")
    assert (result.value, result.artifacts) == ("5", ())


def test_folders_too_deep_to_name_are_no_obstacle(run: Run) -> None:
    code = """
import os
os.chdir("/tmp/out")
open("a", "w").close()
for _ in range(2500):
    os.mkdir("d")
    os.chdir("d")
"""
    result = run(code)
    assert (result.success, result.stderr) == (True, "")
    assert [each.name for each in result.artifacts] == ["a"]


def test_in_a_session_a_file_comes_back_when_it_is_new_or_changed(boxes: Boxes) -> None:
    box = boxes.here()

    def left(code: str) -> list[tuple[str, bytes]]:
        return [(each.name, each.data) for each in box.execute_sync(code, session="artifacts").artifacts]

    assert left("open('/tmp/out/a', 'w').write('1')") == [("a", b"1")]
    assert left("open('/tmp/out/b', 'w').write('2')") == [("b", b"2")]
    assert left("print(open('/tmp/out/a').read())") == []
    assert left("open('/tmp/out/a', 'w').write('longer')") == [("a", b"longer")]
    assert left("import os\nos.rename('/tmp/out/a', '/tmp/out/c')") == [("c", b"longer")]


# --- Figures ----------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def science(boxes: Boxes) -> PythonSandbox:
    """Matplotlib takes half a second to import: here once."""
    numpy = pytest.importorskip("numpy")
    packages = str(Path(numpy.__file__).parents[1])
    return boxes.here(
        packages=packages, preload=("matplotlib.pyplot",), max_memory_mb=512, timeout_seconds=30.0
    )


def names(artifacts: tuple[Artifact, ...]) -> list[str]:
    assert all(each.data.startswith(PNG) for each in artifacts if each.name.endswith(".png"))
    return [each.name for each in artifacts]


PLOT = "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1))\nplt.plot([1, 2])\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (PLOT, ["figure-1.png"]),
        (PLOT + "plt.show()", ["figure-1.png"]),
        (PLOT + PLOT, ["figure-1.png", "figure-2.png"]),
        (PLOT + "plt.close()", []),
        (PLOT + "plt.savefig('/tmp/out/mine.png')", ["mine.png"]),
        (PLOT + "plt.savefig('../out/mine')", ["mine.png"]),
        (PLOT + "plt.savefig('/tmp/out/mine.JPG')", ["mine.JPG"]),
        (PLOT + "plt.savefig('/tmp/out/mine.pdf')", ["figure-1.png", "mine.pdf"]),
        (PLOT + "plt.savefig('in work.png')", ["figure-1.png"]),
        (PLOT + "plt.savefig('/tmp/out/mine.png')\n" + PLOT, ["figure-2.png", "mine.png"]),
        (PLOT + "import io\nplt.savefig(io.BytesIO())", ["figure-1.png"]),
        (
            PLOT + "open('/tmp/out/figure-1.png', 'wb').write(b'\\x89PNG\\r\\n\\x1a\\nx')",
            ["figure-1-2.png", "figure-1.png"],
        ),
        (PLOT + "1 / 0", ["figure-1.png"]),
        (PLOT + "import sys\nsys.exit(2)", ["figure-1.png"]),
        ("import matplotlib\nmatplotlib.use('Agg')\n" + PLOT, ["figure-1.png"]),
        ("from matplotlib.figure import Figure\nFigure()", []),
    ],
)
def test_open_figures_come_back_once(code: str, expected: list[str], science: PythonSandbox) -> None:
    result = science.execute_sync(code)
    assert names(result.artifacts) == expected
    assert "could not" not in result.stderr
    assert result.artifacts_left_out == ()


def test_a_figure_that_cannot_be_drawn_is_said_and_the_rest_comes(science: PythonSandbox) -> None:
    code = PLOT + "plt.title('$\\\\broken{$')\nopen('/tmp/out/a.txt', 'w').close()\n7"
    result = science.execute_sync(code)
    assert (result.value, names(result.artifacts)) == ("7", ["a.txt"])
    assert "a figure could not be drawn: ValueError" in result.stderr


def test_figures_are_those_of_their_call(science: PythonSandbox) -> None:
    session = {"session": "figures"}
    assert names(science.execute_sync(PLOT, **session).artifacts) == ["figure-1.png"]
    assert names(science.execute_sync("1", **session).artifacts) == []
    assert names(science.execute_sync(PLOT, **session).artifacts) == ["figure-1.png"]


def test_figures_of_a_library_that_is_imported_by_the_code_come_back_too(boxes: Boxes) -> None:
    packages = str(Path(pytest.importorskip("numpy").__file__).parents[1])
    box = boxes.here(packages=packages, max_memory_mb=512, timeout_seconds=30.0)
    code = PLOT + "plt.savefig('/tmp/out/mine.png')\n" + PLOT
    assert names(box.execute_sync(code).artifacts) == ["figure-2.png", "mine.png"]


# --- Folders of the host ----------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's is not, and not where the sandbox has its own."""
    with tempfile.TemporaryDirectory(prefix="shared-", dir="/var/tmp") as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


def owned(folder: Path, uid: int, mode: int) -> Path:
    folder.mkdir()
    (folder / "given.txt").write_text("given")
    if os.geteuid() == 0:
        for path in (folder, folder / "given.txt"):
            os.chown(path, uid, uid)
    folder.chmod(mode)
    return folder


WORK = """
import os
print(os.getcwd(), open("given.txt").read())
open("made.txt", "w").write("made")
os.makedirs("a/b")
open("a/b/nested.txt", "w").write("nested")
os.rename("given.txt", "renamed.txt")
open("renamed.txt", "a").write(" and changed")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("uid", [0, STRANGER], ids=["root's folder", "another user's"])
@pytest.mark.parametrize("mode", [0o755, 0o700], ids=oct)
@at(L4_PLUS, L4)
def test_a_root_server_works_in_a_folder_as_its_owner(
    place: Place, mode: int, uid: int, shared: Path
) -> None:
    folder = owned(shared / "work", uid, mode)
    config = SandboxConfig(working_dir=str(folder), maximum_level=place.level, pool_size=1)
    with PythonSandbox(config) as box:
        result = box.execute_sync(WORK, files={"in/put": "x"})
        assert (result.stdout, result.stderr) == ("/work given\n", "")
        again = box.execute_sync("sorted(os.listdir()) if (os := __import__('os')) else 0")
    assert again.value == "['a', 'in', 'made.txt', 'renamed.txt']"
    assert (folder / "renamed.txt").read_text() == "given and changed"
    for name in ("made.txt", "a", "a/b/nested.txt", "in/put", "renamed.txt"):
        about = (folder / name).stat()
        assert (about.st_uid, about.st_gid) == (uid, uid), name


@at(*USERS)
def test_an_ordinary_user_works_in_a_folder_of_its_own(place: Place, boxes: Boxes, shared: Path) -> None:
    uid = STRANGER if os.geteuid() == 0 else os.getuid()
    folder = owned(shared / "work", uid, 0o700)
    box = boxes.at(place, working_dir=str(folder))
    result = box.execute_sync(WORK)
    assert (result.stderr, result.success) == ("", True)
    assert (folder / "made.txt").read_text() == "made"
    assert (folder / "a/b/nested.txt").stat().st_uid == uid
    box.close()


@at(*PLACES)
def test_artifacts_and_temporary_files_are_not_in_the_working_folder(
    place: Place, boxes: Boxes, shared: Path
) -> None:
    folder = shared / "open"
    folder.mkdir()
    folder.chmod(0o777)
    box = boxes.at(place, working_dir=str(folder))
    code = """
import os, tempfile
open(os.environ["SANDBOX_OUT"] + "/a", "w").close()
tempfile.NamedTemporaryFile(delete=False)
open("left", "w").close()
"""
    result = box.execute_sync(code)
    assert [each.name for each in result.artifacts] == ["a"]
    assert os.listdir(folder) == ["left"]


@at(*PLACES, L4_USER)
def test_mounts_are_read_only_or_writable(place: Place, boxes: Boxes, shared: Path) -> None:
    for name in ("read", "write"):
        folder = shared / name
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "file").write_text(f"{name} this")
        for path in (folder, folder / "inner"):
            path.chmod(0o777)
    targets = ("/data/in", "/data/out") if place.level > L2.level else ("", "")
    mounts = tuple(
        Mount(source=str(shared / name), target=target, writable=name == "write")
        for name, target in zip(("read", "write"), targets, strict=True)
    )
    box = boxes.at(place, mounts=mounts)
    code = """
import errno, json, os
said = {}
for name, folder in FOLDERS.items():
    said[name] = [open(f"{folder}/inner/file").read()]
    for attempt in (
        lambda: open(f"{folder}/new", "w").write("new"),
        lambda: os.mkdir(f"{folder}/inner/made"),
        lambda: os.symlink("a", f"{folder}/link"),
        lambda: os.unlink(f"{folder}/inner/file"),
    ):
        try:
            attempt()
            said[name].append("done")
        except OSError as error:
            said[name].append("refused")
print(json.dumps(said))
"""
    folders = dict(zip(("read", "write"), (each.target or each.source for each in mounts), strict=True))
    result = box.execute_sync(f"FOLDERS = {folders}\n{code}")
    assert eval(result.stdout or "''") == {
        "read": ["read this", *["refused"] * 4],
        "write": ["write this", *["done"] * 4],
    }, result.stderr
    assert (shared / "read/inner/file").exists()
    assert (shared / "write/new").read_text() == "new"


@at(L4, L3, L2)
def test_a_folder_that_was_swapped_for_a_link_is_not_followed(
    place: Place, boxes: Boxes, shared: Path
) -> None:
    """D-21: between the making of a sandbox and its first call."""
    secret, folder = shared / "secret", shared / "work"
    for path in (secret, folder):
        path.mkdir()
        path.chmod(0o777)
    (secret / "key").write_text("secret")
    config = {"working_dir": str(folder), "maximum_level": place.level}
    if place is not L4:
        # The others need an interpreter that everybody can read; which is not what this is about.
        config["packages"] = _environment(shared)
    with PythonSandbox(SandboxConfig(**config)) as box:  # type: ignore[arg-type]
        folder.rename(shared / "moved")
        folder.symlink_to(secret)
        try:
            result = box.execute_sync("import os\nos.listdir('.')")
        except Exception as error:
            assert "another folder now" in str(error), error
        else:
            assert result.value == "[]"


def _environment(folder: Path) -> str:
    import subprocess

    subprocess.run(
        ["/usr/bin/python3", "-m", "venv", "--without-pip", folder / "env"], check=True, timeout=60
    )
    return str(folder / "env")


@pytest.mark.parametrize("field", ["working_dir", "mounts", "packages"])
@pytest.mark.parametrize("missing", ["nowhere", "file"])
def test_a_folder_that_is_none_is_refused_before_anything_starts(
    field: str, missing: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    path = str(tmp_path / missing)
    value = (Mount(source=path, target="/data"),) if field == "mounts" else path
    with pytest.raises(SandboxConfigError) as caught:
        PythonSandbox(SandboxConfig(**{field: value}))  # type: ignore[arg-type]
    assert caught.value.field == field
    assert path in str(caught.value)


def test_a_set_uid_file_of_a_mount_gives_no_rights(shared: Path) -> None:
    folder = shared / "work"
    folder.mkdir()
    folder.chmod(0o777)
    with PythonSandbox(SandboxConfig(working_dir=str(folder), pool_size=1)) as box:
        box.execute_sync("import os\nopen('f', 'w').close()\nos.chmod('f', 0o6755)")
        result = box.execute_sync("import os, shutil, sys\nos.statvfs('.').f_flag & os.ST_NOSUID > 0")
    assert result.value == "True"
    assert stat.S_ISREG((folder / "f").stat().st_mode)

"""What goes into a call and comes out of it: files, artifacts, figures, variables, folders, network."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Artifact, EndedBy, Mount, SandboxConfigError
from tests.contract.backends import AnySandbox, Backend, Boxes


def test_files_are_in_the_working_folder(box: AnySandbox) -> None:
    given = {"a.txt": "text ä", "deep/er/b.bin": b"\0\xff", "empty": b""}
    result = box.execute_sync(
        "import os\nopen('a.txt', encoding='utf-8').read(), open('deep/er/b.bin', 'rb').read(), "
        "os.path.getsize('empty'), os.getcwd()",
        files=given,
    )
    assert result.value == repr(("text ä", b"\0\xff", 0, "/tmp/work"))
    assert box.execute_sync("import os\nos.listdir()").value == "[]"


def test_a_large_file_goes_in_whole(boxes: Boxes) -> None:
    box = boxes(max_disk_mb=32, max_memory_mb=128)
    code = "import hashlib\nhashlib.sha256(open('large', 'rb').read()).hexdigest()"
    data = bytes(range(256)) * 40_000
    assert box.execute_sync(code, files={"large": data}).value == repr(hashlib.sha256(data).hexdigest())


def test_files_that_do_not_fit_are_said_to_and_the_code_does_not_run(box: AnySandbox) -> None:
    result = box.execute_sync("print('ran')", files={"large": bytes(9 << 20)})
    assert (result.ended_by, result.stdout, result.success) == (EndedBy.DISK, "", False)


def test_what_is_left_in_the_folder_for_it_comes_back(box: AnySandbox) -> None:
    result = box.execute_sync(
        "import os\nos.mkdir('/tmp/out/sub')\nopen('/tmp/out/sub/a.json', 'w').write('{}')\n"
        "open('/tmp/out/b.bin', 'wb').write(b'\\0\\xff')\nos.symlink('/etc/passwd', '/tmp/out/link')\n"
        "open('not in it', 'w').close()"
    )
    assert set(result.artifacts) == {
        Artifact(name="sub/a.json", media_type="application/json", data=b"{}"),
        Artifact(name="b.bin", media_type="application/octet-stream", data=b"\0\xff"),
    }
    (left_out,) = result.artifacts_left_out
    assert left_out.startswith("link: ")


def test_artifacts_over_their_limits_are_named(box: AnySandbox) -> None:
    result = box.execute_sync(
        "for n in range(6): open(f'/tmp/out/{n}', 'wb').write(b'x')\n"
        "open('/tmp/out/large', 'wb').write(bytes(200_000))"
    )
    assert len(result.artifacts) == 4
    assert len(result.artifacts_left_out) == 3
    assert any(each.startswith("large: ") for each in result.artifacts_left_out)


def test_artifacts_of_code_that_failed_come_back(box: AnySandbox) -> None:
    result = box.execute_sync("open('/tmp/out/a', 'w').write('x')\n1 / 0")
    assert (result.ended_by, [each.name for each in result.artifacts]) == (EndedBy.EXCEPTION, ["a"])


# An image without packages lacks what numpy is linked to. Once loaded, a library is found by its name.
FROM_FOLDERS = """
import ctypes, os, sys
missing = os.listdir("/libraries")
for name in missing * 3:  # those that need others come later
    for path in (name, f"/libraries/{name}"):
        try:
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            break
        except OSError:
            pass
sys.path.insert(0, "/packages")
"""
PLOT = """
import matplotlib.pyplot as plt
plt.figure(figsize=(1, 1))
plt.plot([1, 2])
None
"""


@pytest.fixture(scope="session")
def libraries(shared: Path) -> Path:
    """Those that this process has loaded for matplotlib."""
    pytest.importorskip("matplotlib.pyplot")
    folder = shared / "libraries"
    folder.mkdir(exist_ok=True)
    maps = Path("/proc/self/maps").read_text()
    for path, name in set(re.findall(r"(/\S*/(lib[^/\n]+?\.so\.\d+)[\d.]*)$", maps, re.MULTILINE)):
        if "site-packages" not in path and "/python3" not in path:
            shutil.copy(path, folder / name)
    return folder


def test_open_figures_come_back_as_pictures(boxes: Boxes, libraries: Path) -> None:
    site = Path(pytest.importorskip("matplotlib").__file__).parents[1]
    box = boxes(
        mounts=(
            Mount(source=str(site), target="/packages"),
            Mount(source=str(libraries), target="/libraries"),
        ),
        max_memory_mb=512,
        max_disk_mb=32,
        timeout_seconds=60.0,
        max_artifact_bytes=1 << 20,
        pool_size=1,
    )
    result = box.execute_sync(FROM_FOLDERS + PLOT)
    assert (result.stderr, [each.name for each in result.artifacts]) == ("", ["figure-1.png"])
    assert result.artifacts[0].media_type == "image/png"
    assert result.artifacts[0].data.startswith(b"\x89PNG\r\n")


def test_variables_are_ours_and_the_owner_s_and_no_other(
    box: AnySandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "secret")
    result = box.execute_sync("import json, os\nprint(json.dumps(dict(os.environ)))")
    found = json.loads(result.stdout)
    assert found["MINE"] == "of the owner"
    assert (found["HOME"], found["TMPDIR"], found["LANG"]) == ("/tmp", "/tmp", "C.UTF-8")
    listed = {"HOME", "LANG", "MALLOC_ARENA_MAX", "MINE", "MPLBACKEND", "MPLCONFIGDIR", "PATH", "SANDBOX_OUT"}
    listed |= {"TMPDIR", "TZ"}
    assert {name for name in found if not name.endswith("_NUM_THREADS")} == listed


def test_who_and_where_the_code_is(box: AnySandbox) -> None:
    code = """
import os, sys
flags = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(__name__, os.getcwd(), os.getuid() != 0)
print(int(flags["CapEff"], 16), flags["NoNewPrivs"], flags["Seccomp"])
print(sys.stdin.read() == "", os.getcwd() in sys.path, "" in sys.path, sys.argv)
print(sys.version_info >= (3, 11))
"""
    result = box.execute_sync(code)
    assert result.stdout == "__main__ /tmp/work True\n0 1 2\nTrue False False ['']\nTrue\n", result.stderr


@pytest.mark.parametrize("path", ["/etc/new", "/usr/new", "/new", "{stdlib}/new.py"])
def test_the_system_cannot_be_changed(path: str, box: AnySandbox) -> None:
    result = box.execute_sync(
        f"import os\nopen({path!r}.replace('{{stdlib}}', os.path.dirname(os.__file__)), 'w')"
    )
    assert result.exception in ("PermissionError", "OSError", "FileNotFoundError")


# --- Folders of the host ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_folders(boxes: Boxes, shared: Path, backend: Backend) -> Iterator[tuple[AnySandbox, Path]]:
    own = shared / backend.name.replace(" ", "-")
    for name in ("work", "read", "write"):
        (own / name).mkdir(parents=True)
        (own / name).chmod(0o777)
        (own / name / "given").write_text(name)
    mounts = (
        Mount(source=str(own / "read"), target="/data/read"),
        Mount(source=str(own / "write"), target="/data/write", writable=True),
    )
    yield boxes(working_dir=str(own / "work"), mounts=mounts), own


def test_a_working_folder_is_the_host_s(with_folders: tuple[AnySandbox, Path]) -> None:
    box, folder = with_folders
    result = box.execute_sync(
        "import os\nopen('made', 'w').write('by the code')\nos.getcwd(), open('given').read()",
        files={"brought": "in"},
    )
    assert (result.value, result.stderr) == ("('/work', 'work')", "")
    assert (folder / "work/made").read_text() == "by the code"
    assert (folder / "work/brought").read_text() == "in"
    assert box.execute_sync("open('made').read()").value == "'by the code'"
    assert box.execute_sync("open('/tmp/out/a', 'w').close()").artifacts[0].name == "a"


def test_mounts_are_read_only_or_writable(with_folders: tuple[AnySandbox, Path]) -> None:
    box, folder = with_folders
    result = box.execute_sync(
        "open('/data/write/made', 'w').write('x')\nprint(open('/data/read/given').read(), flush=True)\n"
        "open('/data/read/made', 'w')"
    )
    assert result.stdout == "read\n"
    assert result.exception in ("OSError", "PermissionError")
    assert (folder / "write/made").read_text() == "x"
    assert not (folder / "read/made").exists()


def test_a_link_in_the_folder_leads_to_nothing_outside(
    with_folders: tuple[AnySandbox, Path], shared: Path
) -> None:
    """D-11."""
    box, folder = with_folders
    (shared / "secret").write_text("secret")
    (folder / "work/way out").symlink_to(shared / "secret")
    assert box.execute_sync("open('way out').read()").exception in ("FileNotFoundError", "PermissionError")


@pytest.mark.parametrize("what", ["missing", "file"])
def test_a_folder_that_is_none_is_refused(what: str, backend: Backend, shared: Path) -> None:
    path = shared / what
    if what == "file":
        path.write_text("x")
    with pytest.raises(SandboxConfigError):
        backend.make(working_dir=str(path)).execute_sync("1")


# --- Network ----------------------------------------------------------------------------------

SOCKETS = """
import socket
met = []
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
        met.append("made")
    except PermissionError:
        met.append("refused")
met
"""


def test_without_the_network_no_socket_can_be_made(box: AnySandbox) -> None:
    """D-09. What an event loop needs is no socket of a network."""
    assert box.execute_sync(SOCKETS).value == "['refused', 'refused', 'refused', 'refused']"
    loop = box.execute_sync("import asyncio\nasyncio.run(asyncio.sleep(0, 'ran'))")
    assert (loop.value, loop.stderr) == ("'ran'", "")


def test_with_the_network_sockets_can_be_made_and_connect(boxes: Boxes) -> None:
    code = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname(), timeout=5)
server.accept()[0].sendall(b"hello")
client.recv(5)
"""
    result = boxes(allow_network=True).execute_sync(code)
    assert (result.value, result.stderr) == ("b'hello'", "")

"""The engine that tests start: it leaves nothing, however the tests end, and no other engine notices it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docker_engine import connect
from tests.own_engine import OwnEngine, answers, remove_cgroups

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 20
SERVER = """
import sys
from tests.docker_engine import connect
from tests.own_engine import OwnEngine

with OwnEngine() as engine:
    connection = connect(engine.address)
    with open(sys.argv[1], "rb") as archive:
        connection.ask("import_image_from_data", archive.read(), repository="python", tag="1")
    options = connection.host_config(network_mode="none", init=True)
    made = connection.ask(
        "create_container", "python:1", command=["python3", "-c", "import time; time.sleep(60)"],
        host_config=options,
    )
    connection.ask("start", made["Id"])
    print(engine.folder, engine.cgroup, flush=True)
    sys.stdin.read()
    connection.close()
"""


def start(archive: Path) -> tuple[subprocess.Popen[str], Path, str]:
    """A process with an engine and a running container, its folder and its cgroup."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(archive)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    folder, cgroup = process.stdout.readline().split()
    return process, Path(folder), cgroup


def processes_of(folder: Path, cgroup: str) -> set[int]:
    """Engine, supervisors and processes in containers."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            named = os.fsencode(folder) in (path / "cmdline").read_bytes()
            if named or f"{cgroup}/" in (path / "cgroup").read_text():
                found.add(int(path.name))
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_leaves_no_process_folder_cgroup_or_mount(
    throwaway_engine: OwnEngine, docker_image_archive: Path
) -> None:
    bridges = sorted(os.listdir("/sys/class/net"))
    process, folder, cgroup = start(docker_image_archive)
    assert len(processes_of(folder, cgroup)) >= 4  # dockerd, containerd, a shim, the container's two
    assert sorted(os.listdir("/sys/class/net")) == bridges
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    assert answers(throwaway_engine.socket)  # two at once do not disturb each other
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert processes_of(folder, cgroup) == set()
    assert not folder.exists()
    assert list(Path("/sys/fs/cgroup").glob(f"*{cgroup}")) == []
    assert answers(throwaway_engine.socket)


def test_it_ends_when_the_process_that_started_it_is_killed(
    throwaway_engine: OwnEngine, docker_image_archive: Path
) -> None:
    process, folder, cgroup = start(docker_image_archive)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=WAIT_S)
    wait_until(lambda: not processes_of(folder, cgroup))
    assert answers(throwaway_engine.socket)
    # Nobody was there to tidy up.
    remove_cgroups(cgroup)
    shutil.rmtree(folder)


def test_it_can_be_killed_and_started_again(throwaway_engine: OwnEngine) -> None:
    connection = connect(throwaway_engine.address)
    connection.ask("create_volume", "kept")
    connection.close()
    throwaway_engine.kill()
    assert not answers(throwaway_engine.socket)
    throwaway_engine.start()
    connection = connect(throwaway_engine.address)
    assert [each["Name"] for each in connection.ask("volumes")["Volumes"]] == ["kept"]
    connection.close()


def test_without_the_right_to_it_says_what_is_missing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs a Docker engine that answers, or root on Linux to start one")
    code = "from tests.own_engine import OwnEngine\nwith OwnEngine(): pass"
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
    )
    assert "NoEngine: needs a Docker engine that answers, or CAP_SYS_ADMIN to start one" in done.stderr
    assert os.listdir(tmp_path) == []

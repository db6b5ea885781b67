"""Disks that are full, fail, or forget: no acknowledgement without a durable record."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_tools.observe.audit import AuditLog, verify
from tests.observe.audit.processes import Recorder, lost

SOURCE = Path(__file__).with_name("faulty_disk.c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    built = tmp_path_factory.mktemp("library") / "faulty_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, SOURCE, "-ldl"], check=True, timeout=60)
    return built


class Disk:
    """A disk for one log that fails when told to."""

    def __init__(self, path: Path, library: Path) -> None:
        self.path = path
        self.shadow = path.parent.parent / "shadow"
        self._control = path.parent.parent / "control"
        self.set("-")
        environ = {
            "LD_PRELOAD": str(library),
            "FAULT_FILE": str(path),
            "FAULT_CONTROL": str(self._control),
            "FAULT_SHADOW": str(self.shadow),
        }
        self.recorder = Recorder(path, "p0", environ=environ)

    def set(self, mode: str) -> None:
        draft = self._control.with_suffix(".new")
        draft.write_text(mode)
        draft.rename(self._control)


@pytest.fixture
def disk(place: Path, library: Path) -> Iterator[Disk]:
    disk = Disk(place / "audit.jsonl", library)
    yield disk
    if disk.recorder.process.poll() is None:
        disk.recorder.kill()


@pytest.mark.parametrize(("mode", "why"), [("e", "Input/output"), ("n", "No space"), ("s", "No space")])
def test_while_the_disk_fails_calls_are_refused_and_later_ones_work_again(
    disk: Disk, mode: str, why: str
) -> None:
    """G-09."""
    recorder = disk.recorder
    recorder.until("ended", 5)
    for _ in range(3):
        disk.set(mode)
        # Several from each lane: what was on the disk before may be told a moment later.
        recorder.until("refused", 12)
        recorder.drain()
        acknowledged = len(recorder.began) + len(recorder.ended)
        recorder.until("refused", 8)
        assert len(recorder.began) + len(recorder.ended) == acknowledged
        disk.set("-")
        recorder.until("ended", 10)
    recorder.kill()
    assert all(why in text for text in recorder.refused)
    assert lost(disk.path.parent, [recorder]) == set()
    found = verify(disk.path)
    assert found.damage is None
    assert {repair["reason"] for repair in found.repairs} == {"a write that failed"}


@pytest.mark.parametrize("mode", ["-", "e"])
def test_a_power_cut_takes_nothing_that_was_acknowledged(disk: Disk, place: Path, mode: str) -> None:
    """G-08: what the disk has without what was only cached, also when an fsync failed on the way."""
    recorder = disk.recorder
    recorder.until("ended", 10)
    disk.set(mode)
    recorder.until("ended" if mode == "-" else "refused", 5)
    disk.set("-")
    recorder.until("ended", 20)
    recorder.kill()
    after = place / "after"
    after.mkdir(mode=0o700)
    shutil.copy(disk.shadow, after / "audit.jsonl")
    (after / "audit.jsonl").chmod(0o600)
    assert lost(after, [recorder]) == set()
    with AuditLog(after / "audit.jsonl"):
        pass
    assert verify(after / "audit.jsonl").damage is None


def test_a_file_that_may_not_grow_refuses_calls_until_it_may(place: Path) -> None:
    """The kernel's own short writes, through a limit on the size of files."""
    path = place / "audit.jsonl"
    recorder = Recorder(path, "p0")
    recorder.until("ended", 5)
    for _ in range(3):
        limit = path.stat().st_size + 5_000
        resource.prlimit(recorder.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        recorder.until("refused", 5)
        assert path.stat().st_size <= limit
        resource.prlimit(
            recorder.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
        recorder.drain()
        recorder.until("ended", 20)
    recorder.kill()
    assert lost(place, [recorder]) == set()
    assert verify(path).damage is None


def test_a_full_file_system_refuses_calls_until_there_is_room(place: Path) -> None:
    folder = place / "small"
    folder.mkdir(mode=0o700)
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    script = (
        f"mount -t tmpfs -o size=256k,mode=700 tmpfs {folder} && "
        f'head -c 100000 /dev/zero > {folder}/filler && exec "$@"'
    )
    before = ["unshare", *namespaces, "sh", "-c", script, "sh"]
    if subprocess.run([*before, "true"], capture_output=True, timeout=20, check=False).returncode:
        pytest.skip("needs the right to mount")
    recorder = Recorder(folder / "audit.jsonl", "p0", before=before)
    inside = Path(f"/proc/{recorder.process.pid}/root{folder}")
    recorder.until("refused", 5)
    (inside / "filler").unlink()
    recorder.drain()
    recorder.until("ended", 20)
    with (inside / "audit.jsonl.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nothing is written while it is copied
        shutil.copytree(inside, place / "copy")
    recorder.drain()
    assert verify(place / "copy" / "audit.jsonl").damage is None
    recorder.until("refused", 1)
    recorder.process.send_signal(signal.SIGSTOP)  # what it was told must not grow while we copy
    left = {file.name: file.read_bytes() for file in inside.iterdir()}
    recorder.kill()
    for name, data in left.items():
        (folder / name).write_bytes(data)
    assert lost(folder, [recorder]) == set()
    assert verify(folder / "audit.jsonl").damage is None

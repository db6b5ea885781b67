"""Folders that code left are deleted whatever it did to them, and nothing else is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.linux.removal import remove
from tests.sandbox.levels import L2, L3, Boxes, Place, at
from tests.sandbox.places import Elsewhere

DEPTH = 1100  # deeper than Python recurses


@pytest.fixture(scope="module")
def boxes(elsewhere: Elsewhere) -> Iterator[Boxes]:
    with Boxes(elsewhere) as made:
        yield made


def nested(folder: Path) -> None:
    code = f"import os\nfor _ in range({DEPTH}): os.mkdir('d'); os.chdir('d')"
    subprocess.run([sys.executable, "-ISc", code], cwd=folder, check=True, timeout=30)


def test_deep_and_wide_folders_go(tmp_path: Path) -> None:
    folder = tmp_path / "left"
    for n in range(20):
        (folder / f"{n}" / "a" / "b").mkdir(parents=True)
        (folder / f"{n}" / "a" / "file").write_text("x")
        (folder / f"{n}" / "\udcff").write_text("x")
    nested(folder / "3" / "a")
    assert remove(str(folder))
    assert not folder.exists()


def test_what_links_lead_to_stays(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o755)
    (kept / "file").write_text("x")
    folder = tmp_path / "left"
    (folder / "inner").mkdir(parents=True)
    for place in (folder, folder / "inner"):
        (place / "to folder").symlink_to(kept)
        (place / "to file").symlink_to(kept / "file")
        (place / "to nothing").symlink_to("nowhere")
        os.mkfifo(place / "pipe")
    assert remove(str(folder))
    assert not folder.exists()
    assert (kept / "file").read_text() == "x"
    assert kept.stat().st_mode & 0o777 == 0o755
    os.symlink(kept, folder)
    assert remove(str(folder))
    assert (kept / "file").exists()


def test_folders_that_are_closed_to_their_owner_go(elsewhere: Elsewhere) -> None:
    """Root never meets these modes, so this is done by an ordinary user."""
    code = """
import os, tempfile
from sandbox.linux.removal import remove
folder = tempfile.mkdtemp()
for mode in (0, 0o100, 0o400, 0o500):
    above = f"{folder}/{mode}"
    os.makedirs(f"{above}/inner/innermost")
    open(f"{above}/inner/file", "w").close()
    os.chmod(f"{above}/inner/innermost", mode)
    os.chmod(f"{above}/inner", mode)
    os.chmod(above, mode)
print(remove(folder), os.path.exists(folder))
"""
    assert elsewhere.run(["-c", code], user=True).stdout == "True False\n"


def test_it_gives_up_after_as_many_as_it_was_told(tmp_path: Path) -> None:
    folder = tmp_path / "left"
    folder.mkdir()
    for n in range(300):
        (folder / f"{n}").touch()
    assert not remove(str(folder), most=100)
    assert 0 < len(list(folder.iterdir())) <= 200
    assert remove(str(folder), most=250)
    assert not folder.exists()
    assert remove(str(folder), most=1)


@at(L3, L2)
def test_code_cannot_harm_others_by_what_it_leaves(place: Place, boxes: Boxes) -> None:
    box = boxes.at(place, timeout_seconds=20.0)
    code = f"""
import os
os.chdir("../out")
for n in range(1100): open(f'{{n}}', 'w').close()
for _ in range({DEPTH}): os.mkdir('d'); os.chdir('d')
os.getpid()
"""
    result = box.execute_sync(code)
    assert (result.stderr, result.success) == ("", True)
    for _ in range(2):
        assert box.execute_sync("print(1)").stdout == "1\n"
    boxes.at(place, timeout_seconds=21.0)  # another sandbox starts, too

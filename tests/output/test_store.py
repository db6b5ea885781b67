"""Whole outputs: private, bounded, expiring, gone with their process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_tools.output.folder import PrivateFolder
from mcp_tools.output.store import NoSuchOutput, NotKept, OutputStore

ME, OTHER = "me", "other"


def files_of(parent: Path) -> list[Path]:
    return sorted(path for path in parent.rglob("*") if path.is_file())


def test_every_part_can_be_read_by_characters(tmp_path: Path) -> None:
    text = "".join(chr(33 + n % 90) + "é人👍\n"[n % 4] for n in range(150_000))
    store = OutputStore(parent=str(tmp_path))
    kept = store.keep(ME, [text[:70_000], "", text[70_000:70_001], text[70_001:]])
    assert kept.total_chars == len(text)
    assert store.read(kept.id, ME) == text
    for start, count in (
        (0, 1),
        (65_535, 3),
        (65_536, 65_536),
        (131_071, 200_000),
        (299_999, 5),
        (300_000, 5),
    ):
        assert store.page(kept.id, ME, start, count) == text[start : start + count]
    assert "".join(store.pieces(kept.id, ME, 100_001)) == text[100_001:]
    store.close()


def test_lone_surrogates_are_written_out_and_count_as_that(tmp_path: Path) -> None:
    store = OutputStore(parent=str(tmp_path))
    kept = store.keep(ME, ["a\udc80b" * 40_000])
    written = "a\\udc80b" * 40_000
    assert kept.total_chars == len(written)
    assert store.page(kept.id, ME, 250_000, 100) == written[250_000:250_100]
    store.close()


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    store = OutputStore(parent=str(tmp_path))
    kept = store.keep(ME, ["mine"])
    assert store.read(kept.id, ME) == "mine"
    for output_id, principal in ((kept.id, OTHER), ("0" * 32, ME), ("../" + kept.id, ME), ("", ME)):
        with pytest.raises(NoSuchOutput):
            store.read(output_id, principal)
    (file,) = files_of(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_it_expires(tmp_path: Path) -> None:
    now = [0.0]
    store = OutputStore(parent=str(tmp_path), ttl_s=10, clock=lambda: now[0])
    kept = store.keep(ME, ["text"])
    now[0] = 9.9
    assert store.find(kept.id, ME) == kept
    now[0] = 10.0
    with pytest.raises(NoSuchOutput):
        store.find(kept.id, ME)
    assert files_of(tmp_path) == []
    store.close()


def test_the_oldest_of_a_principal_make_room_and_others_stay(tmp_path: Path) -> None:
    store = OutputStore(parent=str(tmp_path), max_bytes=1_000, max_bytes_per_principal=400)
    theirs = store.keep(OTHER, ["o" * 300])
    mine = [store.keep(ME, ["m" * 150]) for _ in range(10)]
    assert [is_there(store, each.id, ME) for each in mine] == [False] * 8 + [True] * 2
    assert is_there(store, theirs.id, OTHER)
    assert sum(file.stat().st_size for file in files_of(tmp_path)) <= 1_000
    for principal in "abcdefgh":  # each keeps little, and whoever holds most loses first
        store.keep(principal, ["x" * 100])
    assert sum(file.stat().st_size for file in files_of(tmp_path)) <= 1_000
    assert not is_there(store, theirs.id, OTHER)
    assert sum(is_there(store, each.id, ME) for each in mine) <= 1
    store.close()


def is_there(store: OutputStore, output_id: str, principal: str) -> bool:
    try:
        store.find(output_id, principal)
    except NoSuchOutput:
        return False
    return True


def test_of_many_small_ones_the_last_stay(tmp_path: Path) -> None:
    store = OutputStore(parent=str(tmp_path), max_outputs_per_principal=3)
    kept = [store.keep(ME, [str(n)]) for n in range(10)]
    assert [is_there(store, each.id, ME) for each in kept] == [False] * 7 + [True] * 3
    assert len(files_of(tmp_path)) == 3
    store.close()


def test_of_one_that_is_too_large_the_head_is_kept_and_the_rest_counted(tmp_path: Path) -> None:
    store = OutputStore(parent=str(tmp_path), max_bytes_per_principal=200_000)
    kept = store.keep(ME, ["é" * 300_000])
    assert kept.total_chars + kept.dropped_chars == 300_000
    assert 0 < kept.total_chars <= 100_000
    assert store.read(kept.id, ME) == "é" * kept.total_chars
    store.close()


def test_what_cannot_be_written_is_not_kept_and_takes_no_room(tmp_path: Path) -> None:
    store = OutputStore(parent=str(tmp_path), max_bytes=1_000)

    def broken() -> list[str]:
        raise RuntimeError("the tool's own")

    with pytest.raises(RuntimeError):
        store.keep(ME, (part for part in [*"abc", *broken()]))
    assert store.keep(ME, ["x" * 1_000]).dropped_chars == 0
    store.close()
    with pytest.raises(NotKept, match="closed"):
        store.keep(ME, ["text"])
    missing = OutputStore(parent=str(tmp_path / "missing"))
    with pytest.raises(NotKept, match="No such file"):
        missing.keep(ME, ["text"])


def test_a_folder_that_was_cleaned_up_is_made_anew(tmp_path: Path) -> None:
    store = OutputStore(parent=str(tmp_path))
    first = store.keep(ME, ["first"])
    (file,) = files_of(tmp_path)
    file.unlink()
    file.parent.rmdir()
    second = store.keep(ME, ["second"])
    assert store.read(second.id, ME) == "second"
    with pytest.raises(NoSuchOutput):
        store.read(first.id, ME)
    store.close()
    assert list(tmp_path.iterdir()) == []


CHILD = """
import sys
from mcp_tools.output.store import OutputStore
store = OutputStore(parent=sys.argv[1])
store.keep("me", ["secret"])
print("kept", flush=True)
sys.stdin.read(1)
"""


def start_child(parent: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b"kept\n"
    return child


def finish(child: subprocess.Popen[bytes]) -> None:
    child.communicate(b"x", timeout=20)


def test_it_goes_with_its_process(tmp_path: Path) -> None:
    child = start_child(tmp_path)
    assert len(files_of(tmp_path)) == 1
    finish(child)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    killed, living = start_child(tmp_path), start_child(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=20)
    assert len(files_of(tmp_path)) == 2
    folder = PrivateFolder(str(tmp_path))
    assert folder.sweep() == 0  # too young to tell
    assert folder.sweep(min_age_s=0) == 1
    assert len(files_of(tmp_path)) == 1
    finish(living)


def test_a_sweep_touches_nothing_that_is_not_ours(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (tmp_path / "mcp-tools-output-0123456789abcdef").symlink_to(elsewhere)
    named_alike = tmp_path / "mcp-tools-output-mine"
    named_alike.mkdir(0o700)
    open_to_all = tmp_path / "mcp-tools-output-00000000000000ff"
    open_to_all.mkdir()
    os.chmod(open_to_all, 0o777)
    assert PrivateFolder(str(tmp_path)).sweep(min_age_s=0) == 0
    assert (elsewhere / "precious").exists() and named_alike.exists() and open_to_all.exists()

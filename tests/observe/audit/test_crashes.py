"""Whatever was acknowledged is in the log: under kills, with several processes, while files move."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mcp_tools.observe.audit import AuditLog, verify
from tests.observe.audit.processes import Recorder, lost, stored

KILLS = 200 if os.environ.get("MCP_TOOLS_LONG") == "1" else 20
SMALL = 64 * 1024


def test_killed_processes_lose_nothing_that_was_acknowledged(place: Path) -> None:
    """G-07: with rotation every hundred records or so, so that kills hit it too."""
    path, recorders, chance = place / "audit.jsonl", [], random.Random(7)
    for number in range(KILLS):
        recorder = Recorder(path, f"p{number}", max_bytes=SMALL)
        recorders.append(recorder)
        recorder.until("ended", chance.randint(1, 60))
        recorder.kill()
        if number % 10 == 9:
            assert verify(path).damage is None
    assert lost(place, recorders) == set()
    assert len(verify(path).files) > 2
    with AuditLog(path):
        pass
    found = verify(path)
    assert (found.damage, found.torn_bytes) == (None, 0)
    assert all(repair["reason"] == "an unfinished write" for repair in found.repairs)


def test_three_processes_write_one_chain_while_they_are_killed_and_replaced(place: Path) -> None:
    path = place / "audit.jsonl"
    recorders = [Recorder(path, f"p{number}", max_bytes=SMALL) for number in range(3)]
    running = list(recorders)
    for number in range(3, 7):
        for recorder in running:
            recorder.until("ended", 15)
        running.pop(0).kill()
        running.append(Recorder(path, f"p{number}", max_bytes=SMALL))
        recorders.append(running[-1])
    for recorder in running:
        recorder.until("ended", 5)
        recorder.kill()
    assert lost(place, recorders) == set()
    assert verify(path).damage is None


@pytest.mark.parametrize("processes", [1, 2])
def test_files_that_are_renamed_or_removed_under_the_server_lose_nothing(place: Path, processes: int) -> None:
    """G-07: logrotate's rename, and a deletion."""
    path = place / "audit.jsonl"
    recorders = [Recorder(path, f"p{number}") for number in range(processes)]
    for number in range(3):
        for recorder in recorders:
            recorder.until("ended", 10)
        path.rename(f"{path}.{number + 1}")
        for recorder in recorders:
            recorder.drain()
            recorder.until("ended", 20)
        path.unlink()
        for recorder in recorders:
            recorder.drain()
            recorder.until("ended", 20)
    for recorder in recorders:
        recorder.kill()
    assert lost(place, recorders) == set()
    found = verify(path)
    assert found.damage is None
    assert [repair["reason"] for repair in found.repairs] == ["the file was removed"] * 3


def test_a_file_that_is_emptied_under_the_server_is_no_whole_log(place: Path) -> None:
    path = place / "audit.jsonl"
    recorder = Recorder(path, "p0")
    recorder.until("ended", 5)
    os.truncate(path, 0)
    recorder.drain()
    recorder.until("ended", 20)
    recorder.kill()
    assert verify(path).damage is not None


def test_a_folder_that_is_moved_away_is_not_written_to_unseen(place: Path) -> None:
    path = place / "log" / "audit.jsonl"
    recorder = Recorder(path, "p0")
    recorder.until("ended", 5)
    (place / "log").rename(place / "away")
    for _ in range(1000):
        recorder.until("ended", 5)
        if path.exists():
            break
    recorder.until("ended", 20)
    recorder.kill()
    assert path.exists()
    there = {record.get("call_id") for record in stored(place / "log") + stored(place / "away")}
    assert recorder.ended <= there
    # The first file is elsewhere, so this one cannot begin with record 1.
    found = verify(path)
    assert found.damage is not None
    assert found.first_seq is not None
    assert found.first_seq > 1

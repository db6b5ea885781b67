"""Whatever is done to a log at rest is found, and where."""

# ruff: noqa: ASYNC240 - small files, and nobody waits

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_tools.errors import ConfigError
from mcp_tools.observe.audit import AuditLog, DamageKind, verify
from mcp_tools.observe.audit.anchor import read_anchor
from mcp_tools.observe.audit.line import GENESIS, read, seal
from mcp_tools.types import AuditUnavailable
from tests.observe.audit.calls import ended, started

CALLS = 12


async def write(path: Path, calls: int = CALLS, **options: object) -> None:
    with AuditLog(path, **options) as log:  # type: ignore[arg-type]
        for number in range(calls):
            await log.begin(started(f"c{number}", {"path": f"/srv/{number}"}))
            await log.end(ended(f"c{number}"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import anyio

    folder = tmp_path_factory.mktemp("whole")
    anyio.run(lambda: write(folder / "audit.jsonl"))
    return folder


@pytest.fixture(scope="module")
def broken(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("broken")

    def make(data: bytes) -> Path:
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        (folder / "audit.jsonl").write_bytes(data)
        return folder / "audit.jsonl"

    return make


def lines_of(whole: Path) -> list[bytes]:
    return (whole / "audit.jsonl").read_bytes().splitlines(keepends=True)


def test_a_whole_log_is_whole(whole: Path) -> None:
    found = verify(whole / "audit.jsonl")
    assert (found.is_whole, found.records, found.first_seq) == (True, 2 + 2 * CALLS, 1)
    assert found.last.seq == found.records


@given(data=st.data())
def test_every_changed_byte_is_found(whole: Path, broken: Callable[..., Path], data: st.DataObject) -> None:
    lines = lines_of(whole)
    number = data.draw(st.integers(0, len(lines) - 1))
    line = bytearray(lines[number])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= data.draw(st.integers(1, 255))
    found = verify(broken(b"".join([*lines[:number], bytes(line), *lines[number + 1 :]])))
    assert found.damage is not None
    if place < len(line) - 1:
        assert found.damage.line == number + 1
        assert found.damage.kind in (DamageKind.EDITED, DamageKind.TORN)


@given(data=st.data())
def test_every_removed_record_is_found(whole: Path, broken: Callable[..., Path], data: st.DataObject) -> None:
    lines = lines_of(whole)
    first = data.draw(st.integers(0, len(lines) - 1))
    count = data.draw(st.integers(1, len(lines) - first))
    found = verify(broken(b"".join(lines[:first] + lines[first + count :])))
    assert found.damage is not None
    assert found.damage.kind is DamageKind.REMOVED
    if first + count < len(lines):
        assert found.damage.line == first + 1


@given(data=st.data())
def test_every_exchange_of_two_records_is_found(
    whole: Path, broken: Callable[..., Path], data: st.DataObject
) -> None:
    lines = lines_of(whole)
    one, other = sorted(data.draw(st.sets(st.integers(1, len(lines) - 1), min_size=2, max_size=2)))
    lines[one], lines[other] = lines[other], lines[one]
    found = verify(broken(b"".join(lines)))
    assert found.damage is not None
    assert (found.damage.kind, found.damage.line) == (DamageKind.REORDERED, one + 1)


@given(data=st.data())
def test_every_shortening_is_found(whole: Path, broken: Callable[..., Path], data: st.DataObject) -> None:
    content = b"".join(lines_of(whole))
    found = verify(broken(content[: data.draw(st.integers(0, len(content) - 1))]))
    assert found.damage is not None
    assert found.damage.kind in (DamageKind.TORN, DamageKind.REMOVED)


@given(number=st.integers(0, 2 * CALLS))
def test_a_record_rewritten_with_a_new_hash_is_found(
    whole: Path, broken: Callable[..., Path], number: int
) -> None:
    lines = lines_of(whole)
    record = json.loads(lines[number])
    before = GENESIS if number == 0 else _tip(lines[number - 1])
    record["kind"] = "call.forged"
    del record["hash"]
    lines[number], _ = seal(record, before)
    found = verify(broken(b"".join(lines)))
    assert found.damage is not None
    assert found.damage.kind is DamageKind.EDITED


def _tip(line: bytes):  # type: ignore[no-untyped-def]
    from mcp_tools.observe.audit.line import Tip

    record = read(line)
    assert record is not None
    return Tip(record["seq"], record["hash"])


async def test_a_log_replaced_whole_shows_against_its_anchor(place: Path) -> None:
    """G-15; and without an anchor it does not show."""
    path, anchor = place / "log" / "audit.jsonl", place / "elsewhere" / "anchor"
    await write(path, anchor=anchor)
    assert verify(path, anchor=anchor).is_whole
    shutil.rmtree(place / "log")
    await write(path)
    assert verify(path).is_whole
    found = verify(path, anchor=anchor)
    assert found.damage is not None
    assert found.damage.kind is DamageKind.REPLACED
    with pytest.raises(ConfigError, match="cut or replaced"):
        AuditLog(path, anchor=anchor)


async def test_a_log_cut_short_with_its_lock_file_shows_against_its_anchor(place: Path) -> None:
    path, anchor = place / "log" / "audit.jsonl", place / "elsewhere" / "anchor"
    await write(path, anchor=anchor)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]))
    assert verify(path).is_end_known
    os.unlink(f"{path}.lock")
    assert verify(path).is_whole
    assert not verify(path).is_end_known
    found = verify(path, anchor=anchor)
    assert found.damage is not None
    assert found.damage.kind is DamageKind.REMOVED


async def test_a_log_edited_while_no_server_ran_stays_damaged_after_the_next_start(place: Path) -> None:
    path = place / "audit.jsonl"
    await write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-1] = lines[-1].replace(b"server.stopped", b"server.forgery")
    path.write_bytes(b"".join(lines))
    await write(path)
    found = verify(path)
    assert found.damage is not None
    assert any(repair["reason"] == "records are missing" for repair in found.repairs)
    assert [file.name for file in place.iterdir() if ".cut-" in file.name]


async def test_removed_older_files_are_found_and_dropped_ones_are_not_damage(place: Path) -> None:
    path = place / "audit.jsonl"
    await write(path, calls=300, max_bytes=65536)
    files = sorted(file for file in place.iterdir() if file.name[-1].isdigit())
    assert len(files) >= 3
    assert verify(path).is_whole
    files[0].unlink()
    found = verify(path)
    assert found.damage is not None
    assert found.damage.kind is DamageKind.REMOVED
    kept = place / "kept" / "audit.jsonl"
    await write(kept, calls=300, max_bytes=65536, keep_files=1)
    found = verify(kept)
    assert found.is_whole
    assert found.first_seq is not None
    assert found.first_seq > 1
    assert len(found.files) == 2


async def test_calls_without_an_end_are_listed_and_are_no_damage(place: Path) -> None:
    path = place / "audit.jsonl"
    with AuditLog(path) as log:
        await log.begin(started("lost"))
        await log.begin(started("done"))
        await log.end(ended("done"))
    found = verify(path)
    assert found.is_whole
    assert [each.call_id for each in found.unfinished] == ["lost"]


def test_there_is_nothing_to_verify_where_no_log_is(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify(place / "audit.jsonl")


@pytest.mark.parametrize(("name", "is_part"), [("bak", False), ("copy.1", False), ("1", True)])
async def test_a_copy_beside_a_log_is_no_part_of_it_unless_it_has_the_name_of_one(
    place: Path, name: str, is_part: bool
) -> None:
    path = place / "audit.jsonl"
    await write(path)
    shutil.copy(path, f"{path}.{name}")
    assert verify(path).is_whole is not is_part
    await write(path)
    assert verify(path).is_whole is not is_part


@pytest.mark.parametrize("is_in_place", [False, True])
async def test_a_log_that_is_replaced_under_a_server_is_not_continued_and_its_anchor_stays(
    place: Path, is_in_place: bool
) -> None:
    path, forged, anchor = (
        place / "log" / "audit.jsonl",
        place / "forged" / "audit.jsonl",
        place / "a" / "anchor",
    )
    with AuditLog(path, anchor=anchor, anchor_every_s=0) as log:
        await log.begin(started("real"))
        kept = anchor.read_text()
        with AuditLog(forged) as other:
            for number in range(20):
                await other.begin(started(f"forged-{number}"))
        for name in ("audit.jsonl", "audit.jsonl.lock"):
            if is_in_place:
                (path.parent / name).write_bytes((forged.parent / name).read_bytes())
            else:
                (forged.parent / name).replace(path.parent / name)
        for _ in range(2):
            with pytest.raises(AuditUnavailable, match="replaced"):
                await log.begin(started("after"))
        assert anchor.read_text() == kept
    with pytest.raises(ConfigError, match="cut or replaced"):
        AuditLog(path, anchor=anchor)


async def test_an_anchor_that_somebody_filled_with_anything_stops_no_server(place: Path) -> None:
    path, anchor = place / "log" / "audit.jsonl", place / "a" / "anchor"
    with AuditLog(path, anchor=anchor, anchor_every_s=0) as log:
        for junk in ("[" * 4096, "{}", "", "\x00\xff", '{"seq": 1e400, "hash": 3}'):
            anchor.write_text(junk)
            await log.begin(started("c1"))
            assert read_anchor(anchor).seq > 1
    anchor.write_text("[" * 4096)
    with pytest.raises(ConfigError, match="no anchor"):
        AuditLog(path, anchor=anchor)

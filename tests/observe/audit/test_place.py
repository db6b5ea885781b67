"""G-16: where a log must not be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcp_tools.errors import ConfigError
from mcp_tools.observe.audit import AuditLog, lock, verify
from mcp_tools.types import AuditUnavailable
from tests.observe.audit.calls import started


def refused(path: Path, **options: object) -> str:
    before = sorted(os.listdir(path.parent)) if path.parent.exists() else None
    with pytest.raises(ConfigError) as caught:
        AuditLog(path, **options)  # type: ignore[arg-type]
    if before is not None:
        assert sorted(os.listdir(path.parent)) == before
    return str(caught.value)


def test_a_link_is_refused_also_one_that_leads_nowhere(place: Path) -> None:
    for target in (place / "target", Path("/dev/null"), place / "missing"):
        if target.name == "target":
            target.touch()
        (place / "audit.jsonl").symlink_to(target)
        assert "is a link" in refused(place / "audit.jsonl")
        (place / "audit.jsonl").unlink()
    assert (place / "target").read_bytes() == b""


def test_a_pipe_a_folder_and_a_device_are_refused_without_waiting(place: Path) -> None:
    os.mkfifo(place / "pipe")
    (place / "folder").mkdir()
    for name in ("pipe", "folder"):
        assert "no plain file" in refused(place / name)
    with pytest.raises(ConfigError):
        AuditLog("/dev/null")


def test_a_file_with_a_second_name_is_refused(place: Path) -> None:
    (place / "audit.jsonl").touch()
    os.link(place / "audit.jsonl", place / "second")
    assert "second name" in refused(place / "audit.jsonl")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_that_others_may_write_to_is_refused(place: Path, mode: int) -> None:
    (place / "open").mkdir()
    (place / "open").chmod(mode)
    assert "others may write" in refused(place / "open" / "audit.jsonl")


def test_a_folder_below_one_that_others_may_write_to_is_refused(place: Path) -> None:
    (place / "open" / "below").mkdir(parents=True, mode=0o700)
    (place / "open").chmod(0o777)
    assert "above it" in refused(place / "open" / "below" / "audit.jsonl")
    (place / "open").chmod(0o1777)
    AuditLog(place / "open" / "below" / "audit.jsonl").close()


def test_a_log_inside_a_root_is_refused_also_through_a_link(place: Path) -> None:
    (place / "root" / "deep").mkdir(parents=True)
    (place / "link").symlink_to(place / "root" / "deep")
    roots = [place / "root"]
    assert "inside" in refused(place / "root" / "audit.jsonl", roots=roots)
    assert "inside" in refused(place / "link" / "audit.jsonl", roots=roots)
    assert "inside" in refused(place / "audit.jsonl", anchor=place / "root" / "anchor", roots=roots)
    (place / "root-and-more").mkdir()
    AuditLog(place / "root-and-more" / "audit.jsonl", roots=roots).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_what_belongs_to_somebody_else_is_refused(place: Path) -> None:
    (place / "audit.jsonl").touch()
    os.chown(place / "audit.jsonl", 12345, 12345)
    assert "another user" in refused(place / "audit.jsonl")
    (place / "theirs").mkdir()
    os.chown(place / "theirs", 12345, 12345)
    assert "another user" in refused(place / "theirs" / "audit.jsonl")


@pytest.mark.parametrize("what", ["lock", "salt"])
def test_a_link_in_place_of_a_file_beside_it_is_refused(place: Path, what: str) -> None:
    (place / f"audit.jsonl.{what}").symlink_to(place / "elsewhere")
    with pytest.raises((ConfigError, AuditUnavailable)):
        AuditLog(place / "audit.jsonl")
    assert not (place / "elsewhere").exists()


def test_a_salt_that_is_just_being_made_or_was_left_half_made_is_used(place: Path) -> None:
    """Clients start two servers at once; the first one gives the salt its name by a second link."""
    AuditLog(place / "audit.jsonl").close()
    salt = place / "audit.jsonl.salt"
    own, another = place / "audit.jsonl.salt.0123abcd", place / "audit.jsonl.salt.4567cdef"
    os.link(salt, own)
    another.write_bytes(b"of one who is not that far")
    AuditLog(place / "audit.jsonl").close()
    assert not own.exists() and another.exists()
    os.link(salt, place / "somebody's")
    assert "second name" in refused(place / "audit.jsonl")


def test_the_anchor_must_be_in_another_folder(place: Path) -> None:
    assert "own folder" in refused(place / "audit.jsonl", anchor=place / "anchor")


@pytest.mark.parametrize(
    "options",
    [
        {"max_bytes": 1},
        {"keep_files": 0},
        {"anchor_every_s": -1.0},
        {"wait_s": 0.0},
        {"wait_s": float("nan")},
    ],
    ids=str,
)
def test_numbers_that_make_no_sense_are_refused(place: Path, options: dict[str, float]) -> None:
    refused(place / "audit.jsonl", **options)


def test_a_readable_file_of_ours_is_closed_to_others(place: Path) -> None:
    path = place / "audit.jsonl"
    path.touch(mode=0o644)
    AuditLog(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_link_put_in_its_place_under_the_server_is_not_written_through(place: Path) -> None:
    path = place / "audit.jsonl"
    with AuditLog(path) as log:
        path.rename(place / "audit.jsonl.1")
        path.symlink_to(place / "target")
        with pytest.raises(AuditUnavailable, match="tampered"):
            await log.begin(started("c1"))
        path.unlink()
        await log.begin(started("c2"))
    assert not (place / "target").exists()
    assert verify(path).is_whole


async def test_a_folder_and_a_file_that_are_opened_to_others_under_the_server_are_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOOK_EVERY_S", 0.0)
    path = place / "audit.jsonl"
    with AuditLog(path) as log:
        path.chmod(0o666)
        await log.begin(started("c1"))
        assert path.stat().st_mode & 0o777 == 0o600
        place.chmod(0o777)  # noqa: ASYNC240
        with pytest.raises(AuditUnavailable, match="tampered"):
            await log.begin(started("c2"))
        place.chmod(0o700)  # noqa: ASYNC240
        await log.begin(started("c3"))
    assert verify(path).damage is None


def test_a_folder_that_cannot_be_made_is_refused(place: Path) -> None:
    (place / "file").touch()
    assert "cannot be kept" in refused(place / "file" / "deep" / "audit.jsonl")

"""Calls wait for the disk, on whatever loop they run, and only for so long."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path

import anyio
import pytest

from mcp_tools.observe.audit import AuditLog, verify
from mcp_tools.types import AuditUnavailable
from tests.observe.audit.calls import ended, started


@pytest.fixture
def held(path: str) -> Iterator[AuditLog]:
    """A log whose lock another process holds: so nothing can be written."""
    log = AuditLog(path, wait_s=0.2)
    fd = os.open(f"{path}.lock", os.O_RDWR)
    flock(fd, LOCK_EX)
    yield log
    os.close(fd)
    log.close()


async def test_a_call_does_not_wait_forever_and_its_record_is_not_written_later(
    held: AuditLog, path: str
) -> None:
    with pytest.raises(AuditUnavailable, match="did not answer"):
        await held.begin(started("first"))
    with pytest.raises(AuditUnavailable, match="did not answer"):
        await held.begin(started("second"))
    assert "second" not in Path(path).read_text()  # noqa: ASYNC240


async def test_a_closed_log_refuses(path: str) -> None:
    log = AuditLog(path)
    log.close()
    log.close()
    with pytest.raises(AuditUnavailable, match="closed"):
        await log.begin(started("c1"))


def test_loops_of_both_kinds_in_several_threads_share_one_log(path: str) -> None:
    failures: list[BaseException] = []

    async def many(name: str) -> None:
        async def one(number: int) -> None:
            await log.begin(started(f"{name}-{number}"))
            await log.end(ended(f"{name}-{number}"))

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(one, number)

    def run(name: str, backend: str) -> None:
        try:
            anyio.run(many, name, backend=backend)
        except BaseException as error:
            failures.append(error)

    with AuditLog(path) as log:
        threads = [
            threading.Thread(target=run, args=(f"t{number}", backend))
            for number, backend in enumerate(["asyncio", "trio"] * 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert failures == []
    found = verify(path)
    assert (found.is_whole, found.records, found.unfinished_count) == (True, 2 + 4 * 50 * 2, 0)


async def test_records_that_come_together_share_one_sync(path: str) -> None:
    """Group commit: 200 calls at once take far fewer syncs than records."""
    syncs = 0
    real = os.fdatasync

    def counted(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        real(fd)

    with AuditLog(path) as log, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", counted)
        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(log.begin, started(f"c{number}"))
    assert syncs < 50


async def test_a_cancelled_wait_leaves_the_log_usable(path: str) -> None:
    async with AuditLog(path) as log:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await log.begin(started("c1"))
        await log.end(ended("c1"))
    assert verify(path).is_whole


def test_a_forked_copy_does_not_write(path: str) -> None:
    with AuditLog(path) as log:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                anyio.run(log.begin, started("c1"))
                os.write(writer, b"written")
            except AuditUnavailable:
                os.write(writer, b"refused")
            finally:
                os._exit(0)
        os.close(writer)
        assert os.read(reader, 20) == b"refused"
        os.close(reader)
        os.waitpid(child, 0)
    assert verify(path).records == 2


async def test_an_anchor_on_a_disk_that_fails_is_told_and_with_zero_seconds_refuses(place: Path) -> None:
    elsewhere = place / "elsewhere"
    with AuditLog(place / "audit.jsonl", anchor=elsewhere / "anchor", anchor_every_s=0) as log:
        await log.begin(started("c1"))
        assert verify(place / "audit.jsonl", anchor=elsewhere / "anchor").anchored_seq == 2
        elsewhere.rename(place / "away")
        (place / "away" / "anchor").unlink()
        (place / "away" / "anchor").mkdir()
        (place / "away" / "anchor" / "full").touch()
        with pytest.raises(AuditUnavailable):
            await log.end(ended("c1"))
        (place / "away" / "anchor" / "full").unlink()
        (place / "away" / "anchor").rmdir()
        await log.end(ended("c1"))

"""Calls wait for the disk, on whatever loop they run, and only for so long."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path

import anyio
import pytest

from mcp_tools import pace
from mcp_tools.observe.audit import AuditLog, chain, verify, writer
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


async def test_once_a_disk_hangs_new_calls_are_refused_at_once_and_ends_of_calls_wait(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(path, wait_s=20)
    await log.begin(started("before"))
    monkeypatch.setattr(writer, "STUCK_S", 0.05)
    with open(f"{path}.lock") as lock:  # noqa: ASYNC230
        flock(lock, LOCK_EX)
        async with anyio.create_task_group() as group:
            group.start_soon(log.end, ended("before"))
            with anyio.fail_after(10):
                while True:
                    with anyio.move_on_after(0.05):
                        with pytest.raises(AuditUnavailable, match="holds its lock"):
                            await log.begin(started("after"))
                        break
            flock(lock, LOCK_UN)
    log.close()
    assert "call.outcome" in Path(path).read_text()  # noqa: ASYNC240


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


# --- a call that is alone ----------------------------------------------------------------------


@pytest.fixture
async def quick(path: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AuditLog]:
    """A log whose disk has been quick for a while."""
    monkeypatch.setattr(pace, "QUICK_S", 60.0)  # whatever else this machine does
    with AuditLog(path) as log:
        for number in range(10):
            await log.begin(started(f"before-{number}"))
            await log.end(ended(f"before-{number}"))
        yield log


async def _lets_others_run(work: Awaitable[None]) -> bool:
    """Whether the event loop did something else until the work was done."""
    ran = []
    asyncio.get_running_loop().call_soon(ran.append, True)
    await work
    return bool(ran)


async def test_a_call_that_is_alone_is_recorded_at_once(quick: AuditLog, path: str) -> None:
    assert not await _lets_others_run(quick.begin(started("c1")))
    assert Path(path).read_text().splitlines()[-1].count('"c1"') == 1  # noqa: ASYNC240
    assert not await _lets_others_run(quick.end(ended("c1")))
    assert verify(path).damage is None


async def test_while_another_call_runs_the_loop_does_not_wait_for_the_disk(quick: AuditLog) -> None:
    await quick.begin(started("c1"))
    assert await _lets_others_run(quick.begin(started("c2")))
    assert await _lets_others_run(quick.end(ended("c1")))
    assert not await _lets_others_run(quick.end(ended("c2")))


async def test_the_loop_waits_neither_for_other_processes_nor_for_a_disk_that_was_slow(
    quick: AuditLog, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(f"{path}.lock") as lock:  # noqa: ASYNC230
        flock(lock, LOCK_EX)
        async with anyio.create_task_group() as group:
            group.start_soon(quick.begin, started("c1"))
            await anyio.wait_all_tasks_blocked()
            flock(lock, LOCK_UN)
    await quick.end(ended("c1"))
    monkeypatch.setattr(pace, "QUICK_S", 0.0)  # no disk is that quick
    assert not await _lets_others_run(quick.begin(started("c2")))  # it could not be known
    assert await _lets_others_run(quick.end(ended("c2")))
    monkeypatch.setattr(pace, "QUICK_S", 60.0)
    assert await _lets_others_run(quick.begin(started("c3")))  # it has to prove itself first


async def test_what_cannot_be_written_at_once_is_refused(
    quick: AuditLog, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(chain, "sync", fails)
        with pytest.raises(AuditUnavailable, match="Input/output"):
            await quick.begin(started("c1"))
    await quick.begin(started("c2"))
    await quick.end(ended("c2"))
    assert '"c1"' not in Path(path).read_text()  # noqa: ASYNC240
    assert verify(path).damage is None


async def test_a_log_that_was_closed_meanwhile_refuses_at_once(quick: AuditLog, path: str) -> None:
    quick.close()
    with pytest.raises(AuditUnavailable, match="closed"):
        await quick.begin(started("c1"))
    assert '"c1"' not in Path(path).read_text()  # noqa: ASYNC240

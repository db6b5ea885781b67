"""A file of accounts: who may read it, and what happens when it or its disk fails."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from mcp_tools import pace
from mcp_tools.errors import ConfigError
from mcp_tools.limits import Store, build_limiter, open_store, sqlite_books, threaded
from mcp_tools.limits.later import open_later
from mcp_tools.limits.sqlite import check_sqlite, open_sqlite
from mcp_tools.types import LimitsUnavailable, Usage
from tests.limits.calls import admitted, count, run, tool
from tests.limits.conftest import Clock

RULE = "*: 5 calls / hour"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "limits.sqlite3")


async def test_files_are_their_owners_only(path: str) -> None:
    before = os.umask(0)
    try:
        one = build_limiter([RULE], open_store(path))
        await run(one)
        modes = {name: stat.S_IMODE(os.stat(f"{path}{name}").st_mode) for name in ("", "-wal", "-shm")}
        folder = stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode)
        one.close()
    finally:
        os.umask(before)
    assert modes == {"": 0o600, "-wal": 0o600, "-shm": 0o600}
    assert folder == 0o700


async def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    path.touch(0o644)
    open_store(str(path)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _folder(path: Path) -> None:
    path.mkdir()


def _link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


def _queue(path: Path) -> None:
    os.mkfifo(path)


def _text(path: Path) -> None:
    path.write_text("not a database, whatever its name says\n" * 100)


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize("make", [_folder, _link, _queue, _text, _newer])
def test_what_is_no_file_of_ours_is_refused_at_start(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "limits")
    with pytest.raises(ConfigError, match="limits"):
        open_store(str(tmp_path / "limits"))


@pytest.mark.parametrize("make", [_folder, _link, _queue, _text, _newer])
def test_a_check_refuses_what_a_start_refuses_and_changes_nothing(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "limits")
    before = os.lstat(tmp_path / "limits")
    with pytest.raises(ConfigError) as checked:
        check_sqlite(str(tmp_path / "limits"))
    assert (os.lstat(tmp_path / "limits"), os.listdir(tmp_path)) == (before, ["limits"])
    with pytest.raises(ConfigError) as started:
        open_store(str(tmp_path / "limits"))
    assert str(checked.value) == str(started.value)


def test_a_check_refuses_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file/limits", "file/new/limits"):
        with pytest.raises(ConfigError, match="limits in"):
            check_sqlite(str(tmp_path / name))


async def test_a_check_knows_a_file_of_ours_and_one_that_is_not_there_yet(path: str, tmp_path: Path) -> None:
    assert check_sqlite(path) is False
    assert os.listdir(tmp_path) == []
    one = build_limiter([RULE], open_store(path))
    await run(one)
    one.close()
    assert check_sqlite(path) is True


async def test_a_file_for_totals_is_opened_when_a_call_has_ended(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = build_limiter([], open_later(path))
    lease = await admitted(one)
    assert os.listdir(tmp_path) == []
    os.mkdir(os.path.dirname(path))
    os.mkdir(path)  # in the way
    await lease.settle(Usage(calls=1))
    with anyio.fail_after(10):
        await run(one)
        with pytest.raises(LimitsUnavailable):
            await one.totals(1)
        os.rmdir(path)
        await run(one)
        (total,) = await one.totals(1)
    assert total.usage.calls == 3
    assert [each for each in caplog.messages if "kept in memory" in each] == caplog.messages[:1]
    one.close()


def _damage(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(os.urandom(os.path.getsize(path)))


def _move_away(path: str) -> None:
    for name in ("", "-wal", "-shm"):
        if os.path.exists(path + name):
            os.rename(path + name, f"{path}{name}.broken")


async def test_a_damaged_file_refuses_calls_and_a_new_one_serves_them(path: str) -> None:
    one = build_limiter([RULE], open_store(path))
    _damage(path)
    with pytest.raises(LimitsUnavailable, match="move it away"):
        for _ in range(50):
            await run(one)
    _move_away(path)
    assert await count(one, 10) == 5
    one.close()


async def test_a_locked_file_refuses_calls_until_it_is_free(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_tools.limits.sqlite.BUSY_S", 0.05)
    one = build_limiter([RULE], open_store(path))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LimitsUnavailable, match="locked"):
        await run(one)
    other.execute("ROLLBACK")
    other.close()
    assert await count(one, 10) == 5
    one.close()


async def test_a_full_disk_refuses_calls_and_keeps_their_ends(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = build_limiter(["*: 10 usd / day"], open_store(path))
    lease = await admitted(one)
    full = True

    def write(*_: object, **__: object) -> None:
        if full:
            raise sqlite3.OperationalError("database or disk is full")
        flush(*_, **__)

    flush = sqlite_books.Books.flush
    monkeypatch.setattr(sqlite_books.Books, "flush", write)
    with pytest.raises(LimitsUnavailable, match="full"):
        await lease.settle(Usage(calls=1, cost_usd=4))
    with pytest.raises(LimitsUnavailable, match="full"):
        await admitted(one, tool("other"))
    full = False
    lease = await admitted(one, tool("other", price_usd=1))
    await lease.cancel()
    assert lease.left == {"*: 10 usd / day": 6}
    one.close()


async def test_several_processes_may_make_the_file_at_once(path: str) -> None:
    stores: list[Store] = []
    async with anyio.create_task_group() as group:
        for _ in range(8):

            async def make() -> None:
                stores.append(await anyio.to_thread.run_sync(open_store, path))

            group.start_soon(make)
    limiters = [build_limiter([RULE], store) for store in stores]
    assert sum([await count(one, 2) for one in limiters]) == 5
    for one in limiters:
        one.close()


# --- a call that is alone ----------------------------------------------------------------------


async def _lets_others_run(work: Awaitable[Any]) -> bool:
    """Whether the event loop did something else until the work was done."""
    ran: list[bool] = []
    asyncio.get_running_loop().call_soon(ran.append, True)
    await work
    return bool(ran)


async def test_a_call_that_is_alone_is_counted_at_once_unless_another_process_is_at_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "QUICK_S", 60.0)  # whatever else this machine does
    one = build_limiter(["*: 40 calls / hour", "*: 9 usd / day"], open_store(path))
    assert await count(one, 20) == 20
    lease = await admitted(one, tool())
    assert not await _lets_others_run(lease.settle(Usage(calls=1, cost_usd=1)))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as group:
        group.start_soon(admitted, one, tool())
        await anyio.wait_all_tasks_blocked()
        other.execute("COMMIT")
    other.close()
    # Others are under way from here on.
    assert await _lets_others_run(admitted(one, tool()))
    again = build_limiter(["*: 40 calls / hour", "*: 9 usd / day"], open_store(path))
    lease = await admitted(again, tool())
    assert lease.left == {"*: 40 calls / hour": 16, "*: 9 usd / day": 5}
    one.close()
    again.close()


async def test_the_file_stays_small_while_calls_come_one_by_one(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written ahead goes to the file now and then, though the thread has nothing to do."""
    monkeypatch.setattr(threaded, "REST_EVERY_S", 0.05)
    one = build_limiter(["*: 100000 calls / hour"], open_store(path))
    sizes = []
    for _ in range(12):
        assert await count(one, 100) == 100
        sizes.append(os.stat(f"{path}-wal").st_size)
        await anyio.sleep(0.1)
    one.close()
    assert max(sizes) < 6 * sizes[0], sizes


async def test_a_file_that_was_taken_away_is_noticed_also_by_calls_that_are_alone(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threaded, "REST_EVERY_S", 0.02)
    one = build_limiter(["*: 1000 calls / hour"], open_store(path))
    assert await count(one, 50) == 50
    for name in ("", "-wal", "-shm"):
        os.rename(f"{path}{name}", f"{path}.old{name}")
    with anyio.fail_after(10):
        while not os.path.exists(path):  # noqa: ASYNC240
            assert await count(one, 1) == 1
            await anyio.sleep(0.005)
    one.close()


# --- the machine starts anew ------------------------------------------------------------------


async def test_a_machine_that_starts_anew_counts_on(path: str, clock: Clock) -> None:
    one = build_limiter([RULE], open_sqlite(path, clock=clock))
    assert await count(one, 10) == 5
    one.close()
    clock.boot, clock.ticks_s, clock.wall_s = "second", 5.0, clock.wall_s + 60
    two = build_limiter([RULE], open_sqlite(path, clock=clock))
    assert await count(two, 10) == 0
    two.close()
    clock.boot, clock.ticks_s, clock.wall_s = "third", 5.0, clock.wall_s - 86_400  # it lost its clock
    three = build_limiter([RULE], open_sqlite(path, clock=clock))
    assert await count(three, 10) == 0
    clock.advance(3_600)
    assert await count(three, 10) == 5
    three.close()


@pytest.mark.parametrize("calls_before", [0, 1, 30])
def test_a_forked_copy_refuses_calls_and_says_why(path: str, calls_before: int) -> None:
    one = build_limiter(["*: 100 calls / hour"], open_store(path))
    assert anyio.run(count, one, calls_before) == calls_before
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(5)  # ends a child that hangs
        try:
            anyio.run(run, one)
        except LimitsUnavailable as error:
            one.close()
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert "a copy of the one that opened the limits" in said.read()
    os.waitpid(child, 0)
    assert anyio.run(count, one, 100) == 100 - calls_before
    one.close()

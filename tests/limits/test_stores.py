"""What holds for every store: what it keeps, how much, and that all count alike."""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from mcp_tools.limits import Store, accounts, build_limiter, open_store
from mcp_tools.limits.clock import Reading
from mcp_tools.limits.memory import MemoryStore
from mcp_tools.limits.redis_server import open_redis
from mcp_tools.limits.sqlite import open_sqlite
from mcp_tools.limits.store import Ask, Kind, Settle, Take
from mcp_tools.types import Lease, LimitsUnavailable
from tests.limits.calls import admitted, by, count, run, tool
from tests.limits.conftest import Clock, OpenStore
from tests.limits.redis_process import RedisProcess

RULE = "*: 5 calls / hour"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "limits.sqlite3")


# --- both ends of a thread --------------------------------------------------------------------


async def test_a_call_that_is_withdrawn_while_it_is_counted_leaves_nothing_reserved(
    open_any: OpenStore,
) -> None:
    rule = "*: 10 usd / day"
    one = build_limiter([rule], open_any())
    for _ in range(20):
        lease: Lease | None = None
        with anyio.move_on_after(0):
            lease = await admitted(one, tool("priced", price_usd=4))
        if lease is not None:  # nothing had to be waited for
            await lease.cancel()
    # The thread may have been at work on the last of them while the next was waiting already.
    await (await admitted(one, tool("priced", price_usd=4))).cancel()
    lease = await admitted(one, tool("priced", price_usd=4))
    await lease.cancel()
    assert lease.left == {rule: 10}


async def test_what_arrives_together_is_counted_one_by_one(open_any: OpenStore) -> None:
    one = build_limiter(["*: 70 calls / hour"], open_any())
    let_in = 0

    async def call() -> None:
        nonlocal let_in
        added = await count(one, 1)
        let_in += added

    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(call)
    assert let_in == 70


async def test_a_closed_store_refuses_calls(path: str) -> None:
    one = build_limiter([RULE], open_store(path))
    await run(one)
    one.close()
    one.close()
    with pytest.raises(LimitsUnavailable, match="closed"):
        await run(one)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_store_serves_several_event_loops(path: str, backend: str) -> None:
    one = build_limiter([RULE], open_store(path))

    async def two() -> int:
        return await count(one, 2)

    assert [anyio.run(two, backend=backend) for _ in range(3)] == [2, 2, 1]
    one.close()


# --- how much is kept -------------------------------------------------------------------------


async def test_a_million_names_do_not_fill_memory(clock: Clock) -> None:
    """R-08, a fiftieth of it unless MCP_TOOLS_LONG is set."""
    store = MemoryStore(clock=clock, max_accounts=1_000)
    one = build_limiter(["* per principal: 1 call / day", "* per session: 1 call / day"], store)
    names = 1_000_000 if "MCP_TOOLS_LONG" in os.environ else 20_000
    for number in range(names):
        clock.advance(0.001)
        await one.admit(None, by(f"p{number}", f"s{number}"), again=False)
    assert len(store) <= 2 * 1_000 + 5_000


async def test_a_file_and_a_server_forget_what_is_too_much_and_sessions_for_themselves(
    redis_server: RedisProcess, path: str, clock: Clock
) -> None:
    import redis

    rules = ["* per principal: 2 calls / day", "* per session: 1 call / day"]
    with redis.Redis.from_url(redis_server.url) as client:
        options: Any = {"clock": clock, "max_accounts": 50}
        at_server = open_redis(redis_server.url, prefix="few", server_clock=clock.wall, **options)
        for store in (open_sqlite(path, **options), at_server):
            one = build_limiter(rules, store)
            await run(one, who=by("ada"))
            for number in range(300):
                clock.advance(0.01)
                await run(one, who=by("ada" if number == 0 else "bob", f"s{number}"))
            assert await count(one, 2, who=by("ada", "new")) == 0  # no number of sessions made it forget her
            one.close()
        assert len(client.keys("{few}:account:*")) <= 120
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM accounts").fetchone()[0] <= 120
    connection.close()


async def test_accounts_that_are_over_are_forgotten(path: str, clock: Clock) -> None:
    store = open_sqlite(path, clock=clock, max_accounts=100)
    one = build_limiter(["* per principal: 1 call / minute"], store)
    for number in range(40):
        clock.advance(60)
        await run(one, who=by(f"p{number}"))
    one.close()
    with sqlite3.connect(path) as connection:
        # It looks at each tenth of 100 new ones, and has two connections: one waits its turn, one does not.
        assert connection.execute("SELECT count(*) FROM accounts").fetchone()[0] <= 24
    connection.close()


async def test_totals_of_too_many_names_are_added_up(
    open_any: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("memory", "sqlite_books", "redis_server"):
        monkeypatch.setattr(f"mcp_tools.limits.{module}.MAX_TOTALS_A_DAY", 3)
    one = build_limiter([], open_any())
    for number in range(10):
        await run(one, who=by(f"p{number}"), cost_usd=1)
    found = await one.totals(2)
    assert sum(each.usage.calls for each in found) == 10
    assert any(each.principal == "(others)" and each.usage.calls >= 4 for each in found)


# --- one arithmetic ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_all_stores_answer_alike(redis_server: RedisProcess, path: str, seed: int) -> None:
    """The script of the Redis server against the Python of the others, over random histories."""
    draw, clock = random.Random(seed), Clock()
    clock.wall_s = clock.ticks_s  # the same time for all
    stores: list[Store] = [
        MemoryStore(clock=clock),
        open_sqlite(path, clock=clock),
        open_redis(redis_server.url, prefix=f"alike{seed}", clock=clock, server_clock=clock.wall),
    ]
    running: list[tuple[Take, tuple[Ask, ...]]] = []
    for number in range(250):
        clock.advance(draw.choice([0, 0, 0.013, 1.7, 31.0]))
        if running and draw.random() < 0.5:
            take, budgets = running.pop(draw.randrange(len(running)))
            used = tuple(draw.choice([0, 0.5, 3.0]) for _ in budgets) if draw.random() < 0.8 else None
            for store in stores:
                await store.settle(
                    Settle(call=take.call, asks=budgets, used=used, total=None), is_awaited=True
                )
            continue
        asks = (
            Ask(account="b", kind=Kind.BUCKET, capacity=5, window_s=40, take=draw.choice([0, 1])),
            Ask(account="w", kind=Kind.WINDOW, capacity=9, window_s=60, take=1),
            Ask(
                account=draw.choice("xy"),
                kind=Kind.BUDGET,
                capacity=10,
                window_s=90,
                take=draw.choice([0, 0, 2.5]),
                estimate=draw.choice("ef"),
            ),
        )
        asks = tuple(draw.sample(asks, draw.randint(1, 3)))
        take = Take(call=f"c{number}", asks=asks, lasts_s=45)
        answers = [await store.take(take) for store in stores]
        for other in answers[1:]:
            assert type(other) is type(answers[0])
            for name in answers[0].__slots__:
                assert getattr(other, name) == pytest.approx(getattr(answers[0], name), abs=1e-6), name
        if hasattr(answers[0], "reserved"):
            running.append((take, tuple(ask for ask in asks if ask.kind is Kind.BUDGET)))
    for store in stores:
        store.close()


def test_the_real_clock_moves_on_with_the_machine() -> None:
    from mcp_tools.limits.clock import read_clock

    first, second = read_clock(), read_clock()
    assert isinstance(first, Reading)
    assert first.boot == second.boot
    assert first.ticks_s <= second.ticks_s


def test_slots_are_counted_alike_in_both_languages() -> None:
    script = (Path(accounts.__file__).parent / "accounts.lua").read_text()
    assert f"local SLOTS, ROUNDING, FORGET = {accounts.SLOTS}, 1e-9, {accounts.FORGET}" in script

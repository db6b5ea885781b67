from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcp_tools.limits import Limit, Store, StoreLimiter, build_limiter
from mcp_tools.limits.clock import Reading
from mcp_tools.limits.memory import MemoryStore
from mcp_tools.limits.redis_server import open_redis
from mcp_tools.limits.sqlite import open_sqlite
from tests.limits.redis_process import RedisProcess

_prefixes = itertools.count()


class Clock:
    """Clocks that stand still until a test moves them."""

    def __init__(self) -> None:
        self.boot, self.ticks_s, self.wall_s = "first", 1_000.0, 1_800_000_000.0

    def __call__(self) -> Reading:
        return Reading(boot=self.boot, ticks_s=self.ticks_s, wall_s=self.wall_s)

    def wall(self) -> float:
        return self.wall_s

    def advance(self, seconds: float) -> None:
        self.ticks_s += seconds
        self.wall_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server")
    server = RedisProcess(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


OpenStore = Callable[[], Store]
OpenLimiter = Callable[..., StoreLimiter]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def open_any(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens the same accounts again and again, as servers do that start anew."""
    memory = MemoryStore(clock=clock)
    prefix = f"test{next(_prefixes)}"

    def make() -> Store:
        if request.param == "memory":
            return memory
        if request.param == "sqlite":
            return open_sqlite(str(tmp_path / "limits.sqlite3"), clock=clock)
        server: RedisProcess = request.getfixturevalue("redis_server")
        return open_redis(server.url, prefix=prefix, clock=clock, server_clock=clock.wall)

    with contextlib.ExitStack() as stack:

        def open_one() -> Store:
            store = make()
            stack.callback(store.close)
            return store

        yield open_one


@pytest.fixture
def limiter(open_any: OpenStore) -> OpenLimiter:
    def make(*rules: str | Limit) -> StoreLimiter:
        return build_limiter(rules, open_any())

    return make

"""Several server processes on one store: together they let in exactly what is allowed, however they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_tools.limits import build_limiter, open_store
from tests.limits.calls import by, count, refused
from tests.limits.redis_process import RedisProcess

ROOT = Path(__file__).resolve().parents[2]
CALLS = 10_000 if "MCP_TOOLS_LONG" in os.environ else 1_500
ALLOWED = 2 * CALLS // 10

CALLER = """
import json, sys
import anyio
from mcp_tools.limits import build_limiter, open_store
from tests.limits.calls import SEARCH, by
from mcp_tools.types import LimitRefusal, Usage

place, rules, principal, calls, together = json.loads(sys.argv[1])
limiter = build_limiter(rules, open_store(place))
let_in = 0

async def some(number):
    global let_in
    for _ in range(number):
        found = await limiter.admit(SEARCH, by(principal), again=False)
        if not isinstance(found, LimitRefusal):
            let_in += 1
            print("in", flush=True)
            await found.settle(Usage(calls=1))

async def main():
    async with anyio.create_task_group() as group:
        for _ in range(together):
            group.start_soon(some, calls // together)

print("ready", flush=True)
sys.stdin.readline()
anyio.run(main)
limiter.close()
"""


class Caller:
    def __init__(self, place: str, rules: list[str], principal: str, calls: int, together: int) -> None:
        arguments = json.dumps([place, rules, principal, calls, together])
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end of the process
        self.process = subprocess.Popen(
            [sys.executable, "-c", CALLER, arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=self.output,
        )
        self.wait_for("ready")

    def wait_for(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + 60
        while self.text().count(text) < times:
            assert self.process.poll() is None or self.text().count(text) >= times
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def text(self) -> str:
        return os.pread(self.output.fileno(), 10_000_000, 0).decode()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.close()

    def end(self) -> int:
        """Wait for it, and return how many of its calls were let in."""
        assert self.process.wait(250) == 0
        let_in = self.text().split().count("in")
        self.output.close()
        return let_in

    def kill(self) -> int:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)
        let_in = self.text().split().count("in")
        self.output.close()
        return let_in


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "limits.sqlite3")
        return
    request.getfixturevalue("redis_server")  # decides whether there can be one
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisProcess(folder)
    server.start()
    yield server.url
    server.stop()


@pytest.mark.parametrize("rule", [f"*: {ALLOWED} calls / day", f"*: 1 call / day burst {ALLOWED}"])
async def test_two_processes_at_ten_times_the_limit_let_in_exactly_what_is_allowed(
    place: str, rule: str
) -> None:
    callers = [Caller(place, [rule], "ada", CALLS, 8) for _ in range(2)]
    for caller in callers:
        caller.go()
    assert sum(caller.end() for caller in callers) == ALLOWED
    after = build_limiter([rule], open_store(place))
    await refused(after)
    after.close()


async def test_the_other_principal_keeps_its_share(place: str) -> None:
    rules = [f"* per principal: {ALLOWED // 2} calls / day", f"*: {ALLOWED} calls / day"]
    flood = Caller(place, rules, "flood", CALLS, 16)
    flood.go()
    flood.wait_for("in", 5)
    other = build_limiter(rules, open_store(place))
    assert await count(other, ALLOWED, who=by("ada")) == ALLOWED // 2
    assert flood.end() == ALLOWED // 2
    other.close()


async def test_a_killed_process_takes_nothing_with_it_and_nobody_gets_its_calls_again(place: str) -> None:
    rule = f"*: {ALLOWED} calls / day"
    let_in = 0
    for _ in range(3):
        caller = Caller(place, [rule], "ada", CALLS, 4)
        caller.go()
        caller.wait_for("in", 20)
        let_in += caller.kill()
    after = build_limiter([rule], open_store(place))
    let_in += await count(after, ALLOWED + 1, who=by("ada"))
    after.close()
    # What was counted in the moment of a kill, and not told any more, is lost to the callers.
    assert ALLOWED - 3 * 4 <= let_in <= ALLOWED

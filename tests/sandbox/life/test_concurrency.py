"""Many callers at once: threads and event loops share a sandbox, and wait for their turn above its limit."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from sandbox import PythonSandbox, SandboxBusy, SandboxError
from tests.sandbox.life.conftest import Calls, Make, started
from tests.sandbox.life.family import eventually, launchers_of, the_zygote

SPAN = "import time\nbegan = time.monotonic()\ntime.sleep(0.02)\nprint([began, time.monotonic()])"


def most_at_once(spans: list[list[float]]) -> int:
    events = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    running = most = 0
    for _, change in events:
        running += change
        most = max(most, running)
    return most


def test_forty_calls_at_once_all_succeed_and_four_run(make: Make) -> None:
    """D-26."""
    box = started(make(max_concurrent_calls=4, pool_size=4))
    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(box.execute_sync, [SPAN] * 40))
    assert all(each.success for each in answers), [each.error for each in answers]
    assert 2 <= most_at_once([json.loads(each.stdout) for each in answers]) <= 4


async def test_forty_tasks_at_once_all_succeed_and_four_run(make: Make) -> None:
    box = started(make(max_concurrent_calls=4, pool_size=4))
    answers = await asyncio.gather(*(box.execute(SPAN) for _ in range(40)))
    assert all(each.success for each in answers), [each.error for each in answers]
    assert 2 <= most_at_once([json.loads(each.stdout) for each in answers]) <= 4


def test_nobody_starves(make: Make) -> None:
    """Those who just had a child do not always come before those who wait for one."""
    box = started(make(max_concurrent_calls=2, pool_size=2))
    end_s = time.monotonic() + 1.5
    longest: list[float] = []

    def call_on() -> None:
        longest_s = 0.0
        while (began_s := time.monotonic()) < end_s:
            assert box.execute_sync("").success
            longest_s = max(longest_s, time.monotonic() - began_s)
        longest.append(longest_s)

    with ThreadPoolExecutor(12) as threads:
        for each in [threads.submit(call_on) for _ in range(12)]:
            each.result(10)
    assert max(longest) < 1.2, sorted(longest)


def test_a_call_without_a_turn_gives_up_and_disturbs_nobody(make: Make, tmp_path: Path) -> None:
    calls = Calls(make, tmp_path, max_concurrent_calls=1, queue_seconds=0.3)
    long = calls.begin("time.sleep(0.8)\nprint('done')")
    began_s = time.monotonic()
    with pytest.raises(SandboxBusy, match=r"within 0\.3 s"):
        calls.box.execute_sync("")
    assert 0.3 <= time.monotonic() - began_s < 0.6
    assert long.result(5).stdout == "begun\ndone\n"
    assert calls.box.execute_sync("print(1)").stdout == "1\n"


def test_calls_of_a_session_come_one_after_another(make: Make) -> None:
    box = started(make())
    code = "count = globals().get('count', 0) + 1\nimport time\ntime.sleep(0.002)\nprint(count)"
    with ThreadPoolExecutor(6) as threads:  # all of them want to begin it
        answers = list(threads.map(lambda _: box.execute_sync(code, session="a"), range(24)))
    assert sorted(int(each.stdout) for each in answers) == list(range(1, 25))
    assert sum(each.session_started for each in answers) == 1


def test_a_busy_session_gives_up_too(make: Make, tmp_path: Path) -> None:
    calls = Calls(make, tmp_path, queue_seconds=0.3)
    calls.box.execute_sync("x = 1", session="a")
    long = calls.begin("time.sleep(0.6)\nprint(x)", session="a")
    with pytest.raises(SandboxBusy):
        calls.box.execute_sync("x = 2", session="a")
    assert long.result(5).stdout == "begun\n1\n"


def test_sessions_over_the_limit_push_out_the_longest_idle_and_never_a_busy_one(
    make: Make, tmp_path: Path
) -> None:
    calls = Calls(make, tmp_path, max_sessions=2)
    box = calls.box
    for name in ("a", "b"):
        box.execute_sync("x = 1", session=name)
    long = calls.begin("time.sleep(0.5)\nprint(x)", session="a")
    assert box.execute_sync("", session="c").session_started
    assert box.execute_sync("", session="b").session_started
    assert long.result(5).stdout == "begun\n1\n"
    busy = [calls.begin("time.sleep(1)", session=name) for name in ("a", "b")]
    with pytest.raises(SandboxError, match="2 sessions already"):
        box.execute_sync("", session="c")
    for each in busy:
        each.result(5)


def test_a_session_that_is_ended_in_a_call_says_so(make: Make, tmp_path: Path) -> None:
    calls = Calls(make, tmp_path)
    long = calls.begin(session="a")
    assert calls.box.end_session("a")
    result = long.result(5)
    assert (result.ended_by, result.session_lost, result.stdout) == ("cancelled", True, "begun\n")
    assert not calls.box.end_session("a")
    assert calls.box.execute_sync("", session="a").session_started


def test_an_idle_session_goes_and_leaves_nothing(make: Make) -> None:
    box = started(make(session_idle_seconds=1.0))
    box.execute_sync("x = 1", session="a")
    zygote = the_zygote()
    assert eventually(lambda: len(zygote.children()) == 3)
    assert eventually(lambda: len(zygote.children()) == 2)
    assert box.execute_sync("print('x' in globals())", session="a").stdout == "False\n"


def test_threads_and_event_loops_share_a_sandbox(box: PythonSandbox) -> None:
    zygote = the_zygote()

    async def some(number: int) -> list[str]:
        answers = [await box.execute(f"print({number})", session=f"s{number}") for _ in range(3)]
        answers += await asyncio.gather(*(box.execute(f"print({number})") for _ in range(5)))
        return [each.stdout for each in answers]

    async def some_on_trio(number: int) -> list[str]:
        return [(await box.execute(f"print({number})")).stdout for _ in range(8)]

    def in_threads(number: int) -> list[str]:
        return [box.execute_sync(f"print({number})").stdout for _ in range(8)]

    with ThreadPoolExecutor(6) as threads:
        work = {
            0: threads.submit(lambda: asyncio.run(some(0))),
            1: threads.submit(lambda: asyncio.run(some(1))),
            2: threads.submit(lambda: trio.run(some_on_trio, 2)),
            3: threads.submit(in_threads, 3),
            4: threads.submit(in_threads, 4),
        }
        for number, each in work.items():
            assert each.result(20) == [f"{number}\n"] * 8
    assert the_zygote() == zygote


def test_many_threads_start_one_zygote(make: Make) -> None:
    box = make()
    together = threading.Barrier(8)

    def first() -> str:
        together.wait()
        return box.execute_sync("print(hash('zygote'))").stdout

    with ThreadPoolExecutor(8) as threads:
        assert len({each.result(10) for each in [threads.submit(first) for _ in range(8)]}) == 1
    assert len(launchers_of(os.getpid())) == 1

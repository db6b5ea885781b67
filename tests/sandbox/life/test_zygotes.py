"""A zygote that ends, hangs or is worn is replaced: calls in flight get an answer, the next ones another."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sandbox import EndedBy, PythonSandbox, SandboxDied, SandboxError, SandboxUnavailable
from sandbox.linux import call, handle
from tests.sandbox.life.conftest import Calls, Make, started
from tests.sandbox.life.family import (
    cgroups_of,
    eventually,
    launchers_of,
    resident_bytes,
    the_zygote,
)

WHICH = "print(hash('zygote'))"  # children of one zygote share the seed of hashes
PARTS = {
    "zygote": lambda each: each.pid,
    "reaper": lambda each: each.reaper,
    "launcher": lambda each: each.launcher,
}
SOON_S = 2.0


@pytest.mark.parametrize("part", PARTS)
def test_calls_in_flight_hear_that_it_died_and_the_next_one_works(calls: Calls, part: str) -> None:
    in_flight = [calls.begin(), calls.begin(session="a")]
    killed = the_zygote()
    os.kill(PARTS[part](killed), signal.SIGKILL)
    killed_s = time.monotonic()
    for each in in_flight:
        with pytest.raises(
            SandboxDied, match=r"the sandbox's zygote ended during the call; the .* was ended"
        ):
            each.result(5)
    assert calls.box.execute_sync("print(1)").stdout == "1\n"
    again = calls.box.execute_sync("print(1)", session="a")
    assert (again.stdout, again.session_started) == ("1\n", True)
    assert time.monotonic() - killed_s < SOON_S
    assert eventually(lambda: killed.is_gone)
    assert the_zygote().launcher != killed.launcher


@pytest.mark.parametrize("part", PARTS)
def test_nobody_notices_when_it_dies_while_idle(box: PythonSandbox, part: str) -> None:
    assert box.execute_sync("x = 1", session="a").success
    killed = the_zygote()
    assert eventually(lambda: len(killed.children()) == 3)
    os.kill(PARTS[part](killed), signal.SIGKILL)
    assert eventually(lambda: killed.is_gone)
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(box.execute_sync, ["print(1)"] * 6))
    assert [each.stdout for each in answers] == ["1\n"] * 6
    assert box.execute_sync("print('x' in globals())", session="a").stdout == "False\n"


def test_what_a_killed_launcher_left_is_cleaned_up_by_the_next_one(box: PythonSandbox) -> None:
    killed = the_zygote()
    if not cgroups_of(killed.launcher):
        pytest.skip("needs a cgroup that can be divided")
    os.kill(killed.launcher, signal.SIGKILL)
    assert eventually(lambda: killed.is_gone)
    assert box.execute_sync("print(1)").stdout == "1\n"
    assert eventually(lambda: not cgroups_of(killed.launcher))


def test_a_killed_warm_child_costs_no_call(box: PythonSandbox) -> None:
    zygote = the_zygote()
    assert eventually(lambda: len(zygote.children()) == 2)
    warm = set(zygote.children())
    for pid in warm:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not warm & set(zygote.children()))
    for _ in range(3):
        assert box.execute_sync("print(1)").stdout == "1\n"
    assert the_zygote() == zygote


def test_a_stopped_zygote_does_not_give_a_call_more_time_and_is_replaced(calls: Calls) -> None:
    stopped = the_zygote()
    began_s = time.monotonic()
    late = calls.begin(timeout_seconds=0.5)
    os.kill(stopped.pid, signal.SIGSTOP)
    result = late.result(5)
    assert time.monotonic() - began_s < 0.5 + 2.5
    assert (result.ended_by, result.stdout) == (EndedBy.TIME, "begun\n")
    assert calls.box.execute_sync(WHICH).success
    assert eventually(lambda: stopped.is_gone)
    assert the_zygote().launcher != stopped.launcher


def test_a_call_whose_end_nobody_reports_is_an_error_soon_and_once(
    box: PythonSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "_REPORT_S", 1.0)
    stopped = the_zygote()
    assert eventually(lambda: len(stopped.children()) == 2)
    os.kill(stopped.pid, signal.SIGSTOP)
    began_s = time.monotonic()
    with pytest.raises(SandboxDied, match="does not say how the call ended"):
        box.execute_sync("import time, sys; time.sleep(0.05); sys.exit(3)")
    assert time.monotonic() - began_s < 3
    assert box.execute_sync("import sys; sys.exit(3)").return_code == 3
    assert eventually(lambda: stopped.is_gone)


def test_callers_that_wait_for_a_stopped_zygote_get_another(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle, "_ANSWER_S", 0.5)
    box = started(make())
    stopped = the_zygote()
    assert eventually(lambda: len(stopped.children()) == 2)
    os.kill(stopped.pid, signal.SIGSTOP)
    for pid in stopped.children():  # so that it has none to give
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not stopped.children())
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(box.execute_sync, ["print(1)"] * 6))
    assert [each.stdout for each in answers] == ["1\n"] * 6
    assert eventually(lambda: stopped.is_gone)


def test_a_zygote_that_is_only_busy_is_not_replaced(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle, "_ANSWER_S", 0.5)
    box = started(make(max_concurrent_calls=1))
    zygote = the_zygote()
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(box.execute_sync, ["import time; time.sleep(2.5)", "print(1)"]))
    assert answers[1].stdout == "1\n"
    assert the_zygote() == zygote


def module(folder: Path, code: str) -> dict[str, Any]:
    """A module that is imported before any code."""
    folder.chmod(0o755)  # whoever a root server's sandbox becomes can read it
    (folder / "preloaded.py").write_text(code)
    return {"packages": str(folder), "preload": ("preloaded",)}


def test_a_zygote_that_always_dies_at_its_start_is_an_error_and_not_a_loop(
    make: Make, tmp_path: Path
) -> None:
    box = make(**module(tmp_path, "import os; os._exit(7)"))
    for _ in range(2):
        with pytest.raises(SandboxUnavailable):
            box.execute_sync("")
    assert eventually(lambda: not launchers_of(os.getpid()))


def test_what_a_preload_said_before_it_ended_is_in_the_error(make: Make, tmp_path: Path) -> None:
    box = make(**module(tmp_path, "import os; os.write(2, b'no licence'); os._exit(7)"))
    with pytest.raises(SandboxUnavailable, match="no licence"):
        box.execute_sync("")


def test_a_zygote_that_dies_soon_after_its_start_is_an_error_and_not_a_loop(
    make: Make, tmp_path: Path
) -> None:
    die = "import os, signal\nsignal.signal(signal.SIGALRM, signal.SIG_DFL)\nsignal.setitimer(0, 0.05)"
    box = make(**module(tmp_path, die))
    began_s = time.monotonic()
    problems = 0
    for _ in range(3):
        try:
            box.execute_sync("import time; time.sleep(1)")
        except SandboxError:
            problems += 1
    assert problems == 3
    assert time.monotonic() - began_s < 5


def test_one_failed_start_is_the_answer_to_all_who_wait(make: Make, tmp_path: Path) -> None:
    box = make(**module(tmp_path, "import os, time; time.sleep(0.2); os._exit(7)"))
    began_s = time.monotonic()
    with ThreadPoolExecutor(20) as threads:
        futures = [threads.submit(box.execute_sync, "") for _ in range(20)]
        for each in futures:
            with pytest.raises(SandboxUnavailable):
                each.result(10)
    assert time.monotonic() - began_s < 5


def test_recycling_after_some_calls_loses_none(make: Make) -> None:
    box = started(make(recycle_calls=10, max_concurrent_calls=8))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(box.execute_sync, [WHICH] * 120))
    assert all(each.success for each in answers)
    assert len({each.stdout for each in answers}) >= 4
    assert eventually(lambda: len(launchers_of(os.getpid())) <= 2)


def test_recycling_by_age_loses_no_call(make: Make) -> None:
    box = started(make(recycle_seconds=0.3))
    seen = set()

    def call_until_replaced() -> bool:
        result = box.execute_sync(WHICH)
        assert result.success
        seen.add(result.stdout)
        return len(seen) >= 3

    assert eventually(call_until_replaced)


def test_a_replacement_that_cannot_start_leaves_the_worn_one_at_work(make: Make, tmp_path: Path) -> None:
    box = started(make(recycle_calls=2, **module(tmp_path, "answer = 42")))
    worn = the_zygote()
    (tmp_path / "preloaded.py").write_text("import os; os._exit(7)")
    for _ in range(12):
        assert box.execute_sync("import preloaded; print(preloaded.answer)").stdout == "42\n"
        time.sleep(0.03)  # while the replacement starts and fails
    assert eventually(lambda: the_zygote() == worn)


def test_a_session_outlives_the_recycling_of_its_zygote_which_goes_with_it(make: Make) -> None:
    box = started(make(recycle_calls=3))
    old = the_zygote()
    which = box.execute_sync("x = 1\n" + WHICH, session="a").stdout
    assert eventually(lambda: box.execute_sync(WHICH).stdout != which)
    assert box.execute_sync("x += 1\nprint(x)\n" + WHICH, session="a").stdout == f"2\n{which}"
    assert eventually(lambda: len(old.children()) == 1), "a retired zygote keeps no warm children"
    assert box.end_session("a")
    assert eventually(lambda: old.is_gone)
    assert box.execute_sync(WHICH).success


def test_the_pool_is_full_again_after_calls(make: Make) -> None:
    box = started(make(pool_size=3))
    zygote = the_zygote()
    for _ in range(3):
        with ThreadPoolExecutor(4) as threads:
            assert all(each.success for each in threads.map(box.execute_sync, [""] * 12))
        assert eventually(lambda: len(zygote.children()) == 3)


def test_the_memory_of_a_zygote_stays_the_same(box: PythonSandbox) -> None:
    def calls(count: int) -> None:
        for number in range(count):
            box.execute_sync("print('x' * 1000)", session="a" if number % 10 == 0 else None)
            box.execute_sync("1 / 0")

    calls(20)
    zygote = the_zygote()
    before = resident_bytes(zygote.pid), resident_bytes(zygote.reaper)
    calls(100)
    assert the_zygote() == zygote
    assert resident_bytes(zygote.pid) - before[0] <= 200_000
    assert resident_bytes(zygote.reaper) - before[1] <= 100_000

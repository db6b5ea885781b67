"""Each tenant has a zygote of its own; over the limit the one that is idle for longest goes."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import SandboxBusy, SandboxClosed
from tests.sandbox.life.conftest import Calls, Make, started
from tests.sandbox.life.family import children_of, eventually, launchers_of, the_zygote, zygotes_of

WHICH = "print(hash('zygote'))"  # children of one zygote share the seed of hashes


def zygote_count() -> int:
    return len(launchers_of(os.getpid()))


def test_tenants_share_no_zygote(make: Make) -> None:
    box = started(make())
    seen = {tenant: box.execute_sync(WHICH, tenant=tenant).stdout for tenant in ("", "a", "b")}
    assert len(set(seen.values())) == 3
    assert {tenant: box.execute_sync(WHICH, tenant=tenant).stdout for tenant in seen} == seen


def test_the_tenant_that_was_idle_for_longest_goes(make: Make) -> None:
    box = started(make(max_tenants=2))
    first = {tenant: box.execute_sync(WHICH, tenant=tenant).stdout for tenant in ("a", "b")}
    assert box.execute_sync(WHICH, tenant="a").stdout == first["a"]
    assert box.execute_sync("", tenant="c").success
    assert eventually(lambda: zygote_count() == 2)
    assert box.execute_sync(WHICH, tenant="a").stdout == first["a"]
    assert box.execute_sync(WHICH, tenant="b").stdout != first["b"]
    assert eventually(lambda: zygote_count() == 2)


def test_a_tenant_with_a_call_does_not_go(make: Make, tmp_path: Path) -> None:
    calls = Calls(make, tmp_path, max_tenants=2)
    first = calls.box.execute_sync(WHICH, tenant="a").stdout
    wait = "import os\nwhile not os.path.exists('/work/go'):\n    time.sleep(0.01)\nprint('done')"
    long = calls.begin(wait, tenant="a")  # used before the others, and still in use
    for tenant in ("b", "c", "d"):
        assert calls.box.execute_sync("", tenant=tenant).success
    (tmp_path / "go").touch()
    assert long.result(5).stdout == "begun\ndone\n"
    assert calls.box.execute_sync(WHICH, tenant="a").stdout == first


def test_a_call_waits_while_all_tenants_are_in_use(make: Make, tmp_path: Path) -> None:
    calls = Calls(make, tmp_path, max_tenants=1)
    long = calls.begin("time.sleep(0.4)", tenant="a")
    began_s = time.monotonic()
    assert calls.box.execute_sync("print(1)", tenant="b").stdout == "1\n"
    assert 0.2 < time.monotonic() - began_s < 2
    assert long.result(5).success
    assert eventually(lambda: zygote_count() == 1)


def test_a_call_gives_up_when_tenants_stay_in_use(make: Make, tmp_path: Path) -> None:
    calls = Calls(make, tmp_path, max_tenants=1, queue_seconds=0.3)
    calls.begin()
    with pytest.raises(SandboxBusy, match=r"0\.3 s"):
        calls.box.execute_sync("", tenant="b")


def test_many_tenants_at_once_stay_within_the_limit(make: Make) -> None:
    box = started(make(max_tenants=2, pool_size=1))
    most = 0
    with ThreadPoolExecutor(6) as threads:
        futures = [threads.submit(box.execute_sync, "print(1)", tenant=str(each % 6)) for each in range(18)]
        while not all(each.done() for each in futures):
            most = max(most, len(zygotes_of()))
            time.sleep(0.002)
    assert [each.result().stdout for each in futures] == ["1\n"] * 18
    assert most <= 2 + 1, "one may still be ending"
    assert eventually(lambda: zygote_count() <= 2)


def test_a_session_outlives_the_eviction_of_its_tenant(make: Make) -> None:
    box = started(make(max_tenants=1))
    box.execute_sync("x = 1", session="s", tenant="a")
    assert box.execute_sync("", tenant="b").success
    again = box.execute_sync("x += 1\nprint(x)", session="s", tenant="a")
    assert (again.stdout, again.session_started) == ("2\n", False)
    assert box.end_session("s", tenant="a")
    assert eventually(lambda: zygote_count() == 0)


WAITS_FOR_A_FILE = """
import os, time
while not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
    time.sleep(0.01)
"""


def test_making_a_sandbox_costs_nothing_and_warming_it_waits_for_nothing(make: Make, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "preloaded.py").write_text(WAITS_FOR_A_FILE)
    before, children = set(os.listdir("/proc/self/fd")), children_of(os.getpid())
    box = make(packages=str(tmp_path), preload=("preloaded",))
    assert children_of(os.getpid()) == children  # a Docker engine of other tests may be one
    assert set(os.listdir("/proc/self/fd")) <= before
    assert box.level is None
    box.warm()
    (tmp_path / "go").touch()  # nothing comes up before this, so whoever waited for it would wait for ever
    assert eventually(lambda: len(the_zygote().children()) == 2)
    zygote = the_zygote()
    box.warm()
    assert box.execute_sync("print(1)").stdout == "1\n"
    assert the_zygote() == zygote
    box.warm(tenant="a")
    assert eventually(lambda: len(zygotes_of()) == 2)
    box.close()
    with pytest.raises(SandboxClosed):
        box.warm()


def test_what_goes_wrong_in_the_background_is_said_to_the_next_call(make: Make, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "preloaded.py").write_text("raise RuntimeError('no licence')")
    box = make(packages=str(tmp_path), preload=("preloaded",))
    box.warm()
    assert eventually(lambda: not launchers_of(os.getpid()))
    with pytest.raises(Exception, match="no licence"):
        box.execute_sync("")


def test_nothing_ends_with_the_thread_that_started_it(make: Make) -> None:
    box = make()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(started, box).result() is box
        thread.submit(box.execute_sync, "x = 1", session="s").result()
    zygote = the_zygote()
    assert box.execute_sync("print(x)", session="s").stdout == "1\n"
    for _ in range(4):
        assert box.execute_sync("print(1)").stdout == "1\n"
    assert the_zygote() == zygote

"""CPU time of processes that nobody waits for: it counts against the limit of a call, in sessions too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import EndedBy
from sandbox.linux.handle import pid_of
from sandbox.linux.memory import Tally
from tests.sandbox.levels import L3, L4, L4_PLUS, Boxes, Place, at
from tests.sandbox.life.family import eventually
from tests.sandbox.places import Elsewhere

BURN = """
import os, signal, time
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
"""
# Nobody asks for their status: what they used is in no process's time of its children.
CHILDREN = f"""{BURN}
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range({{count}}):
    if os.fork() == 0:
        burn(0.1)
        os._exit(0)
    try:
        os.wait()
    except ChildProcessError:
        pass
sum(os.times()[:4])
"""
# Each lives for a moment only, so whoever looks at what lives sees little of it.
SHORT_LIVED = f"""{BURN}
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        burn(0.005)
        os._exit(0)
    try:
        os.wait()
    except ChildProcessError:
        pass
"""


@pytest.fixture(scope="module")
def boxes(elsewhere: Elsewhere) -> Iterator[Boxes]:
    with Boxes(elsewhere) as made:
        yield made


@pytest.mark.parametrize("name", [None, "limited"], ids=["call", "session"])
@at(L4_PLUS, L4, L3)
def test_the_limit_holds_for_children_that_nobody_waits_for(
    place: Place, boxes: Boxes, name: str | None
) -> None:
    own_s = boxes.at(place).execute_sync(CHILDREN.format(count=3), session=name).value
    assert own_s is not None
    assert float(own_s) < 0.25, "their time is not lost: this shows nothing"
    box = boxes.at(place, max_cpu_seconds=0.4)
    box.execute_sync("x = 1", session=name)
    ended = box.execute_sync(CHILDREN.format(count=60), session=name)
    assert (ended.ended_by, ended.session_lost) == (EndedBy.CPU, False), ended
    assert 250 < ended.cpu_ms < 1500
    for _ in range(3):  # each call has a limit of its own
        assert box.execute_sync(CHILDREN.format(count=2), session=name).success
    if name is not None:
        assert box.execute_sync("x", session=name).value == "1"


@pytest.mark.parametrize("name", [None, "short"], ids=["call", "session"])
@at(L4_PLUS)
def test_the_limit_holds_for_processes_that_live_for_a_moment(
    place: Place, boxes: Boxes, name: str | None
) -> None:
    box = boxes.at(place, max_cpu_seconds=0.4)
    ended = box.execute_sync(SHORT_LIVED, session=name)
    assert (ended.ended_by, ended.session_lost) == (EndedBy.CPU, False), ended
    assert ended.duration_ms < 3000, "only the caller was looked at"
    assert box.execute_sync("6 * 7", session=name).value == "42"


@at(L4_PLUS)
def test_the_time_of_a_session_s_call_is_its_own(place: Place, boxes: Boxes) -> None:
    box = boxes.at(place)
    waiting = f"{BURN}\nif os.fork() == 0:\n    burn(0.1)\n    os._exit(0)\nos.wait()"
    for code in (CHILDREN.format(count=1), waiting):
        assert 95 < box.execute_sync(code, session="own").cpu_ms < 600
        assert box.execute_sync("time.sleep(0.1)", session="own").cpu_ms < 40


@at(L4_PLUS)
def test_the_counter_of_a_session_is_not_left_to_its_code(place: Place, boxes: Boxes) -> None:
    box = boxes.here()
    box.execute_sync("1", session="counter")
    session = box._sessions.find("", "counter")
    assert session is not None
    try:
        init = pid_of(session.pidfd)
        assert any(counters(init)), "nothing has it: this shows nothing"
        children = Path(f"/proc/{init}/task/{init}/children")
        assert eventually(lambda: len(children.read_text().split()) == 1)
        (template,) = map(int, children.read_text().split())
        callers = Path(f"/proc/{template}/task/{template}/children").read_text().split()
        assert len(callers) == 1
        assert not any(counters(pid) for pid in (template, int(callers[0])))
    finally:
        box._sessions.leave(session)
        box.end_session("counter")


def counters(pid: int) -> list[str]:
    links = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if link.rpartition("/")[2] in {"cpuacct.usage", "cpu.stat"}]


def test_a_tally_keeps_what_a_process_had_used_when_it_was_last_seen() -> None:
    tally = Tally()
    child = subprocess.Popen([sys.executable, "-c", f"{BURN}\nburn(0.05)\nsignal.pause()"])
    try:
        assert eventually(lambda: tally.look([child.pid]) > 50_000_000)
    finally:
        child.kill()
        child.wait()
    before_ns = tally.total_ns
    assert tally.look([os.getpid()]) > before_ns
    assert tally.look([]) > before_ns
    assert tally.total_ns == tally.look([])

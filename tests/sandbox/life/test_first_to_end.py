"""Which process of a session the kernel ends first for its memory, and that its init is still walled in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.sandbox.levels import L3, L3_USER, L4, L4_PLUS, L4_USER, Boxes, Place, at
from tests.sandbox.life.family import eventually
from tests.sandbox.places import Elsewhere

KEEPING = at(L4_PLUS, L4, L3, L4_USER, L3_USER)
CALL_ITSELF = "import ctypes\nctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0)"


@pytest.fixture(scope="module")
def boxes(elsewhere: Elsewhere) -> Iterator[Boxes]:
    with Boxes(elsewhere) as made:
        yield made


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


def named(name: str) -> list[int]:
    """Processes that call themselves so: a session's template, and the caller that was forked from it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if status(int(pid))["Name"] == name:
                found.append(int(pid))
    return found


def scores(name: str) -> list[int]:
    found = []
    for pid in named(name):
        with suppress(OSError):
            found.append(int(Path(f"/proc/{pid}/oom_score_adj").read_text()))
    return sorted(found)


@KEEPING
def test_the_caller_is_ended_before_the_state_that_the_session_goes_back_to(
    place: Place, boxes: Boxes
) -> None:
    box, name = boxes.at(place, timeout_seconds=10.0), f"s{os.getpid()}"
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert own < 1000, "otherwise this shows nothing"
    for code in (CALL_ITSELF.format(name=name.encode()), "1", "import os; os._exit(3)", "2"):
        box.execute_sync(code, session="scores")
        assert eventually(lambda: scores(name) == [own, 1000]), scores(name)
    box.end_session("scores")


@KEEPING
def test_init_and_code_are_both_behind_walls(place: Place, boxes: Boxes) -> None:
    box, name = boxes.at(place, timeout_seconds=10.0), f"w{os.getpid()}"
    assert box.execute_sync(CALL_ITSELF.format(name=name.encode()), session="walls").success
    assert eventually(lambda: len(named(name)) == 2)
    pids = named(name)
    init = {int(status(pid)["PPid"]) for pid in pids} - set(pids)
    assert len(init) == 1
    for pid in (*pids, *init):
        found = status(pid)
        assert (found["Seccomp"], found["NoNewPrivs"], int(found["CapEff"], 16)) == ("2", "1", 0)
    box.end_session("walls")


@KEEPING
def test_code_of_a_session_writes_to_no_file_of_proc(place: Place, boxes: Boxes) -> None:
    code = """
import os
opened = []
for pid in ("self", "1", str(os.getppid())):
    for file in ("oom_score_adj", "comm", "mem"):
        try:
            os.close(os.open(f"/proc/{pid}/{file}", os.O_WRONLY))
            opened.append((pid, file))
        except OSError:
            pass
opened"""
    box = boxes.at(place, timeout_seconds=10.0)
    for _ in range(2):
        assert box.execute_sync(code, session="writes").value == "[]"
    box.end_session("writes")

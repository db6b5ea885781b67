"""Sessions in the agent: what a call leaves for the next, and how they come back from an ended call."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.sandbox.docker.agents import USER, WAIT_S, Agent, agent
from tests.sandbox.places import interpreter_for_all

pytestmark = pytest.mark.skipif(os.getuid() not in {0, USER}, reason=f"needs root, or to be user {USER}")

LOST_CALLS = {
    "time": ("x = 7\nwhile True: pass", "time", signal.SIGKILL),
    "output": ("import os; x = 7\nwhile True: os.write(1, b'x' * 65536)", "output", signal.SIGKILL),
    "crash": ("import os; x = 7; os.kill(os.getpid(), 11)", None, signal.SIGSEGV),
}


@pytest.fixture
def session() -> Iterator[Agent]:
    with agent(interpreter_for_all()) as running:
        assert running.set_up(session=True) == {"ready": 1}
        assert running.call("x = 1").end["state"] == "kept"
        assert running.ready() == {"ready": 2}
        yield running


def test_variables_stay_for_the_next_call(session: Agent) -> None:
    came = session.call("x += 1; x")
    assert (came.said["value"], came.end["state"], came.end["exit"]) == ("2", "kept", None)
    assert came.end["cpu_ns"] > 0
    assert session.ready() == {"ready": 3}


def test_an_exception_leaves_what_was_done_before_it(session: Agent) -> None:
    came = session.call("x = 5; 1/0")
    assert (came.said["exception"], came.end["state"]) == ("ZeroDivisionError", "kept")
    session.ready()
    assert session.call("x").said["value"] == "5"


@pytest.mark.parametrize("case", LOST_CALLS)
def test_a_call_that_is_ended_is_as_if_it_had_never_been(session: Agent, case: str) -> None:
    code, why, number = LOST_CALLS[case]
    came = session.call(code, wall_s=1.0 if why == "time" else 20.0)
    assert (came.end["why"], came.end["signal"], came.end["state"]) == (why, number, "rolled back")
    assert session.ready() == {"ready": 3}
    assert session.call("x").said["value"] == "1"


def test_a_process_that_leaves_by_itself_takes_its_call_with_it(session: Agent) -> None:
    came = session.call("import os; x = 7; print('on'); os._exit(3)")
    assert (came.out, came.end["exit"], came.end["state"]) == (b"on\n", 3, "rolled back")
    session.ready()
    assert session.call("x").said["value"] == "1"


def test_the_server_can_end_a_call_and_go_on(session: Agent) -> None:
    session.begin("x = 7\nprint('on', flush=True)\nwhile True: pass")
    assert session.receive()[0].get("out") == 1
    session.send({"kill": 2})
    end = session.end().end
    assert (end["why"], end["signal"], end["state"]) == (None, signal.SIGKILL, "rolled back")
    session.ready()
    assert session.call("x").said["value"] == "1"


def test_a_late_word_to_end_a_call_ends_no_other(session: Agent) -> None:
    session.send({"kill": 1})
    assert session.call("x").end["state"] == "kept"


def test_processes_do_not_outlive_the_call_that_started_them(session: Agent) -> None:
    code = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(100)\nx = 2"
    assert session.call(code).end["state"] == "kept"
    session.ready()
    assert len(session.left()) == 2, "template and caller"


def test_the_cpu_time_of_a_call_is_bounded_in_each_call_alone() -> None:
    with agent(interpreter_for_all()) as running:
        running.set_up({"cpu_ns": 400_000_000, "cpu_s": 1}, session=True)
        burn = "import time\nwhile time.process_time() - began < 0.25: pass"
        for _ in range(3):
            assert running.call(f"import time; began = time.process_time()\n{burn}").end["state"] == "kept"
            running.ready()
        came = running.call("while True: pass")
        assert (came.end["why"], came.end["state"]) == ("cpu", "rolled back")


def test_a_session_that_is_not_used_ends() -> None:
    with agent(interpreter_for_all()) as running:
        running.set_up(session=True, session_idle_s=0.3)
        assert running.receive() == ({}, [])
        assert running.process.wait(WAIT_S) == 0


def test_when_the_server_goes_so_does_the_session(session: Agent) -> None:
    session.begin("print('on', flush=True)\nwhile True: pass")
    session.receive()
    assert session.process.stdin is not None
    session.process.stdin.close()
    assert session.process.wait(WAIT_S) == 0
    assert session.left() == []


def test_init_cannot_be_reached_by_the_code(session: Agent) -> None:
    code = """
import os
refused = []
init = int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])
for pid in (init, -init, -1):
    try:
        os.kill(pid, 9)
    except PermissionError:
        refused.append(pid)
len(refused)"""
    came = session.call(code)
    assert (came.said["value"], came.end["state"]) == ("3", "kept")
    assert session.ready() == {"ready": 3}


def test_what_the_code_says_on_the_sockets_of_the_session_harms_only_itself(session: Agent) -> None:
    code = """
import os, socket, stat
for fd in range(3, 30):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            sock = socket.socket(fileno=fd)
            for word in (b'{"ready": true}', b'[' * 100_000, b'{"caller": 1}', b"\\xff"):
                sock.send(word, socket.MSG_DONTWAIT)
    except OSError:
        pass
while True: pass"""
    came = session.call(code, wall_s=2.0)
    assert "failed" in came.end, "who says what makes no sense loses the session"
    assert session.process.wait(WAIT_S) == 1
    assert session.left() == []


def test_without_a_way_back_a_session_ends_with_the_first_call_that_is_ended() -> None:
    with agent(interpreter_for_all()) as running:
        assert running.set_up(session=True, keep_state=False) == {"ready": 1}
        assert running.call("x = 1").end["state"] == "kept"
        assert running.ready() == {"ready": 2}
        assert running.call("x + 1").said["value"] == "2"
        assert running.ready() == {"ready": 3}
        came = running.call("while True: pass", wall_s=0.5)
        assert (came.end["why"], came.end["state"]) == ("time", "lost")
        assert running.receive() == ({}, [])

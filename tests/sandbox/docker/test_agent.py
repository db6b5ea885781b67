"""One call in the agent: what comes of it, what ends it, and that it cannot reach the agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from sandbox.docker import bundle
from tests.sandbox.docker.agents import USER, WAIT_S, Agent, agent
from tests.sandbox.places import interpreter_for_all

pytestmark = pytest.mark.skipif(os.getuid() not in {0, USER}, reason=f"needs root, or to be user {USER}")


@pytest.fixture
def fresh() -> Iterator[Agent]:
    with agent(interpreter_for_all()) as running:
        yield running


@pytest.fixture
def waiting(fresh: Agent) -> Agent:
    assert fresh.set_up() == {"ready": 1}
    return fresh


def gone(pid: int) -> bool:
    """Whether a process ends within the time that tests wait."""
    until_s = time.monotonic() + WAIT_S
    while time.monotonic() < until_s:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                if file.read().rpartition(b") ")[2][:1] in b"ZX":
                    return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_the_bundle_is_small_and_always_the_same() -> None:
    first = bundle.payload()
    bundle.payload.cache_clear()
    assert first == bundle.payload()
    assert len(first) < 100_000


def test_the_agent_says_what_it_runs_as(fresh: Agent) -> None:
    hello = fresh.hello["hello"]
    assert (hello["uid"], hello["cap_eff"], hello["no_new_privs"]) == (USER, 0, 1)
    assert hello["python"].startswith("3.")


def test_started_as_root_it_is_root_no_more() -> None:
    with agent(interpreter_for_all(), as_container=False) as running:
        assert running.hello["hello"]["uid"] == USER
        assert running.set_up() == {"ready": 1}
        assert running.call("import os; (os.getuid(), os.getgroups())").said["value"] == f"({USER}, [])"


def test_a_call_comes_back_with_all_that_it_left(waiting: Agent) -> None:
    code = """
import os, sys
print("out"); print("err", file=sys.stderr)
with open(os.environ["SANDBOX_OUT"] + "/copy", "w") as file:
    file.write(open("given/in").read().upper())
6 * 7"""
    came = waiting.call(code, files={"given/in": b"text"})
    assert (came.out, came.err, came.said["value"]) == (b"out\n", b"err\n", "42")
    assert came.artifacts == {"copy": b"TEXT"}
    assert (came.end["exit"], came.end["signal"], came.end["why"]) == (0, None, None)
    assert came.end["cpu_ns"] > 0
    assert came.end["peak_bytes"] > 1 << 20


def test_after_its_one_call_the_agent_ends(waiting: Agent) -> None:
    assert waiting.call("1").end["exit"] == 0
    assert waiting.receive() == ({}, [])
    assert waiting.process.wait(WAIT_S) == 0


@pytest.mark.parametrize(
    ("code", "exit_code", "number"),
    [
        ("import sys; sys.exit(3)", 3, None),
        ("import os; os._exit(4)", 4, None),
        ("1/0", 1, None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", None, signal.SIGSEGV),
    ],
)
def test_how_the_code_ended_is_told(
    waiting: Agent, code: str, exit_code: int | None, number: int | None
) -> None:
    end = waiting.call(code).end
    assert (end["exit"], end["signal"], end["why"], end["state"]) == (exit_code, number, None, "lost")


def test_a_call_ends_at_its_time_with_what_it_printed_and_everything_it_started(waiting: Agent) -> None:
    code = """
import subprocess, sys
sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(100)"]
print(subprocess.Popen(sleeper, start_new_session=True).pid)
while True: pass"""
    began_s = time.monotonic()
    came = waiting.call(code, wall_s=1.0)
    assert 0.9 < time.monotonic() - began_s < 5
    assert (came.end["why"], came.end["signal"]) == ("time", signal.SIGKILL)
    assert gone(int(came.out))


def test_a_call_ends_at_its_cpu_time_whoever_of_it_uses_it(fresh: Agent) -> None:
    fresh.set_up({"cpu_ns": 300_000_000, "cpu_s": 1})
    came = fresh.call("import os\nif os.fork() == 0:\n    while True: pass\nos.wait()")
    assert came.end["why"] == "cpu"
    assert 0.3e9 <= came.end["cpu_ns"] < 2e9


def test_a_flood_of_output_ends_the_call(waiting: Agent) -> None:
    came = waiting.call("import os\nwhile True: os.write(1, b'x' * 65536)")
    assert came.end["why"] == "output"
    assert came.out == b"x" * 100_000
    assert came.end["dropped"][0] > 16 << 20


def test_output_beyond_the_limit_is_counted(waiting: Agent) -> None:
    came = waiting.call("print('x' * 150_000)")
    assert (len(came.out), came.end["dropped"], came.end["exit"]) == (100_000, [50_001, 0], 0)


def test_what_a_server_does_not_read_yet_does_not_keep_the_limits_from_holding(fresh: Agent) -> None:
    fresh.set_up(max_output_bytes=1 << 24)
    fresh.begin("import os\nfor i in range(200): os.write(1, b'x' * 65536)", wall_s=1.0)
    time.sleep(2.0)  # more than the pipe and the agent's queue hold waits meanwhile
    came = fresh.end()
    assert came.end["why"] == "time"
    assert 0 < len(came.out) < 1 << 23


def test_the_server_can_end_a_call(waiting: Agent) -> None:
    waiting.begin("print('on', flush=True)\nwhile True: pass")
    assert waiting.receive()[1][0].startswith(b"on")
    waiting.send({"kill": 1})
    end = waiting.end().end
    assert (end["why"], end["signal"]) == (None, signal.SIGKILL)


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(100)"])
def test_when_the_server_goes_so_does_everything(waiting: Agent, code: str) -> None:
    waiting.begin(f"import os\nprint(os.getpid(), os.fork(), flush=True)\n{code}")
    pids = set()
    while len(pids) < 2:
        pids |= {int(word) for blob in waiting.receive()[1] for word in blob.split()} - {0}
    assert waiting.process.stdin is not None
    waiting.process.stdin.close()
    assert waiting.process.wait(WAIT_S) == 0
    assert all(map(gone, pids))


def test_what_a_call_leaves_behind_is_gone_when_its_end_is_told(waiting: Agent) -> None:
    code = """
import os, time
if (pid := os.fork()) == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    while True: time.sleep(1)
os.waitpid(pid, 0)
print(open(f"/proc/{os.getpid()}/stat").read().split()[3])"""
    assert len(waiting.left()) == 1
    waiting.call(code)
    assert waiting.left() == []


def test_a_fork_bomb_ends_with_its_call(fresh: Agent) -> None:
    fresh.set_up({"processes": 8})
    came = fresh.call("import os\nwhile True:\n    os.fork()", wall_s=5.0)
    assert came.end["why"] == "processes" or came.end["refused_forks"]
    assert fresh.left() == []


def test_memory_is_bounded_where_no_cgroup_does_it(fresh: Agent) -> None:
    if fresh.hello["hello"]["limits_memory"]:
        pytest.skip("a cgroup bounds it here")
    fresh.set_up({"memory_bytes": 64 << 20})
    assert fresh.call("bytearray(200 << 20)").said["limit"] == "memory"


def test_memory_of_many_processes_is_bounded_where_no_cgroup_does_it(fresh: Agent) -> None:
    if fresh.hello["hello"]["limits_memory"]:
        pytest.skip("a cgroup bounds it here")
    fresh.set_up({"memory_bytes": 64 << 20})
    code = "import os, time\nfor _ in range(3): os.fork()\nx = b'x' * (30 << 20)\ntime.sleep(20)"
    assert fresh.call(code).end["why"] == "memory"


def test_modules_are_there_before_the_call(fresh: Agent) -> None:
    fresh.set_up(preload=["decimal"])
    assert fresh.call("import sys; 'decimal' in sys.modules").said["value"] == "True"


def test_a_module_that_cannot_be_preloaded_is_named(fresh: Agent) -> None:
    assert "no_such_module" in fresh.set_up(preload=["no_such_module"])["failed"]


def test_variables_are_those_that_the_server_says() -> None:
    with agent(interpreter_for_all(), environment={"SECRET": "of the image"}) as running:
        running.set_up(environment={"GIVEN": "yes"})
        came = running.call("import os; (os.environ.get('SECRET'), os.environ['GIVEN'])")
        assert came.said["value"] == "(None, 'yes')"


@pytest.mark.parametrize("options", [{}, {"session": True}, {"session": True, "keep_state": False}])
def test_a_wall_that_cannot_be_put_up_is_named(fresh: Agent, options: dict[str, bool]) -> None:
    assert "/no/such" in fresh.set_up(folder="/no/such", **options)["failed"]
    assert fresh.process.wait(WAIT_S) == 1


def test_a_mount_that_is_another_folder_is_refused(fresh: Agent) -> None:
    about = os.stat("/usr")
    said = fresh.set_up(mounts=[["/usr", about.st_dev, about.st_ino + 1, False]])
    assert "/usr" in said["failed"]


def test_a_mount_that_is_the_folder_can_be_read(fresh: Agent) -> None:
    about = os.stat("/usr")
    assert fresh.set_up(mounts=[["/usr", about.st_dev, about.st_ino, False]]) == {"ready": 1}


@pytest.mark.parametrize(
    "frame",
    [
        {"call": 1},
        {"setup": {"folder": "/nowhere"}},
        {"call": 7, "max_files": 1, "max_bytes": 1},
        {"setup": {"folder": "/nowhere", "limits": 1}},
    ],
)
def test_a_frame_that_makes_no_sense_ends_the_agent_with_a_reason(
    fresh: Agent, frame: dict[str, int]
) -> None:
    fresh.send(frame)
    assert "failed" in fresh.receive()[0]
    assert fresh.process.wait(WAIT_S) in {0, 1}


ATTACKS = """
import ctypes, json, os, signal, sys
parent = int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid()
own = ctypes.CDLL(None, use_errno=True)
def tried(what):
    try:
        return what() or "done"
    except OSError as error:
        return error.strerror
def system(number, *arguments):
    if own.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
answers = {
    "the agent": tried(lambda: os.kill(parent, 0)),
    "its group": tried(lambda: os.kill(-parent, 0)),
    "its thread": tried(lambda: system(200, parent, 0)),
    "by its folder": tried(lambda: signal.pidfd_send_signal(os.open(f"/proc/{parent}", os.O_RDONLY), 0)),
    "its memory": tried(lambda: os.close(os.open(f"/proc/{parent}/mem", os.O_RDONLY))),
    "its variables": tried(lambda: os.close(os.open(f"/proc/{parent}/environ", os.O_RDONLY))),
    "its priority": tried(lambda: os.setpriority(os.PRIO_PROCESS, parent, 5)),
    "its processors": tried(lambda: os.sched_setaffinity(parent, {0})),
}
print(json.dumps(answers))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="one attack knows the numbers of x86_64")
def test_code_cannot_reach_the_agent_though_it_is_the_same_user(waiting: Agent) -> None:
    python = interpreter_for_all()
    victim = [python, "-I", "-S", "-c", "import time; print('on', flush=True); time.sleep(60)"]
    who = {"user": USER, "group": USER} if os.getuid() == 0 else {}
    with subprocess.Popen(victim, stdout=subprocess.PIPE, process_group=0, **who) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"on\n"
        attacker = [python, "-I", "-S", "-c", ATTACKS, str(process.pid)]
        unprotected = json.loads(subprocess.run(attacker, capture_output=True, check=True, **who).stdout)  # type: ignore[call-overload]
        process.kill()
    assert set(unprotected.values()) == {"done"}, "the attacks work on a process of the same user"
    answers = json.loads(waiting.call(ATTACKS).out)
    assert set(answers.values()) <= {"Operation not permitted", "Permission denied"}, answers


def test_nobody_is_signalled_when_everybody_is_meant(waiting: Agent) -> None:
    came = waiting.call("import os\ntry: os.kill(-1, 9)\nexcept PermissionError: print('refused')")
    assert came.out == b"refused\n"

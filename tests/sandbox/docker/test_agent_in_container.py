"""The agent in a real container: what only its namespaces and its cgroup show."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from sandbox.docker import bundle
from tests.docker_engine import Engine
from tests.sandbox.docker.agents import USER, Agent, running

FLAGS = (
    *("run", "--rm", "-i", "--network=none", "--memory=96m", "--memory-swap=96m", "--pids-limit=36"),
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--log-driver=none"),
    *(f"--tmpfs=/tmp:size=32m,mode=0700,uid={USER},gid={USER}", f"--user={USER}:{USER}"),
)
REACH = """
import os
opened = []
for pid in {1, os.getppid()}:
    for name, mode in (("fd/1", os.O_WRONLY), ("fd/0", os.O_RDONLY), ("mem", os.O_RDWR)):
        try:
            os.close(os.open(f"/proc/{pid}/{name}", mode))
            opened.append(f"{pid}/{name}")
        except OSError:
            pass
opened"""
SIGNALS = """
import os, signal
sent = []
for pid in (1, -1, os.getppid(), -os.getppid()):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
        try:
            os.kill(pid, number)
            sent.append((pid, number))
        except PermissionError:
            pass
sent"""
Start = Callable[..., AbstractContextManager[Agent]]


@pytest.fixture
def start(docker_engine: Engine, docker_image: str) -> Start:
    if shutil.which("docker") is None:
        pytest.skip("needs the docker command")

    @contextmanager
    def started(*options: str, payload: bytes | None = None) -> Iterator[Agent]:
        argv = ["docker", *FLAGS, *options, "--entrypoint=python3", docker_image, *bundle.command()[1:]]
        environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "DOCKER_HOST": docker_engine.address}
        with running(argv, "/tmp", environment=environment, payload=payload) as agent:
            yield agent

    return started


def changed(module: str, old: str, new: str) -> bytes:
    """The bundle with a protection taken out."""
    modules = json.loads(zlib.decompress(bundle.payload().partition(b"\n")[2]))
    assert old in modules[module]
    modules[module] = modules[module].replace(old, new)
    data = zlib.compress(json.dumps(modules).encode())
    return b"%d\n%b" % (len(data), data)


WITHOUT_LANDLOCK = "sandbox.docker.inside.locked", "if landlock.abi():", "if False:"
AS_WITHOUT_LANDLOCK = "sandbox.docker.inside.agent", "os.getpid() == 1 or landlock.abi()", "os.getpid() == 1"


@pytest.mark.parametrize("options", [(), ("--init",)])
def test_the_kernel_ends_what_takes_too_much_memory_and_the_session_goes_on(
    start: Start, options: tuple[str, ...]
) -> None:
    with start(*options) as agent:
        if not agent.hello["hello"]["limits_memory"]:
            pytest.skip("this engine bounds no memory")
        agent.set_up(session=True)
        agent.call("x = 1")
        agent.ready()
        end = agent.call("bytearray(b'x') * (300 << 20)").end
        assert (end["ooms"], end["signal"], end["state"]) == (1, 9, "rolled back")
        agent.ready()
        assert agent.call("x").said["value"] == "1"


def test_a_process_that_the_kernel_ends_ends_its_call(start: Start) -> None:
    with start() as agent:
        if not agent.hello["hello"]["limits_memory"]:
            pytest.skip("this engine bounds no memory")
        agent.set_up()
        code = "import os, time\nif os.fork() == 0:\n    bytearray(b'x') * (300 << 20)\ntime.sleep(30)"
        assert agent.call(code, wall_s=20.0).end["why"] == "memory"


@pytest.mark.parametrize("options", [(), ("--init",)])
def test_code_can_signal_neither_the_agent_nor_the_first_process(
    start: Start, options: tuple[str, ...]
) -> None:
    with start(*options) as agent:
        agent.set_up()
        assert agent.call(SIGNALS).said["value"] == "[]"


@pytest.mark.parametrize("options", [(), ("--init",)])
def test_code_cannot_speak_in_the_place_of_the_agent(start: Start, options: tuple[str, ...]) -> None:
    with start(*options) as agent:
        agent.set_up()
        assert agent.call(REACH).said["value"] == "[]"


def test_without_landlock_it_could_by_way_of_an_init(start: Start) -> None:
    with start("--init", payload=changed(*WITHOUT_LANDLOCK)) as agent:
        agent.set_up()
        assert agent.call(REACH).said["value"] != "[]"


def test_without_landlock_it_cannot_where_the_agent_is_first(start: Start) -> None:
    with start(payload=changed(*WITHOUT_LANDLOCK)) as agent:
        agent.set_up()
        assert agent.call(REACH).said["value"] == "[]"


def test_without_landlock_an_agent_beside_an_init_runs_nothing(start: Start) -> None:
    with start("--init", payload=changed(*AS_WITHOUT_LANDLOCK)) as agent:
        assert "Landlock" in agent.set_up()["failed"]


ORPHAN = """
import os, time
reader, writer = os.pipe()
if os.fork() == 0:
    parent = os.getpid()
    if os.fork() == 0:
        while os.getppid() == parent:
            time.sleep(0.001)
        os.write(writer, str(os.getppid()).encode())
        os._exit(0)
    os._exit(0)
os.wait()
int(os.read(reader, 20)) {relation} os.getppid()"""


@pytest.mark.parametrize("session", [False, True], ids=["call", "session"])
def test_orphans_of_the_code_go_to_the_agent_and_not_to_the_engine_s_init(
    start: Start, session: bool
) -> None:
    with start("--init") as agent:
        agent.set_up(session=session)
        # The parent of a session's first caller is its template, whose parent is the session's init.
        code = ORPHAN.format(relation="> 1 and 0 <" if session else "==")
        assert agent.call(code).said["value"] == "True"

"""Containers live as long as their server: not longer, however it ends, and nobody else's are touched."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from sandbox import DockerSandbox, SandboxConfig
from sandbox.docker.reaper import (
    HOST,
    INSTANCE,
    LABEL,
    OWNER,
    OWNER_START,
    host,
    labels,
    owner_is_gone,
    reap,
)
from tests.docker_engine import Engine

ROOT = Path(__file__).resolve().parents[3]
GONE_WITHIN_S = 10.0
WAIT_S = 60.0
CALLS = 200 if os.environ.get("MCP_TOOLS_LONG") else 60
SERVER = """\
import sys
from sandbox import DockerSandbox, SandboxConfig
sandbox = DockerSandbox(sys.argv[1], SandboxConfig(pool_size=3), engine=sys.argv[2])
sandbox.execute_sync("x = 1", session="one")
sandbox.execute_sync("x = 1", session="two")
sandbox.execute_sync("1")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def client(docker_engine: Engine) -> Iterator[docker.DockerClient]:
    client = docker_engine.client()
    try:
        yield client
    finally:
        client.close()


def names(client: docker.DockerClient, label: str = f"{LABEL}=1") -> set[str]:
    listed = client.api.containers(all=True, filters={"label": label})
    return {each["Names"][0].lstrip("/") for each in listed}


def of_process(client: docker.DockerClient, pid: int) -> set[str]:
    return names(client, f"{OWNER}={pid}")


def until(true: Any, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def server(image: str, engine: Engine) -> Iterator[subprocess.Popen[str]]:
    """A server that made two sessions and a call, and waits."""
    argv = [sys.executable, "-c", SERVER, image, engine.address]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def foreign(client: docker.DockerClient, image: str, **marks: str) -> Iterator[str]:
    """Somebody else's container that runs and waits."""
    made = client.api.create_container(
        image, ["python3", "-c", "import signal; signal.pause()"], labels=marks
    )
    client.api.start(made["Id"])
    try:
        yield client.api.inspect_container(made["Id"])["Name"].lstrip("/")
    finally:
        with contextlib.suppress(docker.errors.NotFound):
            client.api.remove_container(made["Id"], force=True)


def test_nothing_outlives_a_server_that_was_killed(
    docker_engine: Engine, docker_image: str, client: docker.DockerClient
) -> None:
    with foreign(client, docker_image) as other, server(docker_image, docker_engine) as process:
        assert until(lambda: len(of_process(client, process.pid)) >= 5, WAIT_S)
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
        assert until(lambda: not of_process(client, process.pid), GONE_WITHIN_S)
        assert {each.name for each in client.containers.list()} >= {other}


RUNNING = """\
import sys, threading
from sandbox import DockerSandbox, SandboxConfig
config = SandboxConfig(pool_size=1, max_concurrent_calls=5, timeout_seconds=300, working_dir=sys.argv[3])
sandbox = DockerSandbox(sys.argv[1], config, engine=sys.argv[2])
code = "open('/work/{}', 'w').close()\\nwhile True: pass"
for number in range(5):
    arguments = {"code": code.format(number), "session": "s" if number == 4 else None}
    threading.Thread(target=sandbox.execute_sync, kwargs=arguments, daemon=True).start()
sys.stdin.read()
"""


def test_nothing_outlives_a_server_that_was_killed_with_calls_running(
    docker_engine: Engine, docker_image: str, client: docker.DockerClient, tmp_path: Path
) -> None:
    """E-04 and E-08: counted from the start of the next server, with others' containers beside them."""
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)
    argv = [sys.executable, "-c", RUNNING, docker_image, docker_engine.address, str(work)]
    with (
        foreign(client, docker_image) as unmarked,
        foreign(client, docker_image, **labels("of this process, which lives")) as marked,
        subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE) as process,
    ):
        try:
            assert until(lambda: len(list(work.iterdir())) == 5, WAIT_S)
            assert len(of_process(client, process.pid)) >= 5
            process.send_signal(signal.SIGKILL)
            process.wait(WAIT_S)
            with server(docker_image, docker_engine) as again:
                assert until(lambda: not of_process(client, process.pid), GONE_WITHIN_S)
                assert len(of_process(client, again.pid)) >= 2
                assert {each.name for each in client.containers.list()} >= {unmarked, marked}
        finally:
            process.kill()


def test_what_a_killed_server_could_not_attach_to_goes_with_the_next(
    docker_engine: Engine, docker_image: str, client: docker.DockerClient
) -> None:
    """A server can be killed between making a container and attaching to it; only a reaper finds that."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    marks = {**labels("another"), OWNER: str(ended.pid), OWNER_START: "1"}
    ended.wait(WAIT_S)
    with foreign(client, docker_image, **marks) as orphan:
        assert orphan in names(client)
        with DockerSandbox(docker_image, SandboxConfig(pool_size=1), engine=docker_engine.address) as sandbox:
            sandbox.execute_sync("1")
            assert until(lambda: orphan not in names(client), GONE_WITHIN_S)


@pytest.mark.parametrize(
    "marks",
    [
        {},
        {LABEL: "1"},
        {LABEL: "1", INSTANCE: "x", OWNER: "1", OWNER_START: "1", HOST: "another machine"},
        {LABEL: "1", INSTANCE: "x", OWNER: str(os.getpid()), OWNER_START: "", HOST: host()},
        {**labels("of this process, another sandbox")},
        {LABEL: "1", INSTANCE: "x", OWNER: "no number", OWNER_START: "1", HOST: host()},
    ],
    ids=["unmarked", "no owner", "another machine", "start unknown", "living owner", "odd owner"],
)
def test_whose_owner_may_live_is_left_alone(
    marks: dict[str, str], docker_engine: Engine, docker_image: str, client: docker.DockerClient
) -> None:
    with foreign(client, docker_image, **marks) as other:
        with DockerSandbox(docker_image, SandboxConfig(pool_size=1), engine=docker_engine.address) as sandbox:
            sandbox.execute_sync("1")
            reaped = threading.Event()
            supply = sandbox._supply
            before = supply._reap

            def and_tell(engine: Any) -> None:
                before(engine)
                reaped.set()

            supply._reap = and_tell  # type: ignore[method-assign]
            assert reaped.wait(GONE_WITHIN_S)
        assert other in {each.name for each in client.containers.list()}


@pytest.mark.parametrize("may_signal", [PermissionError, None], ids=["of another user", "ours"])
def test_an_owner_that_the_system_hides_may_live(
    may_signal: type[OSError] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where `/proc` is mounted with `hidepid`: nothing there, and yet there is such a process."""
    marks = {**labels("x"), OWNER: "4194305"}  # beyond the largest pid, so there is nothing in /proc
    assert owner_is_gone(marks)

    def kill(pid: int, number: int) -> None:
        if may_signal is not None:
            raise may_signal

    monkeypatch.setattr(os, "kill", kill)
    assert not owner_is_gone(marks)


def test_a_container_that_is_made_while_the_engine_lists_is_left_alone() -> None:
    known: set[str] = set()
    removed: list[str] = []

    class Lists:
        def ask(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
            known.add("just made")
            names = ["just made", "forgotten"]
            return [{"Id": name, "Names": [f"/{name}"], "Labels": {INSTANCE: "mine"}} for name in names]

        def remove(self, name: str) -> bool:
            removed.append(name)
            return True

    assert reap(Lists(), "mine", lambda: known) == ["forgotten"]  # type: ignore[arg-type]
    assert removed == ["forgotten"]


def test_a_server_that_was_stopped_takes_what_came_meanwhile(
    docker_engine: Engine, docker_image: str
) -> None:
    """D-25: the call ended well and in time; only its server looks too late."""
    server = (
        "import sys\nfrom sandbox import DockerSandbox, SandboxConfig\n"
        "config = SandboxConfig(pool_size=1, timeout_seconds=2)\n"
        "with DockerSandbox(sys.argv[1], config, engine=sys.argv[2]) as sandbox:\n"
        "    sandbox.execute_sync('x = 41', session='s')\n"
        "    print('calling', flush=True)\n"
        "    result = sandbox.execute_sync('import time; time.sleep(1); x + 1', session='s')\n"
        "    print(result.ended_by, result.value, result.session_lost, flush=True)\n"
    )
    argv = [sys.executable, "-c", server, docker_image, docker_engine.address]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "calling\n"
            time.sleep(0.5)  # into the call; had it not begun, the test would show less, and not fail
            process.send_signal(signal.SIGSTOP)
            time.sleep(4)
            process.send_signal(signal.SIGCONT)
            assert process.stdout.readline() == "exit 42 False\n"
        finally:
            process.kill()


def test_two_servers_on_one_engine_leave_each_other_alone(
    docker_engine: Engine, docker_image: str, client: docker.DockerClient
) -> None:
    with server(docker_image, docker_engine) as one, server(docker_image, docker_engine) as two:
        assert until(lambda: len(of_process(client, one.pid)) >= 5, WAIT_S)
        one.kill()
        one.wait(WAIT_S)
        assert until(lambda: not of_process(client, one.pid), GONE_WITHIN_S)
        assert until(lambda: len(of_process(client, two.pid)) >= 5, WAIT_S)


def test_many_calls_leave_no_container_volume_image_or_descriptor(
    docker_engine: Engine, docker_image: str, client: docker.DockerClient
) -> None:
    def resources() -> dict[str, int]:
        return {
            "containers": len(names(client)),
            "volumes": len(client.volumes.list()),
            "networks": len(client.networks.list()),
            "images": len(client.images.list(all=True)),
        }

    assert until(lambda: not names(client), GONE_WITHIN_S)  # what other tests ended is on its way out
    before = resources()
    failures: list[object] = []
    with DockerSandbox(docker_image, SandboxConfig(pool_size=2), engine=docker_engine.address) as sandbox:
        sandbox.execute_sync("1")
        descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0

        def calls() -> None:
            for number in range(CALLS // 4):
                result = sandbox.execute_sync(f"open('/tmp/out/x', 'w').write('x')\nprint({number})")
                if result.stdout != f"{number}\n":
                    failures.append(result)

        threads = [threading.Thread(target=calls) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert not failures
        if descriptors:
            assert len(os.listdir("/proc/self/fd")) <= descriptors + 16  # containers on their way
    assert until(lambda: resources() == before, GONE_WITHIN_S), resources()

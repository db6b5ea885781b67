"""A server that forks, also while it starts containers: the child keeps none of them alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sandbox.docker import reaper
from tests.docker_engine import Engine
from tests.sandbox.docker.test_life import GONE_WITHIN_S, ROOT, WAIT_S, of_process, until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
FORKS_AT = """\
import os, signal, sys
from sandbox import DockerSandbox, SandboxConfig
from sandbox.docker.engine import Engine

ask = Engine.ask
def and_fork(self, method, *arguments, **options):
    found = ask(self, method, *arguments, **options)
    if method == sys.argv[3] and not forked:
        forked.append(0)
        pid = os.fork()
        if not pid:
            os.close(1)
            signal.pause()
        forked[0] = pid
    return found
forked = []
Engine.ask = and_fork
sandbox = DockerSandbox(sys.argv[1], SandboxConfig(pool_size=1), engine=sys.argv[2])
sandbox.execute_sync("x = 1", session="s")
print(forked[0], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("step", ["ping", "create_container", "attach_socket", "start"])
def test_a_child_that_was_forked_while_a_container_starts_does_not_keep_it(
    step: str, docker_engine: Engine, docker_image: str
) -> None:
    """Before it is attached to as well: the connection for that may have been there for long."""
    argv = [sys.executable, "-W", "ignore", "-c", FORKS_AT, docker_image, docker_engine.address, step]
    client = docker_engine.client()
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert of_process(client, process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait(WAIT_S)
            assert until(lambda: not of_process(client, process.pid), GONE_WITHIN_S)
            os.kill(child, 0)  # it was there all the time
        finally:
            os.kill(child, signal.SIGKILL)
            process.kill()
            client.close()


def test_a_child_starts_containers_in_its_own_name(docker_engine: Engine, docker_image: str) -> None:
    code = (
        "import os, sys\nfrom sandbox import DockerSandbox, SandboxConfig\n"
        "sandbox = DockerSandbox(sys.argv[1], SandboxConfig(pool_size=1), engine=sys.argv[2])\n"
        "assert sandbox.execute_sync('1').success\n"
        "pid = os.fork()\n"
        "assert sandbox.execute_sync('x = 1', session='s').success\n"
        "print(os.getpid(), flush=True)\nsys.stdin.read()\n"
        "if pid:\n    os.waitpid(pid, 0)\n"
        "sandbox.close()\n"
    )
    argv = [sys.executable, "-W", "ignore", "-c", code, docker_image, docker_engine.address]
    client = docker_engine.client()
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            pids = {int(process.stdout.readline()) for _ in range(2)}
            assert len(pids) == 2
            for pid in pids:
                assert of_process(client, pid)
            process.stdin.close()
            assert process.wait(WAIT_S) == 0
            for pid in pids:
                assert until(lambda pid=pid: not of_process(client, pid), GONE_WITHIN_S)
        finally:
            process.kill()
            client.close()


def test_what_is_known_of_the_host_is_asked_anew_in_a_child() -> None:
    """It may have been forked into another pid namespace, where its number means another process."""
    reaper.host()
    reads, writes = os.pipe()
    if not (pid := os.fork()):
        os.write(writes, b"%d" % reaper.host.cache_info().currsize)
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reads, 9) == b"0"
    os.close(reads)
    os.close(writes)

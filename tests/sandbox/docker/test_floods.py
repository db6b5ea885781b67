"""E-09: what code writes is kept nowhere but in its result: no log of the engine, no memory of the server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from sandbox import DockerSandbox, EndedBy, SandboxConfig
from sandbox.docker.reaper import INSTANCE
from tests.docker_engine import Engine
from tests.own_engine import OwnEngine

ROOT = Path(__file__).resolve().parents[3]
MIB = 1024**2
FLOOD = "import os\nfor _ in range(200): os.write(1, b'x' * 1048576)"
# Bounded by its own peak, so it is a process of its own.
SERVER = f"""\
import sys
from sandbox import DockerSandbox, SandboxConfig

def peak():
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0])

code = {FLOOD!r}
with DockerSandbox(sys.argv[1], SandboxConfig(pool_size=1), engine=sys.argv[2]) as sandbox:
    sandbox.execute_sync("1")
    before = peak()
    for session in (None, "s", "s", None):
        result = sandbox.execute_sync(code, session=session)
        assert result.ended_by == "output", result
    print(peak() - before, len(result.stdout))
"""


@pytest.fixture
def client(docker_engine: Engine) -> Iterator[docker.DockerClient]:
    client = docker_engine.client()
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def own(docker_engine: Engine) -> OwnEngine:
    """Whose files can be looked at."""
    if docker_engine.own is None:
        pytest.skip("needs a Docker engine whose folder can be read")
    return docker_engine.own


def written(engine: OwnEngine) -> int:
    """Bytes in the folders that the engine has for containers: their logs, and a few small files."""
    total = 0
    for folder, _, names in os.walk(engine.folder / "data" / "containers"):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def test_a_flood_is_in_no_log_of_the_engine(
    own: OwnEngine, docker_engine: Engine, docker_image: str, client: docker.DockerClient
) -> None:
    before = written(own)
    control = client.containers.run(docker_image, ["python3", "-c", FLOOD], detach=True)
    try:
        control.wait(timeout=60)
        assert written(own) - before > 200 * MIB  # what an engine does where nobody asks for anything else
    finally:
        control.remove(force=True)
    config = SandboxConfig(pool_size=1, max_output_bytes=20 * MIB)  # a flood is 16 times this
    with DockerSandbox(docker_image, config, engine=docker_engine.address) as sandbox:
        sandbox.execute_sync("1", session="s")
        before = written(own)
        result = sandbox.execute_sync(FLOOD, session="s")
        assert result.success, result.error
        assert len(result.stdout) <= 20 * MIB
        label = f"{INSTANCE}={sandbox._supply.instance}"
        assert client.containers.list(filters={"label": label})  # the session's, whose log it would be
        assert written(own) - before < MIB


def test_a_flood_is_no_memory_of_the_server(docker_engine: Engine, docker_image: str) -> None:
    argv = [sys.executable, "-c", SERVER, docker_image, docker_engine.address]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    grown_kib, kept = map(int, done.stdout.split())
    assert grown_kib < 30 * 1024
    assert kept <= SandboxConfig().max_output_bytes


def test_a_flood_ends_long_before_it_is_over(docker_engine: Engine, docker_image: str) -> None:
    with DockerSandbox(docker_image, SandboxConfig(pool_size=1), engine=docker_engine.address) as sandbox:
        sandbox.execute_sync("1")
        began_s = time.monotonic()
        result = sandbox.execute_sync(
            "import os\nwhile True: os.write(1, b'x' * 1048576)", timeout_seconds=20
        )
        assert result.ended_by is EndedBy.OUTPUT
        assert time.monotonic() - began_s < 10

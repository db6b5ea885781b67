"""Engines that are absent, silent, talk nonsense, hang up or die: an error in time; the next call works."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from sandbox import DockerSandbox, SandboxConfig, SandboxConfigError, SandboxDied, SandboxUnavailable
from sandbox.types import Mount
from tests.docker_engine import Engine
from tests.own_engine import OwnEngine

QUICK = SandboxConfig(timeout_seconds=1, pool_size=1)
IN_TIME_S = 4.0
Serve = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """The SDK leaves a socket that nobody answered to the collector, which would warn in a later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@contextlib.contextmanager
def fake_engine(serve: Serve) -> Iterator[str]:
    """A socket where each connection is handed to `serve`, in a thread."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/sock")
        listener.listen()
        accepted: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])
                    with contextlib.suppress(OSError):
                        serve(accepted[-1])

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"unix://{folder}/sock"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for each in accepted:
                each.close()


def hang(connection: socket.socket) -> None:
    """Take the request, and never answer."""


def reset(connection: socket.socket) -> None:
    if not connection.recv(1):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def answer(body: bytes, status: bytes = b"200 OK") -> Serve:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (
            status,
            len(body),
        )
        connection.sendall(head + b"Connection: close\r\n\r\n" + body)

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        pytest.param(hang, id="hangs"),
        pytest.param(reset, id="resets"),
        pytest.param(answer(b""), id="empty"),
        pytest.param(answer(b"{}"), id="no version"),
        pytest.param(answer(b"[1, 2]"), id="a list"),
        pytest.param(answer(b"<html>"), id="a web server"),
        pytest.param(answer(b'{"ApiVersion": "1.41"}'), id="always the same"),
        pytest.param(answer(b'{"message": "no"}', b"500 Internal Server Error"), id="fails"),
    ],
)
def test_an_engine_that_is_none_is_told_in_time(serve: Serve) -> None:
    with fake_engine(serve) as address, DockerSandbox("any", QUICK, engine=address) as sandbox:
        began_s = time.monotonic()
        with pytest.raises(SandboxUnavailable) as caught:
            sandbox.execute_sync("1")
        assert time.monotonic() - began_s < IN_TIME_S
        assert caught.value.missing[0].remedy


def test_no_engine_is_told_with_what_to_do(tmp_path: Path) -> None:
    with DockerSandbox("any", QUICK, engine=f"unix://{tmp_path}/none") as sandbox:
        with pytest.raises(SandboxUnavailable, match="No such file") as caught:
            sandbox.execute_sync("1")
        assert "DOCKER_HOST" in caught.value.missing[0].remedy


async def test_an_event_loop_goes_on_while_an_engine_hangs() -> None:
    with fake_engine(hang) as address:
        async with DockerSandbox("any", QUICK, engine=address) as sandbox:
            ticks = 0

            async def call() -> None:
                with pytest.raises(SandboxUnavailable):
                    await sandbox.execute("1")
                tasks.cancel_scope.cancel()

            with anyio.fail_after(IN_TIME_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call)
                    while True:
                        ticks += 1
                        await anyio.sleep(0.01)
            assert ticks > 20


async def test_a_call_that_waits_for_an_engine_can_be_cancelled() -> None:
    with fake_engine(hang) as address:
        async with DockerSandbox("any", SandboxConfig(), engine=address) as sandbox:
            with anyio.fail_after(2), anyio.move_on_after(0.1) as scope:
                await sandbox.execute("1")
            assert scope.cancelled_caught


@pytest.mark.parametrize("where", ["no-such-context", "ftp://somewhere"])
def test_an_engine_that_cannot_be_meant_is_refused(where: str) -> None:
    with DockerSandbox("any", QUICK, engine=where) as sandbox, pytest.raises(SandboxUnavailable):
        sandbox.execute_sync("1")


def test_an_image_that_is_not_there_is_not_pulled(docker_engine: Engine) -> None:
    digest = "sha256:" + "0" * 64
    for image in ("no-such-image:1", f"python@{digest}"):
        with DockerSandbox(image, QUICK, engine=docker_engine.address) as sandbox:
            with pytest.raises(SandboxUnavailable, match="pulling is not allowed") as caught:
                sandbox.execute_sync("1")
            assert "build-image" in caught.value.missing[0].remedy


def test_a_pull_that_fails_is_told(docker_engine: Engine) -> None:
    with (
        DockerSandbox(
            "localhost:1/no-such:1", QUICK, engine=docker_engine.address, pull="missing"
        ) as sandbox,
        pytest.raises(SandboxUnavailable, match="cannot be pulled"),
    ):
        sandbox.execute_sync("1")


def test_a_runtime_that_the_engine_does_not_know_is_refused(docker_engine: Engine, docker_image: str) -> None:
    with (
        DockerSandbox(docker_image, QUICK, engine=docker_engine.address, runtime="nonesuch") as sandbox,
        pytest.raises(SandboxUnavailable, match="no runtime 'nonesuch'"),
    ):
        sandbox.execute_sync("1")


def test_folders_are_refused_for_an_engine_elsewhere(tmp_path: Path) -> None:
    from sandbox.docker.container import start
    from sandbox.docker.engine import Engine as Connection
    from sandbox.docker.engine import Facts
    from sandbox.docker.plan import close, plan
    from sandbox.types import IsolationLevel

    class Elsewhere(Connection):
        def __init__(self) -> None:
            self.address = "tcp://192.0.2.1:2375"

    planned = plan(SandboxConfig(mounts=(Mount(source=str(tmp_path), target="/data"),)))
    facts = Facts(
        image_id="",
        volumes=(),
        runtime="runc",
        level=IsolationLevel.L3,
        missing=(),
        not_enforced=(),
    )
    try:
        with pytest.raises(SandboxUnavailable, match="may be on another machine"):
            start(
                Elsewhere(),
                facts,
                planned,
                name="x",
                labels={},
                runtime=None,
                session=False,
                ping_s=1,
                stopped=lambda: False,
                init=True,
            )
    finally:
        close(planned.folders)


def test_packages_are_refused_with_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(SandboxConfigError, match="build-image"):
        DockerSandbox("any", SandboxConfig(packages=str(tmp_path)))


def test_an_engine_that_dies_in_a_call_ends_it_and_the_next_one_works(
    throwaway_engine: OwnEngine, docker_image_archive: Path
) -> None:
    import docker

    def load() -> None:
        client = docker.DockerClient(base_url=throwaway_engine.address, timeout=60)
        client.api.import_image_from_file(str(docker_image_archive), "image", "1")
        client.close()

    load()
    config = SandboxConfig(timeout_seconds=20, pool_size=1)
    with DockerSandbox("image:1", config, engine=throwaway_engine.address) as sandbox:
        assert sandbox.execute_sync("1").success
        killer = threading.Timer(0.5, throwaway_engine.kill)
        killer.start()
        began_s = time.monotonic()
        with pytest.raises(SandboxDied):
            sandbox.execute_sync("import time; time.sleep(15)")
        assert time.monotonic() - began_s < 5
        killer.join()
        with pytest.raises(SandboxUnavailable):
            sandbox.execute_sync("1")
        throwaway_engine.start()
        assert sandbox.execute_sync("1 + 1").value == "2"


def test_an_engine_that_stops_in_a_call_is_told_within_the_calls_time(
    throwaway_engine: OwnEngine, docker_image_archive: Path
) -> None:
    import docker

    client = docker.DockerClient(base_url=throwaway_engine.address, timeout=60)
    client.api.import_image_from_file(str(docker_image_archive), "image", "1")
    client.close()
    config = SandboxConfig(timeout_seconds=2, pool_size=1)
    with DockerSandbox("image:1", config, engine=throwaway_engine.address) as sandbox:
        assert sandbox.execute_sync("1").success
        stopper = threading.Timer(0.3, lambda: os.kill(throwaway_engine.pid, signal.SIGSTOP))
        stopper.start()
        try:
            began_s = time.monotonic()
            with pytest.raises(SandboxDied):
                sandbox.execute_sync("import time; time.sleep(60)")
            assert time.monotonic() - began_s < 2 + 2.5
        finally:
            stopper.join()
            os.kill(throwaway_engine.pid, signal.SIGCONT)
        assert sandbox.execute_sync("1 + 1").value == "2"

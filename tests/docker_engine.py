"""A Docker engine for tests, and an image in it: fixtures that every test can ask for by name.

`docker_engine` is the engine that DOCKER_HOST or the usual socket leads to, if one answers; otherwise one of
our own. `docker_image` is made from the interpreter that runs the tests, so no registry is needed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox.docker.engine import Engine as EngineConnection
from sandbox.docker.host_python import archive_host_python
from sandbox.docker.image import check, import_from_host
from sandbox.errors import SandboxUnavailable
from tests.own_engine import PING_S, NoEngine, OwnEngine, answers

if TYPE_CHECKING:
    import docker

CLIENT_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine that answers.

    Args:
        address: For DOCKER_HOST, or for `DockerSandbox(engine=…)`.
        own: The one that we started, or None if it was there before.
    """

    address: str
    own: OwnEngine | None = None

    def client(self) -> docker.DockerClient:
        """A client of the SDK, for the test to close."""
        import docker

        return docker.DockerClient(base_url=self.address, timeout=CLIENT_S)


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    """An engine for all tests: they leave it as they found it."""
    address = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    there = Engine(address=address)
    if _answers(there):
        yield there
        return
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(OwnEngine())
        except NoEngine as error:
            pytest.skip(str(error))
        yield Engine(address=own.address, own=own)


@pytest.fixture
def throwaway_engine() -> Iterator[OwnEngine]:
    """An engine for one test, to stop, kill and start again. It has no image; starting takes 0.3 s."""
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(OwnEngine())
        except NoEngine as error:
            pytest.skip(str(error))
        yield own


@pytest.fixture(scope="session")
def docker_image_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tar of the image, for `docker import` into a throw-away engine."""
    path = tmp_path_factory.mktemp("image") / "image.tar"
    with path.open("wb") as file:
        archive_host_python(file)
    return path


@pytest.fixture(scope="session")
def docker_image(docker_engine: Engine) -> Iterator[str]:
    """The name of an image with this interpreter and its standard library in `docker_engine`."""
    name = f"mcp-tools-test:{os.getpid()}"
    connection = connect(docker_engine.address)
    try:
        import_from_host(connection, name)
        if docker_engine.own is not None:
            _check_that_containers_run(connection, name)
        yield name
        connection.ask("remove_image", name, force=True)
    finally:
        connection.close()


def _check_that_containers_run(connection: EngineConnection, name: str) -> None:
    """An engine answers also where it may not divide cgroups, and then no container starts."""
    try:
        check(connection, name)
    except SandboxUnavailable as error:
        pytest.skip(f"needs a Docker engine that can run containers: {error}")


def connect(address: str) -> EngineConnection:
    """Our own connection to an engine, for the test to close."""
    return EngineConnection(address, ping_s=PING_S, answer_s=CLIENT_S)


def _answers(engine: Engine) -> bool:
    import docker

    if engine.address.startswith("unix://"):  # without the SDK, which leaves a socket open if nothing answers
        return answers(Path(engine.address.removeprefix("unix://")))
    with contextlib.suppress(docker.errors.DockerException, OSError):
        client = engine.client()
        try:
            return bool(client.ping())
        finally:
            client.close()
    return False

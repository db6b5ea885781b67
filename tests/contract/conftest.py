from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox import PythonSandbox, SandboxConfig
from sandbox.docker.image import import_from_host
from tests.contract.backends import AnySandbox, Backend, Boxes
from tests.docker_engine import connect
from tests.own_engine import NoEngine, OwnEngine

if TYPE_CHECKING:
    from sandbox.docker import DockerSandbox

NAMES = ("embedded", "docker", "docker with gVisor")


def _container(image: str, config: SandboxConfig, engine: str, runtime: str) -> DockerSandbox:
    from sandbox import DockerSandbox

    return DockerSandbox(image, config, engine=engine, runtime=runtime)


@pytest.fixture(scope="session")
def embedded() -> Backend:
    return Backend(name="embedded", kind="linux", runtime=None, open=PythonSandbox)


@pytest.fixture(scope="session")
def docker(request: pytest.FixtureRequest) -> Backend:
    engine = request.getfixturevalue("docker_engine")
    image = request.getfixturevalue("docker_image")
    return Backend(
        name="docker",
        kind="docker",
        runtime="runc",
        open=lambda config: _container(image, config, engine.address, "runc"),
    )


@pytest.fixture(scope="session")
def gvisor() -> Iterator[Backend]:
    """An engine of its own, which knows the runtime whatever the machine's engine was told."""
    path = shutil.which("runsc")
    if path is None:
        pytest.skip("needs the container runtime runsc")
    image = "mcp-tools-contract:gvisor"
    try:
        engine = OwnEngine(f"--add-runtime=runsc={path}")
        with engine:
            connection = connect(engine.address)
            try:
                import_from_host(connection, image)
            finally:
                connection.close()
            yield Backend(
                name="docker with gVisor",
                kind="docker",
                runtime="runsc",
                open=lambda config: _container(image, config, engine.address, "runsc"),
            )
    except NoEngine as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=NAMES)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn. What only one of them needs is not made for the others."""
    fixture = {"docker with gVisor": "gvisor"}.get(request.param, request.param)
    made = request.getfixturevalue(fixture)
    assert isinstance(made, Backend)
    return made


@pytest.fixture(scope="session")
def boxes(backend: Backend) -> Iterator[Boxes]:
    with Boxes(backend) as made:
        yield made


@pytest.fixture(scope="session")
def box(boxes: Boxes) -> AnySandbox:
    """The one that most tests use."""
    return boxes()


@pytest.fixture(scope="session")
def shared() -> Iterator[Path]:
    """A folder of the host that the code of every backend can be given."""
    with tempfile.TemporaryDirectory(prefix="contract-", dir="/var/tmp") as folder:
        path = Path(folder)
        path.chmod(0o777)
        yield path

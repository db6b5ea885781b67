"""Images made from this host's Python and built by the engine; each is run, not looked at."""

from __future__ import annotations

import docker
import pytest

from sandbox.docker import image
from tests.docker_engine import Engine


@pytest.fixture
def client(docker_engine: Engine) -> docker.DockerClient:
    client = docker_engine.client()
    yield client
    client.close()


def test_an_image_from_this_host_runs_behind_the_walls(
    client: docker.DockerClient, docker_image: str
) -> None:
    facts = image.check(client, docker_image)
    assert facts.packages == {}

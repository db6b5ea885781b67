"""What code in a container cannot reach: the engine that runs it, or what is meant for hosts (E-06)."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from sandbox import DockerSandbox, SandboxConfig
from sandbox.docker.plan import container_options, plan
from tests.docker_engine import Engine
from tests.sandbox.docker.networks import have_loopback, in_network_of

CONFIG = SandboxConfig(pool_size=1, timeout_seconds=30)
PORT = 2375
NAME = "host.docker.internal"
# Where Docker Desktop's engine listened for every container (CVE-2025-9074), and where clouds give away keys.
ELSEWHERE = ("192.168.65.7", "169.254.169.254")
ENGINE_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock", "/run/containerd")
PROBE = """
import json, os, socket
found = {}
for host in %r:
    try:
        with socket.create_connection((host, %d), timeout=1) as connection:
            found[host] = connection.recv(5).decode()
    except OSError as error:
        found[host] = "not reached"
for path in %r:
    if os.path.lexists(path):
        found[path] = "is there"
        try:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(path)
            connection.sendall(b"GET /_ping HTTP/1.0\\r\\nHost: engine\\r\\n\\r\\n")
            found[path] = connection.recv(65536).decode().split()[1]
            connection.close()
        except OSError as error:
            pass
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def client(docker_engine: Engine) -> Iterator[docker.DockerClient]:
    client = docker_engine.client()
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(scope="module")
def gateway(client: docker.DockerClient) -> str:
    """The engine's own address on its bridge."""
    about = client.networks.get("bridge").attrs["IPAM"]["Config"][0]
    first = next(ipaddress.ip_network(about["Subnet"]).hosts())
    return str(about.get("Gateway") or first)  # it is the first one where nothing is said of it


@pytest.fixture(scope="module")
def hosts(docker_engine: Engine, gateway: str) -> Iterator[list[str]]:
    """Where something listens on the engine's port; another engine's network is left as it is."""
    own = docker_engine.own
    if own is not None:
        in_network_of(own, lambda: have_loopback(*ELSEWHERE))
    where = gateway if own is None else "0.0.0.0"
    listener = in_network_of(own, lambda: socket.create_server((where, PORT)))

    def greet() -> None:
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as connection, contextlib.suppress(OSError):
                    connection.sendall(b"hello")

    thread = threading.Thread(target=greet)
    thread.start()
    try:
        yield [gateway, NAME, *(ELSEWHERE if own is not None else ())]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@pytest.fixture
def paths(docker_engine: Engine) -> list[str]:
    return [*ENGINE_SOCKETS, docker_engine.address.removeprefix("unix://")]


def probe(hosts: list[str], paths: list[str]) -> str:
    return PROBE % (hosts, PORT, paths)


def found_by(client: docker.DockerClient, image: str, command: list[str], **options: Any) -> Any:
    """What a container says that runs without our agent."""
    container = client.containers.create(image, command, **options)
    try:
        container.start()
        assert container.wait(timeout=60)["StatusCode"] == 0, container.logs()
        return json.loads(container.logs())
    finally:
        container.remove(force=True)


def test_a_container_that_nobody_walls_in_reaches_all_of_it(
    docker_engine: Engine, docker_image: str, client: docker.DockerClient, hosts: list[str], gateway: str
) -> None:
    """Or what follows would show nothing."""
    path = docker_engine.address.removeprefix("unix://")
    found = found_by(
        client,
        docker_image,
        ["python3", "-c", probe(hosts, ["/var/run/docker.sock"])],
        user="0:0",
        extra_hosts={NAME: gateway},
        volumes={path: {"bind": "/var/run/docker.sock"}},
    )
    assert found == {**dict.fromkeys(hosts, "hello"), "/var/run/docker.sock": "200"}


def test_our_flags_alone_keep_it_away(
    docker_image: str, client: docker.DockerClient, hosts: list[str], paths: list[str]
) -> None:
    options, host = container_options(plan(CONFIG), labels={}, volumes=[], session=False, init=True)
    command = ["python3", "-c", probe(hosts, paths)]
    host |= {"auto_remove": False, "log_config": {"Type": "json-file", "Config": {}}}
    made = client.api.create_container(
        docker_image,
        **{**options, "entrypoint": command, "stdin_open": False},
        host_config=client.api.create_host_config(**host),
    )
    try:
        client.api.start(made["Id"])
        assert client.api.wait(made["Id"], timeout=60)["StatusCode"] == 0, client.api.logs(made["Id"])
        assert json.loads(client.api.logs(made["Id"])) == dict.fromkeys(hosts, "not reached")
    finally:
        client.api.remove_container(made["Id"], force=True)


@pytest.mark.parametrize("session", [None, "s"])
def test_code_reaches_none_of_it(
    session: str | None, docker_engine: Engine, docker_image: str, hosts: list[str], paths: list[str]
) -> None:
    with DockerSandbox(docker_image, CONFIG, engine=docker_engine.address) as sandbox:
        result = sandbox.execute_sync(probe(hosts, paths), session=session)
    assert result.success, result.stderr
    assert json.loads(result.stdout) == dict.fromkeys(hosts, "not reached")


def test_with_a_network_the_engine_s_socket_is_still_not_there(
    docker_engine: Engine, docker_image: str, gateway: str, hosts: list[str], paths: list[str]
) -> None:
    config = SandboxConfig(pool_size=1, timeout_seconds=30, allow_network=True)
    code = probe([gateway], paths)
    abstract = "print([line.split()[-1] for line in open('/proc/net/unix') if '@' in line])"
    with DockerSandbox(docker_image, config, engine=docker_engine.address) as sandbox:
        result = sandbox.execute_sync(code)
        assert result.success, result.stderr
        assert json.loads(result.stdout) == {gateway: "hello"}  # the bridge, and what listens there
        assert sandbox.execute_sync(abstract).stdout == "[]\n"  # containerd's (CVE-2020-15257)

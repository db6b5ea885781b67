"""Pulling from a registry: only when that is allowed, with progress, and only the image that was named."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from sandbox import DockerSandbox, SandboxBusy, SandboxConfig, SandboxUnavailable
from tests.docker_engine import Engine
from tests.sandbox.docker.networks import have_loopback, in_network_of

CONFIG = SandboxConfig(pool_size=1)
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class Registry(http.server.ThreadingHTTPServer):
    """A registry with one repository, on the loopback of the engine's network.

    Args:
        layer: The image's only one, as a tar.
        machine: What the image is for.
    """

    daemon_threads = False

    def __init__(self, layer: Path, machine: str) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[str] = []
        self.lies = False
        self.answers = threading.Event()
        self.answers.set()
        self.layer = layer
        with layer.open("rb") as file:
            self.layer_digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        config = {
            "architecture": machine,
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [self.layer_digest]},
        }
        self.config = json.dumps(config).encode()
        kind = "application/vnd.docker.image.rootfs.diff.tar"
        about = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(self.config),
                "digest": digest(self.config),
            },
            "layers": [{"mediaType": kind, "size": layer.stat().st_size, "digest": self.layer_digest}],
        }
        self.manifest = json.dumps(about).encode()

    @property
    def repository(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}/mcp-tools-test"


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def do_GET(self) -> None:
        registry = self.server
        registry.asked.append(self.path)
        registry.answers.wait()
        folder, _, name = self.path.removeprefix("/v2/mcp-tools-test/").rpartition("/")
        if self.path == "/v2/":
            self._answer(b"{}", "application/json")
        elif folder == "manifests" and (name in {"1", digest(registry.manifest)} or registry.lies):
            self._answer(registry.manifest, MANIFEST)
        elif name == digest(registry.config):
            self._answer(registry.config, "application/octet-stream")
        elif name == registry.layer_digest:
            self._head(registry.layer.stat().st_size, "application/octet-stream")
            if self.command == "GET":
                with registry.layer.open("rb") as file:
                    self.connection.sendfile(file)
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, body: bytes, kind: str) -> None:
        self._head(len(body), kind, digest(body))
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, size: int, kind: str, about: str = "") -> None:
        self.send_response(200)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        if about:
            self.send_header("Docker-Content-Digest", about)
        self.end_headers()
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def client(docker_engine: Engine) -> Iterator[docker.DockerClient]:
    client = docker_engine.client()
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def registry(
    docker_engine: Engine, docker_image_archive: Path, client: docker.DockerClient
) -> Iterator[Registry]:
    """Where the engine can reach it; what it pulled is removed after the test."""
    own = docker_engine.own
    if own is not None:
        in_network_of(own, have_loopback)
    machine = MACHINES[client.info()["Architecture"]]
    server = in_network_of(own, functools.partial(Registry, docker_image_archive, machine))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.answers.set()
        server.shutdown()
        server.server_close()
        thread.join()
        for image in client.images.list():
            for name in (*image.attrs["RepoTags"], *image.attrs["RepoDigests"]):
                if name.startswith(server.repository):
                    with contextlib.suppress(docker.errors.ImageNotFound):
                        client.images.remove(name, force=True)


def test_an_image_is_pulled_with_progress_only_when_that_is_allowed(
    docker_engine: Engine, registry: Registry
) -> None:
    image, address = f"{registry.repository}:1", docker_engine.address
    said: list[str] = []
    with (
        DockerSandbox(image, CONFIG, engine=address, on_progress=said.append) as sandbox,
        pytest.raises(SandboxUnavailable, match="pulling is not allowed"),
    ):
        sandbox.execute_sync("1")
    assert (registry.asked, said) == ([], [])
    with DockerSandbox(image, CONFIG, engine=address, pull="missing", on_progress=said.append) as sandbox:
        assert sandbox.execute_sync("6 * 7").value == "42"
    assert registry.asked
    layer = registry.layer_digest.removeprefix("sha256:")[:12]
    assert said[0] == f"{layer} Pulling fs layer"
    assert f"{layer} Pull complete" in said
    assert any(line.startswith("Status: Downloaded newer image") for line in said)
    assert not [line for line in said if "\n" in line or "\x1b" in line]
    asked = len(registry.asked)
    with DockerSandbox(image, CONFIG, engine=address, pull="missing", on_progress=said.append) as sandbox:
        assert sandbox.execute_sync("6 * 7").value == "42"
    assert len(registry.asked) == asked  # it was not missing any more


def test_a_digest_is_that_image_and_no_other(docker_engine: Engine, registry: Registry) -> None:
    right, wrong = digest(registry.manifest), digest(b"another image")
    for registry.lies in (False, True):
        image = f"{registry.repository}@{wrong}"
        with (
            DockerSandbox(image, CONFIG, engine=docker_engine.address, pull="missing") as sandbox,
            pytest.raises(SandboxUnavailable, match=f"{wrong} cannot be pulled: ") as caught,
        ):
            sandbox.execute_sync("1")
        assert "Check its name" in caught.value.missing[0].remedy
    registry.lies = False
    image = f"{registry.repository}@{right}"
    with DockerSandbox(image, CONFIG, engine=docker_engine.address, pull="missing") as sandbox:
        assert sandbox.execute_sync("6 * 7").value == "42"
    with (
        DockerSandbox(f"{registry.repository}@{wrong}", CONFIG, engine=docker_engine.address) as sandbox,
        pytest.raises(SandboxUnavailable, match="pulling is not allowed"),
    ):
        sandbox.execute_sync("1")


def test_a_registry_that_says_nothing_keeps_calls_no_longer_than_they_wait(
    docker_engine: Engine, registry: Registry
) -> None:
    registry.answers.clear()
    config = SandboxConfig(pool_size=1, queue_seconds=1)
    with DockerSandbox(
        f"{registry.repository}:1", config, engine=docker_engine.address, pull="missing"
    ) as sandbox:
        began_s = time.monotonic()
        with pytest.raises(SandboxBusy):
            sandbox.execute_sync("1")
        assert time.monotonic() - began_s < 3
        assert registry.asked
        registry.answers.set()
        deadline_s = time.monotonic() + 30
        while True:
            with contextlib.suppress(SandboxBusy):
                assert sandbox.execute_sync("6 * 7").value == "42"
                break
            assert time.monotonic() < deadline_s

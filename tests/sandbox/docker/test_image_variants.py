"""Images that ask for things, that are not for here, or that cannot run Python: code runs as ever."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from sandbox import DockerSandbox, SandboxConfig, SandboxUnavailable
from sandbox.docker.reaper import INSTANCE
from sandbox.types import Mount
from tests.docker_engine import Engine

CONFIG = SandboxConfig(pool_size=1)
OTHER = {"x86_64": "arm64"}
DEMANDING = """
FROM {image}
COPY evil/ /evil/
USER 0:0
WORKDIR /evil
ENV PYTHONPATH=/evil PYTHONSTARTUP=/evil/startup.py PYTHONHOME=/evil PYTHONINSPECT=1 PYTHONHASHSEED=0 \
    PYTHONUSERBASE=/evil PYTHONBREAKPOINT=startup PYTHONDEVMODE=1 PYTHONPLATLIBDIR=evil PYTHONOPTIMIZE=2 \
    LD_PRELOAD=/evil/missing.so HOME=/evil TMPDIR=/evil HTTP_PROXY=http://user:secret@192.0.2.1 \
    TINI_VERBOSITY=3 TINI_SUBREAPER=1 TINI_KILL_PROCESS_GROUP=1
ENTRYPOINT ["python3", "-c", "print('the entry point ran')"]
CMD ["of the image"]
HEALTHCHECK --interval=1s CMD ["python3", "-c", "open('/evil/checked', 'w')"]
STOPSIGNAL SIGWINCH
EXPOSE 80
LABEL mcp-tools.sandbox.instance=another mcp-tools.sandbox.owner=1
"""
EVIL = "import os\nos.write(2, b'code of the image ran')\nraise SystemExit('code of the image ran')\n"


@pytest.fixture
def client(docker_engine: Engine) -> Iterator[docker.DockerClient]:
    client = docker_engine.client()
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def built(client: docker.DockerClient, docker_image: str) -> Iterator[Callable[..., str]]:
    """Builds an image on that of the tests; it is removed after the test."""
    names: list[str] = []

    def build(dockerfile: str, **files: str) -> str:
        context, name = io.BytesIO(), f"mcp-tools-test-{uuid.uuid4().hex[:12]}:1"
        with tarfile.open(fileobj=context, mode="w") as tar:
            for path, text in {"Dockerfile": dockerfile.format(image=docker_image), **files}.items():
                add(tar, path, text.encode())
        context.seek(0)
        client.images.build(fileobj=context, custom_context=True, tag=name, rm=True, forcerm=True)
        names.append(name)
        return name

    yield build
    for name in names:
        client.images.remove(name, force=True)


@pytest.fixture
def loaded(client: docker.DockerClient) -> Iterator[Callable[..., str]]:
    """Loads an image with few files and this configuration; it is removed after the test."""
    names: list[str] = []

    def load(files: dict[str, bytes], **about: Any) -> str:
        name = f"mcp-tools-test-{uuid.uuid4().hex[:12]}:1"
        layer, image = io.BytesIO(), io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            for path, data in files.items():
                add(tar, path, data)
        config = {
            "os": "linux",
            "config": {"Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer.getvalue())]},
            **about,
        }
        with tarfile.open(fileobj=image, mode="w") as tar:
            add(tar, "layer.tar", layer.getvalue())
            add(tar, "config.json", json.dumps(config).encode())
            manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
            add(tar, "manifest.json", json.dumps(manifest).encode())
        client.images.load(image.getvalue())
        names.append(name)
        return name

    yield load
    for name in names:
        client.images.remove(name, force=True)


def add(tar: tarfile.TarFile, path: str, data: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mode = len(data), 0o755
    tar.addfile(member, io.BytesIO(data))


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def volumes(client: docker.DockerClient) -> set[str]:
    return {each.id for each in client.volumes.list()}


def test_folders_that_an_image_declares_as_volumes_leave_none(
    docker_engine: Engine, built: Callable[..., str], client: docker.DockerClient
) -> None:
    image = built('FROM {image}\nVOLUME ["/data", "/var/more"]')
    before = volumes(client)
    plain = client.containers.create(image, ["python3"])
    assert len(volumes(client) - before) == 2  # what an engine does where nobody asks for anything else
    plain.remove(v=True)
    code = (
        "import errno, os\nfound = []\n"
        "for folder in ('/data', '/var/more'):\n"
        "    try:\n        open(folder + '/x', 'w').write('x')\n"
        "    except OSError as error:\n        found.append(error.errno in (errno.EROFS, errno.EACCES))\n"
        "found"
    )
    with DockerSandbox(image, CONFIG, engine=docker_engine.address) as sandbox:
        assert sandbox.execute_sync(code).value == "[True, True]"
        assert sandbox.execute_sync(code, session="s").value == "[True, True]"
        assert volumes(client) == before  # while it lives
    assert volumes(client) == before


def test_volumes_of_an_image_do_not_hide_what_code_works_in(
    docker_engine: Engine, built: Callable[..., str], client: docker.DockerClient, tmp_path: Path
) -> None:
    image = built('FROM {image}\nVOLUME ["/tmp/", "/work", "/data", "/more"]')
    before = volumes(client)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_text("here")
    (tmp_path / "work").mkdir(mode=0o777)
    os.chmod(tmp_path / "work", 0o777)
    config = SandboxConfig(
        pool_size=1,
        working_dir=str(tmp_path / "work"),
        mounts=(Mount(source=str(tmp_path / "data"), target="/data"),),
    )
    code = "open('y', 'w').write('y')\nopen('/tmp/out/z', 'wb').write(bytes(100_000))\nopen('/data/x').read()"
    with DockerSandbox(image, config, engine=docker_engine.address) as sandbox:
        result = sandbox.execute_sync(code)
        assert (result.value, len(result.artifacts)) == ("'here'", 1)
        assert volumes(client) == before
    assert (tmp_path / "work" / "y").read_text() == "y"
    with DockerSandbox(image, CONFIG, engine=docker_engine.address) as sandbox:
        assert sandbox.execute_sync("open('/tmp/x', 'wb').write(bytes(100_000))").value == "100000"
        assert volumes(client) == before
    assert volumes(client) == before


def test_what_an_image_sets_changes_nothing(
    docker_engine: Engine, built: Callable[..., str], client: docker.DockerClient
) -> None:
    modules = ("startup", "sitecustomize", "usercustomize", "json", "zlib", "sandbox/__init__")
    image = built(DEMANDING, **{f"evil/{name}.py": EVIL for name in modules})
    control = client.containers.run(
        image,
        ["python3", "-c", "import json"],
        entrypoint=[],
        environment={"PYTHONHOME": "", "PYTHONPLATLIBDIR": ""},
        remove=False,
        detach=True,
    )
    try:
        control.wait(timeout=60)
        assert b"code of the image ran" in control.logs()  # so it is there, and would run
    finally:
        control.remove(force=True)
    code = (
        "import json, os, sys\n"
        "json.dumps([os.getuid(), os.getcwd(), [p for p in sys.path if 'evil' in p], sys.flags.optimize,"
        " sys.flags.dev_mode, sys.flags.inspect, sys.flags.hash_randomization,"
        " sorted(n for n, v in os.environ.items() if 'evil' in v or 'secret' in v),"
        " sorted(n for n in os.environ if n.startswith(('PYTHON', 'LD_', 'TINI'))),"
        " os.environ['HOME'], sys.prefix == '/evil', hash('a')])"
    )
    hashes = set()
    with DockerSandbox(image, CONFIG, engine=docker_engine.address) as sandbox:
        for session in (None, "s"):
            result = sandbox.execute_sync(code, session=session)
            assert (result.stdout, result.stderr) == ("", "")
            assert result.value is not None
            *found, number = json.loads(result.value[1:-1])
            assert found == [1000, "/tmp/work", [], 0, False, 0, 1, [], [], "/tmp", False]
            hashes.add(number)
        label = f"{INSTANCE}={sandbox._supply.instance}"
        shown = client.containers.list(filters={"label": label})
        assert shown  # the labels are ours
        for each in shown:
            assert each.attrs["State"].get("Health") is None
            assert each.attrs["Config"]["User"] == "1000:1000"
    assert len(hashes) == 2


def test_an_init_that_an_image_makes_talk_says_nothing_in_between(
    docker_engine: Engine, built: Callable[..., str]
) -> None:
    """What it has to say of a call's end comes with that end, or a moment after it."""
    image = built("FROM {image}\nENV TINI_VERBOSITY=3")
    with DockerSandbox(image, SandboxConfig(pool_size=2), engine=docker_engine.address) as sandbox:
        for _ in range(15):
            assert sandbox.execute_sync("6 * 7").value == "42"


def test_an_image_for_another_machine_is_refused_and_not_pulled(
    docker_engine: Engine, loaded: Callable[..., str], client: docker.DockerClient
) -> None:
    here = client.info()["Architecture"]
    other = OTHER.get(here, "amd64")
    image = loaded({"readme": b"nothing"}, architecture=other)
    said: list[str] = []
    for pull in ("never", "missing"):
        with DockerSandbox(
            image, CONFIG, engine=docker_engine.address, pull=pull, on_progress=said.append
        ) as sandbox:
            with pytest.raises(SandboxUnavailable, match=f"is for {other}, the engine for ") as caught:
                sandbox.execute_sync("1")
            assert "Take the image for" in caught.value.missing[0].remedy
            assert sandbox.level is None
    assert said == []


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"readme": b"nothing"}, id="none"),
        pytest.param({"usr/bin/python3": b"\x7fELF no program"}, id="broken"),
        pytest.param({"usr/bin/python3": b"#!/bin/sh\nexec false\n"}, id="needs a shell"),
    ],
)
@pytest.mark.parametrize("init", [True, False], ids=["init", "no init"])
def test_an_image_without_python_says_what_to_do(
    init: bool,
    files: dict[str, bytes],
    docker_engine: Engine,
    loaded: Callable[..., str],
    client: docker.DockerClient,
) -> None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}
    image = loaded(files, architecture=machine[client.info()["Architecture"]])
    with DockerSandbox(image, CONFIG, engine=docker_engine.address) as sandbox:
        sandbox._supply._has_init = init
        with pytest.raises(SandboxUnavailable, match="python3") as caught:
            sandbox.execute_sync("1")
        # Without an init it is the engine itself that starts it, and says what there is not.
        assert not init or "Take an image with python3, 3.11 or newer" in caught.value.missing[0].remedy
    label = f"{INSTANCE}={sandbox._supply.instance}"
    assert client.containers.list(all=True, filters={"label": label}) == []

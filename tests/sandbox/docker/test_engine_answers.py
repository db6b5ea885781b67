"""What follows from the answers of engines: their level, what they cannot limit, and options they know."""

from __future__ import annotations

import json
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import DockerSandbox, IsolationLevel, SandboxConfig, SandboxConfigError, SandboxUnavailable
from sandbox.docker import bundle, engine
from sandbox.docker.engine import Facts
from sandbox.docker.plan import close, container_options, plan
from sandbox.types import Mount
from tests.docker_engine import Engine

L3, L4 = IsolationLevel.L3, IsolationLevel.L4
DOCKER = {
    "Platform": {"Name": "Docker Engine - Community"},
    "Version": "27.3.1",
    "ApiVersion": "1.47",
    "Components": [
        {"Name": "Engine", "Version": "27.3.1", "Details": {"ApiVersion": "1.47", "Os": "linux"}},
        {"Name": "containerd", "Version": "1.7.22", "Details": {}},
        {"Name": "runc", "Version": "1.1.14", "Details": {}},
    ],
}
PODMAN = {
    "Platform": {"Name": "linux/amd64/debian-12"},
    "Version": "4.3.1",
    "ApiVersion": "1.41",
    "Components": [
        {"Name": "Podman Engine", "Version": "4.3.1", "Details": {"APIVersion": "4.3.1", "Os": "linux"}},
        {"Name": "Conmon", "Version": "conmon version 2.1.6", "Details": {"Package": "conmon_2.1.6"}},
        {"Name": "OCI Runtime (crun)", "Version": "crun version 1.8.1", "Details": {}},
    ],
}
INFO = {
    "Architecture": "x86_64",
    "OSType": "linux",
    "DefaultRuntime": "runc",
    "Runtimes": {
        "runc": {"path": "runc"},
        "io.containerd.runc.v2": {"path": "runc"},
        "strong": {"path": "/usr/local/bin/runsc"},
        "shim": {"runtimeType": "io.containerd.kata.v2"},
    },
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
    "MemoryLimit": True,
    "SwapLimit": True,
    "CpuCfsQuota": True,
    "PidsLimit": True,
}


class Answering(engine.Engine):
    """A connection whose answers are recorded."""

    def __init__(self, version: dict[str, Any], **info: Any) -> None:
        self.address = "unix:///run/recorded.sock"
        image = {"Id": "sha256:1", "Os": "linux", "Architecture": "amd64", "Config": {}}
        self.answers = {"version": version, "info": {**INFO, **info}, "inspect_image": image}

    def ask(self, method: str, *arguments: Any, within_s: float | None = None, **options: Any) -> Any:
        return self.answers[method]

    def found(self) -> Facts:
        return self.facts("python:3.11", None, pull="never", on_progress=None)


@pytest.mark.parametrize(
    ("runtime", "options", "level", "own_kernel"),
    [
        ("runc", [], L3, False),
        ("io.containerd.runc.v2", [], L3, False),
        ("runsc", [], L4, True),
        ("strong", [], L4, True),
        ("io.containerd.runsc.v1", [], L4, True),
        ("kata-qemu", [], L4, True),
        ("shim", [], L4, True),
        ("runc", ["name=seccomp,profile=builtin", "name=rootless"], L4, False),
        ("runc", ["name=userns"], L4, False),
        ("runc", ["name=seccomp,profile=/etc/rootless"], L3, False),
    ],
)
def test_a_kernel_of_its_own_or_a_root_that_is_not_the_hosts_is_level_4(
    runtime: str, options: list[str], level: IsolationLevel, own_kernel: bool
) -> None:
    found, missing = engine._level({**INFO, "SecurityOptions": options}, runtime)
    assert (found, engine._has_own_kernel(INFO, runtime)) == (level, own_kernel)
    assert [each.level for each in missing] == (["L4"] if level is L3 else [])


@pytest.mark.parametrize(
    ("there", "image"),
    [
        ("x86_64", {"Os": "linux", "Architecture": "amd64"}),
        ("amd64", {"Os": "linux", "Architecture": "amd64"}),
        ("aarch64", {"Os": "linux", "Architecture": "arm64"}),
        ("x86_64", {}),
        ("", {"Architecture": "arm64"}),
    ],
)
def test_an_image_for_the_engines_machine_is_taken(there: str, image: dict[str, str]) -> None:
    engine._check_platform({"Architecture": there}, "python", image)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ({"Os": "linux", "Architecture": "arm64"}, "python is for arm64, the engine for amd64"),
        ({"Os": "windows", "Architecture": "amd64"}, "python is for windows"),
    ],
)
def test_an_image_for_another_machine_is_refused(image: dict[str, str], problem: str) -> None:
    with pytest.raises(SandboxUnavailable, match=problem):
        engine._check_platform(INFO, "python", image)


@pytest.mark.parametrize(
    ("said", "not_enforced"),
    [
        ({}, ()),
        ({"MemoryLimit": False}, ("max_memory_mb",)),
        ({"SwapLimit": False}, ("max_memory_mb",)),
        ({"MemoryLimit": False, "SwapLimit": False, "PidsLimit": False}, ("max_memory_mb", "max_processes")),
        ({"CpuCfsQuota": False}, ()),
    ],
)
def test_a_limit_that_the_engine_drops_is_said(said: dict[str, bool], not_enforced: tuple[str, ...]) -> None:
    assert Answering(DOCKER, **said).found().not_enforced == not_enforced
    assert Answering(PODMAN, **said).found().not_enforced == (*not_enforced, "max_files")


def test_an_engine_that_says_nothing_of_its_parts_is_not_podman() -> None:
    for version in ({}, {"Components": None}, {"Components": ["Podman Engine"]}):
        assert not Answering(version).found().is_podman


@pytest.mark.parametrize(
    ("version", "disk", "volume"),
    [
        (
            DOCKER,
            "size=10m,nr_inodes=200,mode=0700,uid=1000,gid=1000,nosuid,nodev,noexec",
            "size=4k,nr_inodes=2,mode=0555,ro,nosuid,nodev,noexec",
        ),
        (
            PODMAN,
            "size=10m,mode=1777,nosuid,nodev,noexec,notmpcopyup",
            "size=4k,mode=0555,ro,nosuid,nodev,noexec,notmpcopyup",
        ),
    ],
    ids=["docker", "podman"],
)
def test_folders_in_memory_have_the_options_that_the_engine_knows(
    version: dict[str, Any], disk: str, volume: str
) -> None:
    planned = plan(SandboxConfig(max_disk_mb=10, max_files=200))
    facts = Answering(version).found()
    _, host = container_options(
        planned, labels={}, volumes=["/data"], session=False, init=True, is_podman=facts.is_podman
    )
    assert host["tmpfs"] == {"/tmp": disk, "/data": volume}


@pytest.mark.parametrize("own_kernel", [False, True])
def test_a_runtime_with_its_own_kernel_needs_no_seccomp_filter_of_the_engine(
    own_kernel: bool, docker_engine: Engine, docker_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under gVisor /proc says `Seccomp: 0`, and nothing of no_new_privs."""
    modules = json.loads(zlib.decompress(bundle.payload().partition(b"\n")[2]))
    modules["sandbox.docker.inside.locked"] += (
        "\n\n_true_words = status_words\n\n\ndef status_words(*names):\n"
        "    words = {**_true_words(*names), 'Seccomp': '0'}\n"
        "    words.pop('NoNewPrivs', None)\n"
        "    return words\n"
    )
    data = zlib.compress(json.dumps(modules).encode())
    monkeypatch.setattr(bundle, "payload", lambda: b"%d\n%b" % (len(data), data))
    if own_kernel:
        monkeypatch.setattr(engine, "_has_own_kernel", lambda info, runtime: True)
    with DockerSandbox(docker_image, SandboxConfig(pool_size=1), engine=docker_engine.address) as sandbox:
        if own_kernel:
            assert sandbox.execute_sync("6 * 7").value == "42"
            assert sandbox.level is L4
        else:
            with pytest.raises(SandboxUnavailable, match="seccomp is false inside, not true"):
                sandbox.execute_sync("6 * 7")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system below `tmp_path`, with a name that the kernel writes in another way."""
    folder = tmp_path / "a place"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount: nothing can be mounted below a folder")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_read_only_folder_with_another_file_system_below_it_is_refused(
    mounted: Path, tmp_path: Path
) -> None:
    with pytest.raises(SandboxConfigError, match="a place is mounted below it, and stays writable") as caught:
        plan(SandboxConfig(mounts=(Mount(source=str(tmp_path), target="/data"),)))
    assert caught.value.field == "mounts"
    writable = Mount(source=str(tmp_path), target="/data", writable=True)
    itself = Mount(source=str(mounted), target="/other")
    planned = plan(SandboxConfig(mounts=(writable, itself)))
    close(planned.folders)
    assert [folder.is_as_it_was() for folder in planned.folders] == [True, True]


def test_a_file_system_that_is_mounted_later_is_noticed(tmp_path: Path, request: Any) -> None:
    planned = plan(SandboxConfig(mounts=(Mount(source=str(tmp_path), target="/data"),)))
    close(planned.folders)
    (folder,) = planned.folders
    assert folder.is_as_it_was()
    request.getfixturevalue("mounted")
    assert not folder.is_as_it_was()

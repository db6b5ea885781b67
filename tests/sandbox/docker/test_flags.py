"""What the engine itself says of a container that runs: each wall that we asked for is there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import DockerSandbox, IsolationLevel, SandboxConfig
from sandbox.docker import bundle, frames
from sandbox.docker.plan import AGENT_MEMORY_BYTES
from sandbox.docker.reaper import INSTANCE
from tests.docker_engine import Engine

CONFIG = SandboxConfig(
    max_memory_mb=100, max_processes=20, max_disk_mb=10, max_files=200, max_open_files=99, pool_size=1
)
MIB = 1024**2


def containers_of(sandbox: DockerSandbox, engine: Engine) -> list[dict[str, Any]]:
    """What the engine shows of this sandbox's containers; others may have some there, too."""
    client = engine.client()
    try:
        label = f"{INSTANCE}={sandbox._supply.instance}"
        return [each.attrs for each in client.containers.list(filters={"label": label})]
    finally:
        client.close()


@pytest.fixture(scope="module")
def inspected(docker_engine: Engine, docker_image: str) -> Iterator[dict[str, Any]]:
    """A session's container while it lives, as `docker inspect` shows it."""
    with DockerSandbox(docker_image, CONFIG, engine=docker_engine.address) as sandbox:
        result = sandbox.execute_sync("1", session="looked at")
        assert (result.backend, result.runtime) == ("docker", "runc")
        (one,) = containers_of(sandbox, docker_engine)
        yield one


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NetworkMode", "none"),
        ("NanoCpus", 10**9),
        ("ReadonlyRootfs", True),
        ("CapDrop", ["ALL"]),
        ("SecurityOpt", ["no-new-privileges:true"]),
        ("Init", True),
        ("AutoRemove", True),
        ("IpcMode", "private"),
        ("LogConfig", {"Type": "none", "Config": {}}),
        ("Privileged", False),
        ("ShmSize", 10 * MIB),
        ("Memory", 100 * MIB + AGENT_MEMORY_BYTES),
        ("MemorySwap", 100 * MIB + AGENT_MEMORY_BYTES),
        ("PidsLimit", 20 + frames.OWN_PROCESSES_OF_SESSION),
    ],
)
def test_host_config(name: str, value: object, inspected: dict[str, Any]) -> None:
    assert inspected["HostConfig"][name] == value


@pytest.mark.parametrize(
    "name", ["CapAdd", "Binds", "Devices", "VolumesFrom", "PortBindings", "GroupAdd", "ExtraHosts", "Mounts"]
)
def test_nothing_of_the_host_comes_in(name: str, inspected: dict[str, Any]) -> None:
    assert not inspected["HostConfig"].get(name)


def test_namespaces_of_the_host_are_not_used(inspected: dict[str, Any]) -> None:
    host = inspected["HostConfig"]
    assert {host[name] for name in ("PidMode", "UTSMode", "UsernsMode")} == {""}
    assert inspected["Mounts"] == []


def test_ulimits(inspected: dict[str, Any]) -> None:
    found = {each["Name"]: (each["Soft"], each["Hard"]) for each in inspected["HostConfig"]["Ulimits"]}
    assert found == {"nofile": (256, 256), "core": (0, 0), "memlock": (0, 0)}


def test_the_only_writable_folder_is_bounded_memory_that_nothing_can_be_executed_from(
    inspected: dict[str, Any],
) -> None:
    ((folder, options),) = inspected["HostConfig"]["Tmpfs"].items()
    assert folder == "/tmp"
    assert {"size=10m", "nr_inodes=200", "nosuid", "nodev", "noexec", "mode=0700"} <= set(options.split(","))


def test_it_is_no_root_and_says_whose_it_is(inspected: dict[str, Any]) -> None:
    config = inspected["Config"]
    assert config["User"] == "1000:1000"
    assert config["OpenStdin"]
    assert config["StdinOnce"]  # so that it ends with its server
    assert not config["Tty"]
    labels = {name for name in config["Labels"] if name.startswith("mcp-tools.sandbox")}
    parts = ("", ".instance", ".owner", ".owner-start", ".host")
    assert labels == {f"mcp-tools.sandbox{part}" for part in parts}
    assert not [each for each in config["Env"] or [] if "PROXY" in each.upper()]


def test_the_code_sees_the_same_from_inside(docker_engine: Engine, docker_image: str) -> None:
    code = (
        "said = dict(line.split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)\n"
        "names = ('CapEff', 'CapPrm', 'CapBnd', 'NoNewPrivs', 'Seccomp', 'Uid')\n"
        "print(*(said[name].strip() for name in names))"
    )
    with DockerSandbox(docker_image, CONFIG, engine=docker_engine.address) as sandbox:
        result = sandbox.execute_sync(code)
        assert result.success, result.stderr
        none = "0" * 16
        assert result.stdout.split() == [none, none, none, "1", "2", *["1000"] * 4]
        assert sandbox.level is IsolationLevel.L3


def test_where_the_kernel_has_no_landlock_the_agent_is_the_first_process(
    docker_engine: Engine, docker_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's init holds our streams too, and without Landlock nothing would keep code from them."""
    modules = json.loads(zlib.decompress(bundle.payload().partition(b"\n")[2]))
    landlock = "def abi() -> int:"
    assert landlock in modules["sandbox.linux.landlock"]
    modules["sandbox.linux.landlock"] += "\n\ndef abi():\n    return 0\n"
    data = zlib.compress(json.dumps(modules).encode())
    monkeypatch.setattr(bundle, "payload", lambda: b"%d\n%b" % (len(data), data))
    with DockerSandbox(docker_image, CONFIG, engine=docker_engine.address) as sandbox:
        # As far as the agent can tell. The code's own attempt really is without Landlock.
        result = sandbox.execute_sync("import os\nopen('/proc/1/comm').read(), os.listdir('/proc/1/fd')")
        assert result.exception == "PermissionError", result
        assert sandbox.execute_sync("open('/proc/1/comm').read()").value != "'docker-init\\n'"
        assert sandbox.execute_sync("x = 1", session="s").success
        assert sandbox.execute_sync("x", session="s").value == "1"


def test_a_folder_of_the_host_is_the_only_mount(
    docker_engine: Engine, docker_image: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    config = SandboxConfig(working_dir=str(tmp_path), pool_size=1)
    with DockerSandbox(docker_image, config, engine=docker_engine.address) as sandbox:
        code = "open('made', 'w').write('here')\nimport os; os.getcwd()"
        result = sandbox.execute_sync(code, session="looked at")
        assert (result.value, (tmp_path / "made").read_text()) == ("'/work'", "here")
        (one,) = containers_of(sandbox, docker_engine)
        seen = [(each["Type"], each["Source"], each["Destination"], each["RW"]) for each in one["Mounts"]]
        assert seen == [("bind", str(tmp_path.resolve()), "/work", True)]

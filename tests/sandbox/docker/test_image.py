"""Images made from this host's Python and built by the engine; each is run, not looked at."""

from __future__ import annotations

import importlib.metadata
import io
import platform
import struct
import sys
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import SandboxConfig, SandboxConfigError, SandboxUnavailable
from sandbox.docker import DockerSandbox, image
from sandbox.docker.engine import Engine as Connection
from sandbox.docker.host_python import archive_host_python
from tests.docker_engine import Engine, connect

GREETING = "greeting-1.5-py3-none-any.whl"


@pytest.fixture(scope="module")
def engine(docker_engine: Engine) -> Iterator[Connection]:
    connection = connect(docker_engine.address)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def names(engine: Connection) -> Iterator[Callable[[], str]]:
    """Names for images of this module, which are removed after it."""
    given: list[str] = []

    def new() -> str:
        given.append(f"mcp-tools-test-{uuid.uuid4().hex[:12]}:1")
        return given[-1]

    yield new
    there = {tag for each in engine.ask("images") for tag in each["RepoTags"] or ()}
    for name in reversed(given):
        if name in there:
            engine.ask("remove_image", name, force=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package to install without an index."""
    path = tmp_path_factory.mktemp("wheel") / GREETING
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("greeting.py", "HELLO = 'hello'\n")
        archive.writestr(
            "greeting-1.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.5\n"
        )
        archive.writestr(
            "greeting-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("greeting-1.5.dist-info/RECORD", "")
    return path


@pytest.fixture(scope="module")
def pip_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pip that installed us, as a file to install."""
    return packed("pip", tmp_path_factory.mktemp("pip"))


def packed(name: str, folder: Path) -> Path:
    """A distribution that is installed here as a wheel again, so that no index is needed."""
    distribution = importlib.metadata.distribution(name)
    about = f"{name}-{distribution.version}"
    wheel = distribution.read_text("WHEEL")
    assert wheel is not None
    tag = next(line.split()[1] for line in wheel.splitlines() if line.startswith("Tag:"))
    path = folder / f"{about}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in distribution.files or ():
            if file.suffix != ".pyc" and ".." not in file.parts and file.name != "RECORD":
                archive.write(str(file.locate()), str(file))
        archive.writestr(f"{about}.dist-info/RECORD", "")
    return path


@pytest.fixture(scope="module")
def members(docker_image_archive: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(docker_image_archive) as archive:
        return {member.name: member for member in archive}


# --- From this host ---------------------------------------------------------------------------


def test_an_image_from_this_host_runs_behind_the_walls(engine: Connection, docker_image: str) -> None:
    facts = image.check(engine, docker_image)
    assert (facts.name, facts.python, facts.machine, facts.packages) == (
        docker_image,
        platform.python_version(),
        platform.machine(),
        {},
    )
    assert 30e6 < facts.size_bytes < 150e6


def test_extension_modules_find_their_libraries(engine: Connection, docker_image: str) -> None:
    code = "import bz2, ctypes, decimal, hashlib, lzma, sqlite3, uuid, ssl; print(ssl.RAND_bytes(1) != b'')"
    assert ran(engine, docker_image, code) == "True"


def test_packages_that_were_asked_for_are_there(
    engine: Connection, names: Callable[[], str], wheel: Path, tmp_path: Path
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"{wheel}\n")
    name, said = names(), list[str]()
    image.import_from_host(engine, name, requirements=[str(requirements)], on_progress=said.append)
    assert image.check(engine, name).packages == {"greeting": "1.5"}
    assert ran(engine, name, "import greeting; print(greeting.HELLO)") == "hello"
    assert said[-1].endswith(f"as {name}")


def test_packages_with_libraries_of_their_own_run_in_a_sandbox(
    engine: Connection, docker_engine: Engine, names: Callable[[], str], tmp_path: Path
) -> None:
    """numpy brings a library that its modules name by a way through `..`."""
    name = names()
    image.import_from_host(engine, name, packages=[str(packed("numpy", tmp_path))])
    with DockerSandbox(name, SandboxConfig(pool_size=1), engine=docker_engine.address) as sandbox:
        result = sandbox.execute_sync("import numpy; print(numpy.linalg.inv([[2.0]])[0, 0])")
    assert (result.stdout, result.backend) == ("0.5\n", "docker")


def test_a_package_that_does_not_exist_leaves_no_image(
    engine: Connection, names: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    name = names()
    with pytest.raises(SandboxUnavailable, match=r"installing packages: .*no-such-package"):
        image.import_from_host(engine, name, packages=["no-such-package-of-ours"])
    assert name not in {tag for each in engine.ask("images") for tag in each["RepoTags"] or ()}


def test_every_module_is_there_compiled_and_up_to_date(
    docker_image_archive: Path, members: dict[str, tarfile.TarInfo]
) -> None:
    """A container's root is read-only: what is not compiled in the image is compiled in every call."""
    tag = sys.implementation.cache_tag
    sources = [name for name in members if name.endswith(".py")]
    assert len(sources) > 500
    with tarfile.open(docker_image_archive) as archive:
        for name in sources:
            folder, _, module = name.rpartition("/")
            compiled = archive.extractfile(f"{folder}/__pycache__/{module[:-3]}.{tag}.pyc")
            assert compiled is not None
            flags, seconds, size = struct.unpack("<4x3I", compiled.read(16))
            assert flags or (seconds, size) == (int(members[name].mtime), members[name].size), name


def test_modules_that_nobody_compiled_are_compiled(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_COMPILE", "1")
    file = io.BytesIO()
    archive_host_python(file, packages=[str(wheel)])
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        found = [name for name in archive.getnames() if "greeting" in name and name.endswith(".pyc")]
    assert len(found) == 1


def test_the_archive_holds_no_shell_no_rights_and_nobody_elses_packages(
    members: dict[str, tarfile.TarInfo],
) -> None:
    assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
    assert [name for name, member in members.items() if member.mode & 0o6000] == []
    assert [name for name in members if name.endswith(("/sh", "/bash", "/ls"))] == []
    assert [name for name in members if "pytest" in name or "/docker/" in name] == []
    writable = [name for name, member in members.items() if not member.issym() and member.mode & 0o022]
    assert writable == ["tmp"]


def test_an_interpreter_that_does_not_run_is_named() -> None:
    with pytest.raises(SandboxConfigError, match="does not run: /no/such/python"):
        archive_host_python(io.BytesIO(), interpreter="/no/such/python")


def test_an_engine_for_other_machines_is_refused(engine: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    there = platform.machine()
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(SandboxUnavailable, match=f"linux on {there}, this host is pdp11. Build it on a base"):
        image.import_from_host(engine, "x:1")


def test_a_host_that_is_no_linux_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match=r"this is darwin\. Build it on a base image instead"):
        archive_host_python(io.BytesIO())


# --- Built by the engine ----------------------------------------------------------------------


def test_a_build_installs_on_a_base_and_tells_how_it_goes(
    engine: Connection, names: Callable[[], str], wheel: Path, pip_wheel: Path
) -> None:
    base, name, said = names(), names(), list[str]()
    image.import_from_host(engine, base, packages=[str(pip_wheel)])
    image.build(engine, name, base=base, packages=[str(wheel)], on_progress=said.append)
    assert image.check(engine, name).packages["greeting"] == "1.5"
    assert ran(engine, name, "import greeting; print(greeting.HELLO)") == "hello"
    assert any("Successfully installed greeting-1.5" in line for line in said)
    assert engine.ask("containers", all=True, filters={"ancestor": base}) == []


def test_a_base_that_is_not_there_is_a_clear_error(engine: Connection, names: Callable[[], str]) -> None:
    with pytest.raises(SandboxUnavailable, match=r"building .*mcp-tools-no-such-base"):
        image.build(engine, names(), base="mcp-tools-no-such-base:1")


def test_a_step_that_fails_says_what_it_said(
    engine: Connection, names: Callable[[], str], docker_image: str
) -> None:
    with pytest.raises(SandboxUnavailable, match="No module named pip"):
        image.build(engine, names(), base=docker_image, packages=["numpy"])


def test_what_the_engine_builds_from_runs_no_shell(wheel: Path, tmp_path: Path) -> None:
    requirements = tmp_path / "mine.txt"
    requirements.write_text("pandas\n")
    context = image.build_context("python:3.12", ["numpy>=2; rm -rf /", str(wheel)], [str(requirements)])
    with tarfile.open(fileobj=context) as archive:
        assert archive.getnames() == ["requirements-0.txt", GREETING, "Dockerfile"]
        dockerfile = archive.extractfile("Dockerfile")
        assert dockerfile is not None
        lines = dockerfile.read().decode().splitlines()
    assert lines[:5] == [
        "FROM python:3.12",
        "USER 0:0",
        f'COPY ["requirements-0.txt", "{GREETING}", "/opt/mcp-tools/"]',
        "ARG PIP_BREAK_SYSTEM_PACKAGES=1",
        'RUN ["python3", "-m", "pip", "install", "--no-cache-dir", "--no-input", '
        '"--disable-pip-version-check", "-r", "/opt/mcp-tools/requirements-0.txt", '
        f'"numpy>=2; rm -rf /", "/opt/mcp-tools/{GREETING}"]',
    ]
    assert lines[6:] == ["USER 1000:1000", "ENTRYPOINT []", 'CMD ["python3"]']


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["--index-url=https://a.example", "-e .", "", "numpy\nUSER 0", "./no.whl"])
def test_what_is_no_package_is_refused(engine: Connection, spec: str) -> None:
    with pytest.raises(SandboxConfigError, match="is no requirement"):
        image.build(engine, "x:1", packages=[spec])
    with pytest.raises(SandboxConfigError, match="is no requirement"):
        image.import_from_host(engine, "x:1", packages=[spec])


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "x:", "x:y z", "-x", "x@sha256:12", "x:" + "y" * 129])
def test_what_is_no_name_is_refused(engine: Connection, name: str) -> None:
    with pytest.raises(SandboxConfigError, match="is no name"):
        image.build(engine, name)


@pytest.mark.parametrize("base", ["", "x\nRUN evil", "--platform=x y", "x AS y"])
def test_what_is_no_base_is_refused(engine: Connection, base: str) -> None:
    with pytest.raises(SandboxConfigError, match="is no name of an image"):
        image.build(engine, "x:1", base=base)


def test_a_file_of_requirements_that_is_not_there_is_named(engine: Connection) -> None:
    with pytest.raises(SandboxConfigError, match=r"is no file: '/no/such\.txt'"):
        image.build(engine, "x:1", requirements=["/no/such.txt"])


# --- Whether an image can be used -------------------------------------------------------------


def test_an_image_that_is_not_there_is_named_with_what_to_do(engine: Connection) -> None:
    with pytest.raises(SandboxUnavailable, match=r"mcp-tools-no-such:1.*Build or pull the image first"):
        image.check(engine, "mcp-tools-no-such:1")


def test_an_image_without_python_is_found_out(engine: Connection, names: Callable[[], str]) -> None:
    empty, name = io.BytesIO(), names()
    with tarfile.open(fileobj=empty, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("readme"))
    repository, tag = name.split(":")
    engine.ask("import_image_from_data", empty.getvalue(), repository=repository, tag=tag)
    with pytest.raises(SandboxUnavailable, match=r"python3.*Take a base image with Python 3\.11 or newer"):
        image.check(engine, name)
    assert engine.ask("containers", all=True, filters={"ancestor": name}) == []


# --- Progress ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "lines"),
    [
        ({"stream": "Step 1/2 : FROM x\n"}, ["Step 1/2 : FROM x"]),
        ({"stream": "\n"}, []),
        ({"stream": "a\x1b[2Jb\x1b]c\nd"}, ["ab ]c", "d"]),
        (
            {"status": "Pulling from library/python", "id": "3.11-slim"},
            ["3.11-slim Pulling from library/python"],
        ),
        ({"status": "Downloading", "progressDetail": {"current": 1}, "id": "ab"}, []),
        ({"status": "Pull complete", "progressDetail": {}, "id": "ab"}, ["ab Pull complete"]),
        ({"aux": {"ID": "sha256:1"}}, []),
    ],
    ids=lambda value: "lines" if isinstance(value, list) else next(iter(value)),
)
def test_progress_is_told_in_lines(step: dict[str, object], lines: list[str]) -> None:
    assert list(image.progress_lines(step)) == lines


def ran(engine: Connection, name: str, code: str) -> str:
    """What a container of the image prints when it runs `code`."""
    container = engine.ask(
        "create_container",
        name,
        command=["python3", "-I", "-c", code],
        host_config=engine.host_config(network_mode="none", read_only=True),
    )["Id"]
    try:
        engine.ask("start", container)
        assert engine.ask("wait", container, timeout=60)["StatusCode"] == 0, engine.ask("logs", container)
        return str(engine.ask("logs", container).decode().strip())
    finally:
        engine.remove(container)

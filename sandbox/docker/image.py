"""Images for `DockerSandbox`: built by the engine on a base image, or made from this host's Python.

The second way needs no registry: an archive of the interpreter, its standard library, the libraries that
both are linked to and the packages asked for, imported as one layer. Everything else a distribution has,
such as a shell, is not in it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from sandbox.docker.host_python import archive_host_python
from sandbox.errors import Missing, SandboxConfigError, SandboxUnavailable

if TYPE_CHECKING:
    import docker

OnProgress = Callable[[str], None]
MINIMUM_PYTHON = (3, 11)
DEFAULT_BASE = "python:3.11-slim"
CHECK_S = 60
# Not the label that marks containers: those inherit the labels of their image.
LABELS = {"mcp-tools.image": "1"}
_NEWER = "Take a base image with Python 3.11 or newer as python3, and with pip."
_START_IT = "Start the engine, or name another one; `docker version` shows whether it answers."
_ENDED = ("Pull complete", "Download complete", "Already exists")
_SPEC = re.compile(r"[A-Za-z0-9][^\r\n\0]*")
_ARCHIVES = (".whl", ".tar.gz", ".zip")
# Official images come without compiled modules, and a container's root is read-only: each call would
# compile what it imports.
_COMPILE = "import compileall, sysconfig; compileall.compile_dir(sysconfig.get_path('stdlib'), quiet=2)"
_CHECK = """
import asyncio, ctypes, json, platform, select, sys, zipimport, zlib
from importlib.metadata import distributions
found = {d.metadata["Name"]: d.version for d in distributions()}
print(json.dumps({"python": list(sys.version_info[:3]), "machine": platform.machine(), "packages": found}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What a container of the image said of itself.

    Args:
        name: The image's name and tag.
        python: Such as `"3.11.2"`.
        machine: Such as `"x86_64"`.
        size_bytes: On the engine's disk, with its base.
        packages: Installed distributions and their versions.
    """

    name: str
    python: str
    machine: str
    size_bytes: int
    packages: dict[str, str]


def import_from_host(
    client: docker.DockerClient,
    name: str,
    *,
    packages: Sequence[str] = (),
    requirements: Sequence[str] = (),
    interpreter: str | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Make an image from this host's Python and import it. Only on Linux; needs no registry.

    Args:
        client: Of an engine with this host's architecture.
        name: `repository:tag`; an image that has it loses it.
        packages: What `pip install` takes: requirements, or files of packages.
        requirements: Files of requirements.
        interpreter: None is the one that runs this, without its virtual environment.
        on_progress: Is told what happens, a line at a time.
    Raises:
        SandboxConfigError: An argument makes no sense.
        SandboxUnavailable: This host, or the engine, cannot do it; names the remedy. There is no new image.
    """
    repository, tag = _split(name)
    _check_packages(packages, requirements)
    _check_architecture(client)
    tell = on_progress or _nobody
    with tempfile.TemporaryDirectory(prefix="mcp-tools-image-") as folder:
        path = Path(folder, "image.tar")
        with path.open("wb") as file:
            archive_host_python(
                file,
                packages=packages,
                requirements=requirements,
                interpreter=interpreter,
                on_progress=tell,
            )
        tell(f"importing {path.stat().st_size / 1e6:.0f} MB as {name}")
        labels = " ".join(f"{key}={value}" for key, value in LABELS.items())
        changes = [
            "ENV PATH=/usr/local/bin:/usr/bin:/bin",
            'CMD ["python3"]',
            "USER 1000:1000",
            f"LABEL {labels}",
        ]
        with _engine_errors("importing the image"):
            client.api.import_image(src=str(path), repository=repository, tag=tag, changes=changes)
            client.images.get(name)


def build(
    client: docker.DockerClient,
    name: str,
    *,
    base: str = DEFAULT_BASE,
    packages: Sequence[str] = (),
    requirements: Sequence[str] = (),
    pull: bool = False,
    on_progress: OnProgress | None = None,
) -> None:
    """Build an image on `base` with `packages`; the engine pulls `base` if it has none.

    Args:
        base: Has Python 3.11 or newer as `python3`, with pip if there are packages.
        pull: Ask the registry for a newer `base` also when there is one.
        client, name, packages, requirements, on_progress: As for `import_from_host`.
    Raises:
        SandboxConfigError: An argument makes no sense.
        SandboxUnavailable: The engine could not build it; the text ends with what it said.
    """
    _split(name)
    _check_packages(packages, requirements)
    if not re.fullmatch(r"[A-Za-z0-9][\w.:/@-]*", base):
        raise SandboxConfigError("base", f"is no name of an image: {base!r}")
    tell = on_progress or _nobody
    context = build_context(base, packages, requirements)
    with _engine_errors(f"building {name}"):
        steps = client.api.build(
            fileobj=context,
            custom_context=True,
            tag=name,
            labels=LABELS,
            pull=pull,
            rm=True,
            forcerm=True,
            decode=True,
            timeout=None,
        )
        said: list[str] = []
        for step in steps:
            for line in progress_lines(step):
                tell(line)
                said = [*said, line][-5:]
            if "error" in step:
                _fail(f"building {name}", " / ".join([*said, _text(step["error"])]))


def build_context(base: str, packages: Sequence[str], requirements: Sequence[str]) -> BinaryIO:
    """The archive that the engine builds from: a Dockerfile and the files it copies.

    Commands are lists, so nothing of them is read by a shell and the base image needs none.
    """
    lines = [f"FROM {base}", "USER 0:0"]
    words: list[str] = []
    files: dict[str, bytes] = {}
    for number, path in enumerate(requirements):
        files[f"requirements-{number}.txt"] = Path(path).read_bytes()
        words += ["-r", f"/opt/mcp-tools/requirements-{number}.txt"]
    for spec in packages:
        if _is_file(spec):
            files[Path(spec).name] = Path(spec).read_bytes()
            words.append(f"/opt/mcp-tools/{Path(spec).name}")
        else:
            words.append(spec)
    if files:
        lines.append(f"COPY {json.dumps([*files, '/opt/mcp-tools/'])}")
    if words:
        options = ("--no-cache-dir", "--no-input", "--disable-pip-version-check")
        lines.append(f"RUN {json.dumps(['python3', '-m', 'pip', 'install', *options, *words])}")
    lines += [
        f"RUN {json.dumps(['python3', '-I', '-c', _COMPILE])}",
        "USER 1000:1000",
        "ENTRYPOINT []",
        'CMD ["python3"]',
    ]
    files["Dockerfile"] = "\n".join([*lines, ""]).encode()
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for file_name, content in files.items():
            member = tarfile.TarInfo(file_name)
            member.size = len(content)
            member.mode = 0o644
            tar.addfile(member, io.BytesIO(content))
    context.seek(0)
    return context


def check(client: docker.DockerClient, name: str) -> ImageFacts:
    """Run the image's Python with the walls that the sandbox gives it, and ask what it is.

    Raises:
        SandboxUnavailable: It does not run, or it cannot be used; says why.
    """
    with _engine_errors(f"running {name}"):
        container = client.containers.create(
            name,
            command=["-I", "-c", _CHECK],
            entrypoint=["python3"],
            user="1000:1000",
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            tmpfs={"/tmp": "size=16m,noexec,nosuid,nodev"},  # noqa: S108 - of the container
            mem_limit="256m",
            pids_limit=32,
            init=True,
            working_dir="/tmp",  # noqa: S108
        )
        try:
            container.start()
            ended = container.wait(timeout=CHECK_S)
            out = container.logs(stdout=True, stderr=False, tail=1)
            problem = container.logs(stdout=False, stderr=True, tail=5)
            size = client.images.get(name).attrs.get("Size", 0)
        finally:
            container.remove(force=True, v=True)
    step = f"running {name}"
    if ended["StatusCode"] != 0:
        _fail(step, _text(problem) or f"its Python ended with {ended['StatusCode']}")
    try:
        facts = json.loads(out)
        version = tuple(int(number) for number in facts["python"])
    except (ValueError, KeyError, TypeError):
        _fail(step, f"its Python said {out[:200]!r}")
    if version < MINIMUM_PYTHON:
        _fail(step, f"its python3 is {'.'.join(map(str, version))}", _NEWER)
    return ImageFacts(
        name=name,
        python=".".join(map(str, version)),
        machine=str(facts["machine"]),
        size_bytes=size,
        packages={str(key): str(value) for key, value in sorted(facts["packages"].items())},
    )


def progress_lines(step: dict[str, Any]) -> Iterator[str]:
    """What is worth telling of one step of a build or pull: no line for every bit of a download."""
    if "stream" in step:
        yield from (line for line in map(_text, str(step["stream"]).splitlines()) if line)
    elif "status" in step and ("progressDetail" not in step or step["status"] in _ENDED):
        yield _text(f"{step.get('id', '')} {step['status']}")


def _split(name: str) -> tuple[str, str]:
    """`repository:tag` → both; a port of a registry is no tag."""
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, "latest"
    if not re.fullmatch(r"[a-z0-9][a-z0-9._/:-]*", repository) or not re.fullmatch(r"\w[\w.-]{0,127}", tag):
        raise SandboxConfigError("tag", f"is no name for an image, such as `tools-python:1`: {name!r}")
    return repository, tag


def _check_packages(packages: Sequence[str], requirements: Sequence[str]) -> None:
    for spec in packages:
        # A leading dash would be an option of pip's, which may run anything.
        if not _SPEC.fullmatch(spec) and not _is_file(spec):
            raise SandboxConfigError("packages", f"is no requirement and no file of a package: {spec!r}")
    for path in requirements:
        if not os.path.isfile(path):
            raise SandboxConfigError("requirements", f"is no file: {path!r}")


def _is_file(spec: str) -> bool:
    return spec.endswith(_ARCHIVES) and os.path.isfile(spec)


def _check_architecture(client: docker.DockerClient) -> None:
    with _engine_errors("asking the engine what it is"):
        info = client.info()
    system, machine = str(info.get("OSType")), str(info.get("Architecture"))
    if system != "linux" or machine != platform.machine():
        _fail(
            "making an image from this host's Python",
            f"the engine runs {system} on {machine}, this host is {platform.machine()}",
            "Build it on a base image instead, without --from-host.",
        )


@contextlib.contextmanager
def _engine_errors(step: str) -> Iterator[None]:
    """What the SDK, HTTP and sockets raise, as one error that names the step."""
    import docker.errors
    import requests.exceptions

    try:
        yield
    except docker.errors.ImageNotFound as error:
        _fail(step, _text(error.explanation or error), "Build or pull the image first.")
    except docker.errors.DockerException as error:
        _fail(step, _text(getattr(error, "explanation", None) or error))
    except (requests.exceptions.RequestException, OSError) as error:
        _fail(step, _text(error), _START_IT)


def _fail(step: str, reason: str, remedy: str = "The engine's log tells more.") -> NoReturn:
    missing = Missing(level="L3", step=step, reason=reason, remedy=remedy)
    raise SandboxUnavailable("there is no such image to use", (missing,)) from None


def _text(said: object) -> str:
    """One bounded line of what somebody else wrote, without what a terminal would obey."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).strip()[:500]


def _nobody(_line: str) -> None:
    return None

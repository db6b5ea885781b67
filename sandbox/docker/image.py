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
from sandbox.errors import Missing, SandboxConfigError, SandboxError, SandboxUnavailable

if TYPE_CHECKING:
    from sandbox.docker.engine import Engine

OnProgress = Callable[[str], None]
MINIMUM_PYTHON = (3, 11)
DEFAULT_BASE = "python:3.11-slim"
CHECK_S = 60
# Not the label that marks containers: those inherit the labels of their image.
LABELS = {"mcp-tools.image": "1"}
_NEWER = "Take a base image with Python 3.11 or newer as python3, and with pip."
_READ_IT = "If that does not say enough, the engine's log does."
_CHECK_NAMES = (
    "Check the names of the base and the packages, and the engine's way to their registries; "
    "`--from-host` needs none for the base."
)
_BUILD_IT = "Build or pull the image first, or check its name."
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
    engine: Engine,
    name: str,
    *,
    packages: Sequence[str] = (),
    requirements: Sequence[str] = (),
    interpreter: str | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Make an image from this host's Python and import it. Only on Linux; needs no registry.

    Args:
        engine: One with this host's architecture; its limit for an answer holds for the import.
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
    _check_architecture(engine)
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
            engine.ask("import_image", src=str(path), repository=repository, tag=tag, changes=changes)
            engine.ask("inspect_image", name)


def build(
    engine: Engine,
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
        engine, name, packages, requirements, on_progress: As for `import_from_host`.
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
        steps = engine.ask(
            "build",
            fileobj=context,
            custom_context=True,
            tag=name,
            labels=LABELS,
            pull=pull,
            rm=True,
            forcerm=True,
            decode=True,
        )
        said: list[str] = []
        for step in steps:
            for line in progress_lines(step):
                tell(line)
                said = [*said, line][-5:]
            if "error" in step:
                reason = " / ".join([*said, _text(step["error"])])
                no_pip = "No module named pip" in reason or "executable file not found" in reason
                _fail(f"building {name}", reason, _NEWER if no_pip else _CHECK_NAMES)


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
        # A distribution's Python refuses pip otherwise, to protect a system that an image is not. Older
        # versions of pip do not know the option, and read over the variable.
        lines.append("ARG PIP_BREAK_SYSTEM_PACKAGES=1")
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


def check(engine: Engine, name: str) -> ImageFacts:
    """Run the image's Python with the walls that the sandbox gives it, and ask what it is.

    Raises:
        SandboxUnavailable: It does not run, or it cannot be used; says why.
    """
    with _engine_errors(f"running {name}"):
        size = int(engine.ask("inspect_image", name).get("Size", 0))
        container = engine.ask(
            "create_container",
            name,
            command=["-I", "-c", _CHECK],
            entrypoint=["python3"],
            user="1000:1000",
            working_dir="/tmp",  # noqa: S108 - of the container
            host_config=engine.host_config(
                network_mode="none",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                tmpfs={"/tmp": "size=16m,noexec,nosuid,nodev"},  # noqa: S108
                mem_limit="256m",
                pids_limit=32,
                init=True,
            ),
        )["Id"]
        try:
            engine.ask("start", container)
            ended = engine.ask("wait", container, timeout=CHECK_S)
            out = engine.ask("logs", container, stdout=True, stderr=False, tail=1)
            problem = engine.ask("logs", container, stdout=False, stderr=True, tail=5)
        finally:
            engine.remove(container)
    step = f"running {name}"
    if ended["StatusCode"] != 0:
        _fail(step, _text(problem) or f"its Python ended with {ended['StatusCode']}", _NEWER)
    try:
        facts = json.loads(out)
        version = tuple(int(number) for number in facts["python"])
    except (ValueError, KeyError, TypeError):
        _fail(step, f"its Python said {out[:200]!r}", _NEWER)
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
        is_missing_file = spec.endswith(_ARCHIVES) and "://" not in spec
        if (is_missing_file or not _SPEC.fullmatch(spec)) and not _is_file(spec):
            raise SandboxConfigError("packages", f"is no requirement and no file of a package: {spec!r}")
    for path in requirements:
        if not os.path.isfile(path):
            raise SandboxConfigError("requirements", f"is no file: {path!r}")


def _is_file(spec: str) -> bool:
    return spec.endswith(_ARCHIVES) and os.path.isfile(spec)


def _check_architecture(engine: Engine) -> None:
    with _engine_errors("asking the engine what it is"):
        info = engine.ask("info")
    system, machine = str(info.get("OSType")), str(info.get("Architecture"))
    if system != "linux" or machine != platform.machine():
        _fail(
            "making an image from this host's Python",
            f"the engine runs {system} on {machine}, this host is {platform.machine()}",
            "Build it on a base image instead, without --from-host.",
        )


@contextlib.contextmanager
def _engine_errors(step: str) -> Iterator[None]:
    """What the engine said, or what broke while it was still answering, as an error that names the step."""
    from sandbox.docker.engine import EngineFault

    try:
        yield
    except SandboxError:
        raise
    except EngineFault as fault:
        _fail(step, _text(fault), _BUILD_IT if fault.status == 404 else _READ_IT)
    except Exception as error:  # of the SDK, HTTP or the socket, while the answer was read
        _fail(step, _text(error) or type(error).__name__, _READ_IT)


def _fail(step: str, reason: str, remedy: str) -> NoReturn:
    missing = Missing(level="L3", step=step, reason=reason, remedy=remedy)
    raise SandboxUnavailable("there is no such image to use", (missing,)) from None


def _text(said: object) -> str:
    """One bounded line of what somebody else wrote, without what a terminal would obey."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)  # colours
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).strip()[:500]


def _nobody(_line: str) -> None:
    return None

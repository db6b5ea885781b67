"""This host's Python as an archive of an image: what the interpreter needs to run, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from sandbox.errors import Missing, SandboxConfigError, SandboxUnavailable

OnProgress = Callable[[str], None]
_ASK_S = 30
# Of the standard library: what code in a sandbox cannot use, and 100 MB of tests.
_LEFT_OUT = frozenset(
    (
        *("test", "tests", "idlelib", "turtledemo", "tkinter", "lib2to3", "ensurepip"),
        *("dist-packages", "site-packages", "__pycache__"),
    )
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/:/bin/false\nsandbox:x:1000:1000:sandbox:/tmp:/bin/false\n",
    "etc/group": "root:x:0:\nsandbox:x:1000:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_FOLDERS = ("dev", "mnt", "proc", "sys", "usr/local/bin", "work")
_DATA = (
    "/usr/share/zoneinfo",
    "/usr/lib/locale/C.utf8",
    "/etc/ld.so.cache",
    "/etc/services",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
)
_FACTS = """
import json, os, sys, sysconfig
print(json.dumps({
    "executable": os.path.realpath(sys.executable),
    "base": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),
    "version": "%d.%d" % sys.version_info[:2],
    "tag": sys.implementation.cache_tag,
    "folders": sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}),
    "packages": sysconfig.get_path("purelib"),
}))
"""
_COMPILE = """
import json, py_compile, sys
for shown, source, compiled in json.load(sys.stdin):
    try:
        py_compile.compile(source, cfile=compiled, dfile=shown, doraise=True)
    except (py_compile.PyCompileError, OSError):
        pass
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Python:
    executable: str
    version: str
    tag: str
    folders: tuple[str, ...]
    packages: str


def archive_host_python(
    file: BinaryIO,
    *,
    packages: Sequence[str] = (),
    requirements: Sequence[str] = (),
    interpreter: str | None = None,
    on_progress: OnProgress = lambda _text: None,
) -> None:
    """Write a tar of an interpreter of this host, everything at the path it has here.

    Args:
        packages: What `pip install` takes.
        requirements: Files of requirements.
        interpreter: None is the one that runs this, without its virtual environment.
        on_progress: Is told what happens, a line at a time.
    Raises:
        SandboxUnavailable: This host cannot do it; names the remedy.
    """
    if sys.platform != "linux":
        raise _unavailable(
            "making an image from this host's Python",
            f"containers run Linux, and this is {sys.platform}",
            "Build it on a base image instead, without --from-host.",
        )
    python = _ask(interpreter)
    with tempfile.TemporaryDirectory(prefix="mcp-tools-image-") as scratch:
        installed = Path(scratch, "packages")
        if packages or requirements:
            _install(python, installed, packages, requirements, on_progress)
        on_progress(f"collecting Python {python.version} of {python.executable}")
        files = dict(_standard_library(python))
        files |= {
            f"{python.packages}{path[len(str(installed)) :]}": path for path in _files(str(installed), ())
        }
        files |= {path: path for path in _data()}
        files[python.executable] = python.executable
        linked = [path for path in files.values() if path == python.executable or ".so" in Path(path).name]
        files |= {path: path for path in _libraries(linked)}
        files |= _compiled(python, files, Path(scratch))
        with tarfile.open(fileobj=file, mode="w") as tar:
            _write(tar, python, files)


def _ask(interpreter: str | None) -> _Python:
    path = interpreter or getattr(sys, "_base_executable", None) or sys.executable
    facts = _facts(path)
    if facts["base"] != facts["executable"]:  # a virtual environment's
        facts = _facts(facts["base"])
    return _Python(
        executable=facts["executable"],
        version=facts["version"],
        tag=facts["tag"],
        folders=tuple(facts["folders"]),
        packages=facts["packages"],
    )


def _facts(interpreter: str) -> dict[str, str]:
    try:
        done = subprocess.run(  # noqa: S603 - the owner's choice
            [interpreter, "-I", "-c", _FACTS], capture_output=True, timeout=_ASK_S, check=True
        )
        facts: dict[str, str] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise SandboxConfigError("interpreter", f"does not run: {interpreter}: {error}") from None
    return facts


def _install(
    python: _Python,
    target: Path,
    packages: Sequence[str],
    requirements: Sequence[str],
    on_progress: OnProgress,
) -> None:
    words = [word for path in requirements for word in ("-r", path)] + list(packages)
    argv = [*_installer(python), "--target", str(target), *words]
    last: list[str] = []
    with subprocess.Popen(  # noqa: S603 - requirements were checked
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                on_progress(line.rstrip()[:500])
                last = [*last, line.strip()[:500]][-5:]
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise _unavailable(
            "installing packages",
            " / ".join(last),
            "Check the packages' names and pip's access to its index.",
        )


def _installer(python: _Python) -> list[str]:
    """pip of that interpreter, or ours if it is the same version, or uv."""
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    # Into a folder of their own: what is installed here has no part in it.
    quiet += ["--no-warn-conflicts", "--root-user-action=ignore"]
    candidates = [python.executable]
    if sys.implementation.cache_tag == python.tag:
        candidates.append(sys.executable)
    for each in candidates:
        done = subprocess.run(  # noqa: S603
            [each, "-I", "-c", "import pip"], capture_output=True, timeout=_ASK_S, check=False
        )
        if done.returncode == 0:
            return [each, "-I", "-m", "pip", "install", *quiet]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--python", python.executable]
    raise _unavailable(
        "installing packages",
        f"{python.executable} has no pip",
        "Install it: `python3 -m ensurepip`, or Debian's package python3-pip.",
    )


def _standard_library(python: _Python) -> Iterator[tuple[str, str]]:
    for folder in python.folders:
        for path in _files(folder, _LEFT_OUT, f"config-{python.version}"):
            yield path, path
            compiled = _cache_path(path, python.tag)
            if compiled and _is_current(compiled, path):
                yield compiled, compiled


def _files(folder: str, left_out: Iterable[str], left_out_prefix: str | None = None) -> Iterator[str]:
    """Regular files below, links to files among them."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if name not in left_out and not (left_out_prefix and name.startswith(left_out_prefix))
        ]
        for name in names:
            path = os.path.join(parent, name)
            if os.path.isfile(path) and not name.endswith((".a", ".o")):
                yield path


def _data() -> Iterator[str]:
    for path in _DATA:
        yield from _files(path, ()) if os.path.isdir(path) else ([path] if os.path.isfile(path) else [])


def _libraries(linked: Sequence[str]) -> set[str]:
    """What the dynamic loader would load for these files, at the paths where it looks."""
    found: set[str] = set()
    # ldd says 1 as soon as one of them is no program; what matters is whether the result runs.
    done = subprocess.run(  # noqa: S603
        ["ldd", *linked],  # noqa: S607 - of the owner's PATH, like the interpreter
        capture_output=True,
        timeout=_ASK_S,
        check=False,
        text=True,
        errors="replace",
    )
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) >= 2 and line[:1].isspace() and words[-1].startswith("(0x"):
            found.add(words[-2])
    # Those of packages lie beside them, and are told as `…/numpy/../numpy.libs/…`.
    found = {os.path.normpath(path) for path in found if path.startswith("/")}
    for folder in {os.path.dirname(path) for path in found}:
        # Loaded by name when a thread is cancelled.
        needed = os.path.join(folder, "libgcc_s.so.1")
        if os.path.exists(needed):
            found.add(needed)
    return found - set(linked)


def _compiled(python: _Python, files: dict[str, str], scratch: Path) -> dict[str, str]:
    """Compiled modules that this host lacks: where the root is read-only, every import would compile."""
    folder = scratch / "compiled"
    folder.mkdir()
    wanted: dict[str, tuple[str, str, str]] = {}
    for inside, source in files.items():
        compiled = _cache_path(inside, python.tag)
        if compiled and compiled not in files:
            wanted[compiled] = (inside, source, str(folder / f"{len(wanted)}.pyc"))
    if wanted:
        subprocess.run(  # noqa: S603
            [python.executable, "-I", "-S", "-c", _COMPILE],
            input=json.dumps(list(wanted.values())).encode(),
            check=True,
        )
    return {inside: path for inside, (_, _, path) in wanted.items() if os.path.exists(path)}


def _cache_path(source: str, tag: str) -> str | None:
    folder, name = os.path.split(source)
    return os.path.join(folder, "__pycache__", f"{name[:-3]}.{tag}.pyc") if name.endswith(".py") else None


def _is_current(compiled: str, source: str) -> bool:
    with contextlib.suppress(OSError), open(compiled, "rb") as file:
        head = file.read(16)
        if len(head) == 16:
            flags, seconds, size = struct.unpack("<4x3I", head)
            found = os.stat(source)
            now = (int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF)
            return bool(flags) or (seconds, size) == now
    return False


def _write(tar: tarfile.TarFile, python: _Python, files: dict[str, str]) -> None:
    folders = {folder for path in files for folder in _parents(path.lstrip("/"))}
    folders |= {folder for path in (*_FILES, *_FOLDERS) for folder in (*_parents(path),)} | set(_FOLDERS)
    for folder in sorted(folders - {"tmp"}):
        tar.addfile(_member(folder, tarfile.DIRTYPE, mode=0o755))
    tar.addfile(_member("tmp", tarfile.DIRTYPE, mode=0o1777))
    for inside, text in _FILES.items():
        content = text.encode()
        tar.addfile(_member(inside, size=len(content)), BytesIO(content))
    for inside, path in sorted(files.items()):
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            mode = 0o755 if found.st_mode & 0o111 else 0o644
            # Modules keep their times: compiled ones are checked against them.
            member = _member(inside.lstrip("/"), size=found.st_size, mode=mode, seconds=int(found.st_mtime))
            tar.addfile(member, file)
    for name in ("python3", "python"):
        link = _member(f"usr/local/bin/{name}", tarfile.SYMTYPE, mode=0o777)
        link.linkname = python.executable
        if f"/{link.name}" not in files:
            tar.addfile(link)


def _member(
    name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, mode: int = 0o644, seconds: int = 0
) -> tarfile.TarInfo:
    """Owned by root, whoever made it."""
    member = tarfile.TarInfo(name)
    member.type, member.size, member.mode, member.mtime = kind, size, mode, seconds
    return member


def _parents(path: str) -> Iterator[str]:
    while path := os.path.dirname(path):
        yield path


def _unavailable(step: str, reason: str, remedy: str) -> SandboxUnavailable:
    missing = Missing(level="L3", step=step, reason=reason, remedy=remedy)
    return SandboxUnavailable("the image was not made", (missing,))

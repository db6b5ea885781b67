"""The lock and the wheel: complete, checked by hash, without addresses, the same every time."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("run", "dev", "bench")

# S-03: the first releases without a known hole in what a network peer can reach.
MINIMUMS = {
    "mcp": "2.2.0",
    "starlette": "1.0.1",
    "h11": "0.16",
    "python-multipart": "0.0.22",
    "filelock": "3.20.1",
}


def locked(name: str) -> dict[str, Requirement]:
    """The requirements of a lock file by canonical name, with their hashes checked for being there."""
    found: dict[str, Requirement] = {}
    for entry in (ROOT / f"requirements/{name}.txt").read_text().replace("\\\n", "").splitlines():
        if not entry.strip() or entry.startswith("#"):
            continue
        requirement, *hashes = entry.split("--hash=")
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest.strip()) for digest in hashes), requirement
        parsed = Requirement(requirement.strip())
        assert [specifier.operator for specifier in parsed.specifier] == ["=="], requirement
        found[canonicalize_name(parsed.name)] = parsed
    return found


def group(name: str) -> list[Requirement]:
    """A dependency group, with the groups it includes."""
    found: list[Requirement] = []
    for entry in PROJECT["dependency-groups"][name]:
        if isinstance(entry, str):
            found.append(Requirement(entry))
        else:
            found += group(entry["include-group"])
    return found


WANTED = {
    "run": [Requirement(entry) for entry in PROJECT["project"]["dependencies"]] + group("build"),
    "dev": [Requirement(entry) for entry in PROJECT["project"]["dependencies"]] + group("dev"),
    "bench": [Requirement(entry) for entry in PROJECT["project"]["dependencies"]] + group("bench"),
}


def version_of(requirement: Requirement) -> Version:
    return Version(next(iter(requirement.specifier)).version)


@pytest.mark.parametrize("name", LOCKS)
def test_lock_names_no_address(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    for trace in ("://", "--index-url", "--find-links", "--extra-index", "--trusted-host", "@", "pypi"):
        assert trace not in text


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_every_direct_dependency_in_a_version_we_accept(name: str) -> None:
    pins = locked(name)
    for requirement in WANTED[name]:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in the lock; run scripts/lock"
        assert version_of(pin) in requirement.specifier, f"{requirement} against {pin}; run scripts/lock"


def test_lock_has_what_the_dependencies_need_in_turn() -> None:
    """S-01, as far as this machine's markers go: everything reachable is pinned, as installed."""
    pins = locked("dev")
    waiting = [canonicalize_name(requirement.name) for requirement in WANTED["dev"]]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        assert name in pins, f"{name} is not in the lock"
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    assert len(seen) > 40


def test_locks_agree_with_each_other() -> None:
    run, dev, bench = (locked(name) for name in LOCKS)
    for name, pin in run.items():
        assert dev[name].specifier == pin.specifier
        assert bench[name].specifier == pin.specifier


@pytest.mark.parametrize("package", MINIMUMS)
def test_no_lock_goes_below_the_known_safe_minimum(package: str) -> None:
    """S-03. A package that nothing brings in is fine too."""
    for name in LOCKS:
        pin = locked(name).get(package)
        assert pin is None or version_of(pin) >= Version(MINIMUMS[package])
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        return
    assert Version(installed) >= Version(MINIMUMS[package])


def test_the_declared_floors_hold_the_minimums_too() -> None:
    """Whoever installs us without the lock gets no older ones either."""
    declared = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["project"]["dependencies"])}
    for package in ("mcp", "starlette", "h11", "python-multipart"):
        floors = [Version(s.version) for s in declared[package].specifier if s.operator == ">="]
        assert max(floors) >= Version(MINIMUMS[package])


def test_every_dependency_gives_its_reason() -> None:
    lines = (
        (ROOT / "pyproject.toml").read_text().split("\ndependencies = [\n")[1].split("\n]\n")[0].splitlines()
    )
    for line in lines:
        assert "#" in line, f"no reason is given for {line.strip()}"


# --- The wheel --------------------------------------------------------------------------------


def build_wheel(folder: Path) -> Path:
    """Build from a copy of what belongs to the distribution, at its own place each time."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "mcp_tools", "sandbox", "tests"):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")],
        cwd=source,
        env={"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": "1700000000", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def test_wheel_is_the_same_twice_and_holds_what_it_should(tmp_path: Path) -> None:
    """S-04, and what is in it: both packages, typed, with the licence; no tests."""
    one, two = build_wheel(tmp_path / "one"), build_wheel(tmp_path / "elsewhere" / "two")
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(two.read_bytes()).digest()
    assert one.name == f"mcp_tools_server-{PROJECT['project']['version']}-py3-none-any.whl"
    with zipfile.ZipFile(one) as wheel:
        names = wheel.namelist()
        info = f"mcp_tools_server-{PROJECT['project']['version']}.dist-info"
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
        about = wheel.read(f"{info}/METADATA").decode()
    assert {name.partition("/")[0] for name in names} == {"mcp_tools", "sandbox", info}
    assert {"mcp_tools/py.typed", "sandbox/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    assert "mcp-tools = mcp_tools.cli.main:run_process" in entry_points
    assert "Requires-Python: >=3.11" in about
    assert "License-Expression: MIT" in about


def test_version_is_said_once() -> None:
    from mcp_tools import __version__

    assert __version__ == PROJECT["project"]["version"] == metadata.version("mcp-tools-server")

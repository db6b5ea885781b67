"""Python, what we depend on, and versions with known holes."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from mcp_tools.doctor.model import Finding, State, Subject

DISTRIBUTION: Final = "mcp-tools-server"
OLDEST_PYTHON: Final = (3, 11)

# First releases without a known hole, of what others bring along.
FLOORS_IF_INSTALLED: Final = {"filelock": "3.20.1"}

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)")
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-~.]?(rc|beta|alpha|b|a)[.-]?(\d+))?(.*)")
_OF_A_DISTRIBUTION = re.compile(r"(?i)ds\d|deb|ubuntu|\.?(el|fc|amzn|azl|cm)\d|suse|alpine|-r\d|-\d")
_STAGES = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "rc": 2}
_RELEASED = 3

Number = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """A hole that a version has or has not.

    Args:
        what: The program, as its engine names it.
        names: Of the holes.
        fixed: The first release without it, for each line of releases, in order.
    """

    what: str
    names: str
    fixed: tuple[str, ...]


HOLES: Final = (
    Hole(
        what="runc",
        names="CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: a container can get out",
        fixed=("1.2.8", "1.3.3", "1.4.0-rc.3"),
    ),
    Hole(
        what="Docker Desktop",
        names="CVE-2025-9074: a container can reach the engine and start others",
        fixed=("4.44.3",),
    ),
)


def number(text: str) -> tuple[Number, str] | None:
    """Read a version: `1.4.0-rc.3` is before `1.4.0`. Also returns what follows; None if it is none."""
    found = _VERSION.match(text.strip())
    if found is None:
        return None
    major, minor, patch, stage, count, rest = found.groups()
    stage_number = _STAGES[stage] if stage else _RELEASED
    return (int(major), int(minor), int(patch or 0), stage_number, int(count or 0)), rest


def known_hole(what: str, version: str, build: str = "") -> Finding | None:
    """Say whether this version of a program is one with a known hole; None if none is known of it.

    Args:
        what: Its name.
        version: What it says of itself.
        build: More that it says, such as its commit; Debian writes its own version there.
    A distribution mends old versions without giving them another number, so what it built is unknown.
    """
    hole = next((each for each in HOLES if each.what == what), None)
    if hole is None:
        return None
    read = number(version)
    remedy = f"Update {what} to {' or '.join(hole.fixed)}, or later."
    if read is None:
        return Finding(
            name=what,
            state=State.UNKNOWN,
            found=f"says {version[:80]!r} of its version; older than {hole.fixed[0]} has {hole.names}",
            remedy=remedy,
        )
    ours, rest = read
    if is_mended(ours, hole.fixed):
        return Finding(name=what, state=State.OK, found=version)
    if _OF_A_DISTRIBUTION.search(f"{rest} {build if not _is_commit(build) else ''}"):
        return Finding(
            name=what,
            state=State.UNKNOWN,
            found=f"{version} was built by a distribution, which may have mended it; "
            f"as released it has {hole.names}",
            remedy="Look whether your distribution's security tracker calls this package fixed, or u"
            + remedy[1:],
        )
    return Finding(name=what, state=State.WARNING, found=f"{version} has {hole.names}", remedy=remedy)


def _is_commit(build: str) -> bool:
    return re.fullmatch(r"(v\d[\w.]*-\d+-g)?[0-9a-f]{7,40}(-dirty)?", build) is not None


def is_mended(ours: Number, fixed: Sequence[str]) -> bool:
    """Whether a version is at or after the first good release of its line, or after all lines."""
    lines = [read[0] for read in map(number, fixed) if read is not None]
    if ours[:2] > lines[-1][:2]:
        return True
    return any(ours[:2] == line[:2] and ours >= line for line in lines) or (
        len(lines) == 1 and ours >= lines[0]
    )


def python(subject: Subject) -> Sequence[Finding]:
    """The interpreter that runs this."""
    version = platform.python_version()
    where = f"{platform.python_implementation()} {version} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return [
            Finding(
                name="Python",
                state=State.PROBLEM,
                found=where,
                remedy="Install mcp-tools with Python 3.11 or later.",
            )
        ]
    return [Finding(name="Python", state=State.OK, found=where)]


def dependencies(subject: Subject) -> Sequence[Finding]:
    """What we need: installed, and not older than it must be."""
    try:
        wanted = metadata.requires(DISTRIBUTION) or []
        ours = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return [
            Finding(
                name="mcp-tools",
                state=State.UNKNOWN,
                found="runs from a folder and is not installed, so nothing says what it needs",
                remedy="Install it with pip.",
            )
        ]
    found, good = [], []
    for requirement in wanted:
        parsed = _REQUIREMENT.match(requirement)
        if parsed is None or "extra ==" in requirement:
            continue
        name, rules = parsed.group(1), parsed.group(2)
        finding = _installed(name, rules)
        if isinstance(finding, str):
            good.append(finding)
        else:
            found.append(finding)
    for name, floor in FLOORS_IF_INSTALLED.items():
        finding = _installed(name, f">={floor}")
        if isinstance(finding, Finding) and finding.state is State.WARNING:
            found.append(finding)
    return [
        Finding(name="mcp-tools", state=State.OK, found=ours),
        *found,
        Finding(name="dependencies", state=State.OK, found=", ".join(good) or "none"),
    ]


def _installed(name: str, rules: str) -> str | Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(
            name=name, state=State.PROBLEM, found="is not installed", remedy=f"pip install '{name}{rules}'"
        )
    have = number(version)
    for operator, bound in re.findall(r"(>=|<)\s*([\w.]+)", rules):
        limit = number(bound if "." in bound else f"{bound}.0")
        if have is None or limit is None:
            continue
        if (operator == ">=" and have[0] < limit[0]) or (operator == "<" and have[0] >= limit[0]):
            return Finding(
                name=name,
                state=State.WARNING,
                found=f"{version} is installed, and {operator}{bound} is needed",
                remedy=f"pip install '{name}{rules}'",
            )
    return f"{name} {version}"

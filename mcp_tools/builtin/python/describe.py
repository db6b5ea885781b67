"""What a model is told about `execute_python`: what is really there, from the configuration."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Final

from mcp_tools.builtin.python.options import (
    in_container,
    is_closed,
    packages_folder,
    readable_folders,
    writable_folders,
)

if TYPE_CHECKING:
    from mcp_tools.builtin.python.options import Limits

MAX_PACKAGES: Final = 15

_WANTED_FIRST: Final = (
    *("numpy", "pandas", "matplotlib", "scipy", "scikit-learn", "polars", "sympy", "pillow", "openpyxl"),
    *("seaborn", "statsmodels", "networkx", "requests", "lxml", "beautifulsoup4", "pyyaml", "pyarrow"),
)
_NOT_FOR_CODE: Final = frozenset({"pip", "setuptools", "wheel"})
# PEP 503 and PEP 440. Anything else is not repeated to a model.
_DIST_INFO = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})-([0-9][A-Za-z0-9.!+_]{0,31})\.dist-info", re.ASCII
)


def description(limits: Limits) -> str:
    """Describe the tool as it is configured: some 1,500 characters, and the names of folders and modules."""
    paragraphs = (
        f"Run {_language(limits)} code in an isolated sandbox and return what it "
        "prints, the value of its last expression, and pictures.",
        f"{_imports(limits)} {_world(limits)} There is no shell and no other program.",
        "Each open matplotlib figure comes back as a picture by itself, and so do PNG, JPEG, GIF and WebP "
        "files in the folder os.environ['SANDBOX_OUT'] (usually /tmp/out). Of other files there, text comes "
        "back as text, the rest by name and size only.",
        f"Limits of a call: {limits.timeout_seconds:g} s, {limits.max_memory_mb} MiB of memory, "
        f"{limits.max_disk_mb} MiB of files in its own folders, {limits.max_processes} processes and "
        f"threads, {limits.max_output_bytes:,} bytes each of stdout and stderr. What was printed "
        "before a limit was reached comes back too.",
        "Each call starts from nothing, unless it names a `session`: then it continues with the variables, "
        "imports and files of the session's earlier calls, but not with threads or processes. A call that "
        "was stopped changes nothing in its session, and the answer says so where it could not be kept. "
        f"Unused sessions end after {_duration(limits.session_idle_seconds)}.",
    )
    return "\n\n".join(paragraphs)


def interpreter_version(packages: str | None) -> str:
    """Return `major.minor` of the Python that code runs with: a virtual environment brings its own."""
    folder = None if packages is None else packages_folder(packages)
    if folder is not None and folder != packages:
        return os.path.basename(os.path.dirname(folder)).removeprefix("python")
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def installed(packages: str | None) -> list[str]:
    """Return `name version` of what is installed there: what people ask for first, then by name."""
    if packages is None:
        return []
    found: dict[str, str] = {}
    for match in filter(None, map(_DIST_INFO.fullmatch, os.listdir(packages_folder(packages)))):
        name = match[1].replace("_", "-").lower()
        if name not in _NOT_FOR_CODE:
            found[name] = match[2]
    rank = {name: number for number, name in enumerate(_WANTED_FIRST)}
    ordered = sorted(found, key=lambda name: (rank.get(name, len(rank)), name))
    return [f"{name} {found[name]}" for name in ordered]


def _language(limits: Limits) -> str:
    """With its version, where that is known before anything runs: an image brings its own."""
    return "Python" if in_container(limits) else f"Python {interpreter_version(limits.packages)}"


def _imports(limits: Limits) -> str:
    names, image = installed(limits.packages), in_container(limits)
    if image is not None:
        told = f"It can import the standard library and what the image {image} has; nothing can be installed."
    elif not names:
        told = "It can import the standard library; nothing else is installed, and nothing can be."
    else:
        more = len(names) - MAX_PACKAGES
        rest = f" and {more} more packages" if more > 0 else ""
        listed = ", ".join(names[:MAX_PACKAGES])
        told = f"It can import the standard library, {listed}{rest}; nothing can be installed."
    if limits.preload:
        told += f" Already loaded, so fast to import: {', '.join(limits.preload)}."
    return told


def _world(limits: Limits) -> str:
    told = []
    if limits.allow_network:
        of_whom = "a container of this machine" if in_container(limits) else "this machine"
        told.append(f"It has the network of {of_whom}.")
    else:
        told.append("There is no network.")
    writable, readable = writable_folders(limits), readable_folders(limits)
    if limits.working_dir is not None:
        told.append(f"The working folder /work is {limits.working_dir} of this machine.")
    told += [f"{target} is {source} of this machine." for source, target in writable if target != "/work"]
    told += [f"{target} is {source} of this machine, for reading." for source, target in readable]
    if writable:
        told.append("What it changes there stays.")
    if not writable and not readable:
        told.append("It sees no files of this machine: hand over what it needs in `files`.")
    if not is_closed(limits):
        told.append("A person may be asked first.")
    return " ".join(told)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"

"""Everything that is measured, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.sandbox import containers, ours, peers
from benchmarks.sandbox.subject import Subject
from sandbox import IsolationLevel

REF = "python3 -c"
DOCKER, DOCKER_SESSION = "ours, Docker", "ours, Docker, in a session"
SESSION, PANDAS, COLD_PANDAS = "ours, in a session", "ours, pandas preloaded", "python -c, pandas imported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row.

    Args:
        make: Makes the subject from a folder and the path of the cgroup it is counted in.
        walls: What is between the code and the host.
        each_call: What a call gets: a process of its own or one that others used before.
        ours: Whether it is our sandbox.
    """

    name: str
    make: Callable[[Path, str | None], Subject]
    walls: str
    each_call: str
    ours: bool = False


def _ours(name: str, level: IsolationLevel, walls: str) -> Entry:
    make = partial(ours.Ours, level=level)
    return Entry(name=name, make=make, walls=walls, each_call="fresh fork", ours=True)


def level_name(level: IsolationLevel) -> str:
    return f"ours, {level}"


_L4 = IsolationLevel.L4_PLUS
FRESH = "new process"
ENTRIES = (
    Entry(name=REF, make=peers.CleanPython, walls="none", each_call=FRESH),
    Entry(name=f"{REF}, as this machine has it", make=peers.Python, walls="none", each_call=FRESH),
    Entry(name="python3 -I -S -c", make=peers.BarestPython, walls="none", each_call=FRESH),
    Entry(name="bwrap + python3 -c", make=peers.Bubblewrap, walls="namespaces", each_call=FRESH),
    Entry(name="sandlock", make=peers.Sandlock, walls="Landlock, seccomp", each_call=FRESH),
    Entry(
        name="llm-sandbox, bubblewrap", make=peers.LlmSandbox, walls="namespaces, seccomp", each_call=FRESH
    ),
    Entry(name="docker run", make=containers.DockerRun, walls="container", each_call="new container"),
    Entry(name="docker exec", make=containers.DockerExec, walls="one container for all", each_call=FRESH),
    Entry(name="Jupyter kernel, warm", make=peers.Jupyter, walls="none", each_call="the same process"),
    Entry(
        name="monty (a subset of Python)",
        make=peers.Monty,
        walls="an interpreter",
        each_call="a kept process",
    ),
    _ours(level_name(_L4), _L4, "namespaces, Landlock, seccomp, cgroup"),
    _ours(level_name(IsolationLevel.L4), IsolationLevel.L4, "namespaces, Landlock, seccomp"),
    _ours(level_name(IsolationLevel.L3), IsolationLevel.L3, "bwrap, Landlock, seccomp"),
    _ours(level_name(IsolationLevel.L2), IsolationLevel.L2, "Landlock, seccomp"),
    Entry(
        name=SESSION,
        make=partial(ours.Ours, level=_L4, in_session=True),
        walls="as L4+",
        each_call="fork of the session",
        ours=True,
    ),
    Entry(
        name=DOCKER,
        make=containers.OursInDocker,
        walls="container, seccomp, Landlock",
        each_call="fresh container",
        ours=True,
    ),
    Entry(
        name=DOCKER_SESSION,
        make=partial(containers.OursInDocker, in_session=True),
        walls="as ours, Docker",
        each_call="fork of the session",
        ours=True,
    ),
    Entry(name=COLD_PANDAS, make=peers.ColdPandas, walls="none", each_call=FRESH),
    Entry(
        name=PANDAS,
        make=partial(ours.OursWithPandas, level=_L4),
        walls="as L4+",
        each_call="fresh fork",
        ours=True,
    ),
)


def find(name: str) -> Entry:
    return next(entry for entry in ENTRIES if entry.name == name)

"""What the agent reads of its container's cgroup, on systems of either version."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.docker.inside.counters import Counters

SECOND = {
    "cgroup.controllers": "cpu memory pids",
    "memory.max": "67108864",
    "memory.events": "low 0\noom_kill 3\n",
    "pids.max": "20",
    "pids.events": "max 4\n",
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
}
FIRST = {
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "memory/memory.limit_in_bytes": "67108864",
    "pids/pids.max": "20",
    "pids/pids.events": "max 4\n",
}


def counters(folder: Path, files: dict[str, str]) -> Counters:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return Counters(str(folder))


@pytest.mark.parametrize(
    ("files", "version"),
    [
        (SECOND, 2),
        (FIRST | {"cpuacct/cpuacct.usage": "1500000\n"}, 1),
        (FIRST | {"cpu,cpuacct/cpuacct.usage": "1500000\n"}, 1),
    ],
    ids=["version 2", "version 1", "version 1 with joint names"],
)
def test_both_versions_say_the_same(tmp_path: Path, files: dict[str, str], version: int) -> None:
    found = counters(tmp_path, files)
    assert (found.version, found.limits_memory, found.limits_processes) == (version, True, True)
    assert (found.ooms(), found.refused_forks()) == (0, 0), "what was before counts no more"
    assert (found.counts_cpu, found.cpu_ns()) == (True, 1_500_000)


@pytest.mark.parametrize(
    "files",
    [
        {},
        FIRST,
        {name: text for name, text in SECOND.items() if name != "cpu.stat"},
        SECOND | {"cpu.stat": "nonsense"},
        SECOND | {"memory.max": "max"},
        SECOND | {"pids.max": "max"},
    ],
    ids=["no cgroup", "version 1 without", "version 2 without", "nonsense", "all memory", "all processes"],
)
def test_without_a_counter_that_is_the_container_s_own_none_is_used(
    tmp_path: Path, files: dict[str, str]
) -> None:
    assert not counters(tmp_path, files).counts_cpu

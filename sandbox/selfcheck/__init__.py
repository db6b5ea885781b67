"""Attacks on the sandbox, each with its control: the same attack works in the open, and fails inside.

    from sandbox import PythonSandbox
    from sandbox.selfcheck import run_all

    for finding in run_all(PythonSandbox):
        print(finding)

`python -m sandbox.selfcheck` does that on your own machine; with `--backend docker --image IMAGE`, in
containers of an engine on it.
"""

from __future__ import annotations

from sandbox.selfcheck import (
    calls,
    kernel,
    lies,
    limits,
    network,
    processes,
    randomness,
    secrets,
    sessions,
    times,
    writes,
)
from sandbox.selfcheck.model import Attack, Family, Finding, Need, Observation, Verdict
from sandbox.selfcheck.run import MakeSandbox, run_all, run_attack, run_controls
from sandbox.selfcheck.stage import Stage

ATTACKS: tuple[Attack, ...] = (
    *secrets.ATTACKS,
    *writes.ATTACKS,
    *network.ATTACKS,
    *kernel.ATTACKS,
    *processes.ATTACKS,
    *limits.ATTACKS,
    *times.ATTACKS,
    *calls.ATTACKS,
    *randomness.ATTACKS,
    *sessions.ATTACKS,
    *lies.ATTACKS,
)

__all__ = [
    "ATTACKS",
    "Attack",
    "Family",
    "Finding",
    "MakeSandbox",
    "Need",
    "Observation",
    "Stage",
    "Verdict",
    "run_all",
    "run_attack",
    "run_controls",
]

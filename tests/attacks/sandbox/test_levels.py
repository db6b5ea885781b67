"""Every attack of the self-check, at every level, as root and as an ordinary user (D-03 to D-25).

Two processes make them all, root's and the other's; each test here looks at one finding.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import pytest

from sandbox.selfcheck import ATTACKS, Attack, Need, Verdict
from sandbox.types import IsolationLevel
from tests.sandbox.places import Elsewhere

LEVELS = {
    "root": (IsolationLevel.L4_PLUS, IsolationLevel.L4, IsolationLevel.L3, IsolationLevel.L2),
    "user": (IsolationLevel.L4, IsolationLevel.L3, IsolationLevel.L2),
}
PLACES = [(who, level) for who, levels in LEVELS.items() for level in levels]
# What a control meets on a kernel that was built without the thing. Inside, it still has to be refused.
NOT_BUILT = ("ENOSYS", "EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT")

Findings = dict[tuple[str, IsolationLevel, str], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHole:
    """Attacks that get through today. With `always`, a test fails when they do not any more."""

    attacks: tuple[str, ...]
    levels: tuple[IsolationLevel, ...]
    why: str
    always: bool = True


_FORKING = (IsolationLevel.L3, IsolationLevel.L4, IsolationLevel.L4_PLUS)
KNOWN_HOLES = (
    KnownHole(
        attacks=(
            "forge a report in a session, then exit with an error",
            "forge a report in a session, then spin",
        ),
        levels=(IsolationLevel.L2, IsolationLevel.L3),
        why="a session's call that claims to be done goes on, or is reported with nothing measured",
        always=False,
    ),
)


class Runs:
    """Makes all attacks as root or as the other user, once."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        self._elsewhere = elsewhere
        self._found: dict[str, Findings] = {}
        self.said = ""  # by those that failed, on stderr

    def findings(self, who: str) -> Findings:
        if who not in self._found:
            self._found[who] = {}
            levels = [f"--level={level}" for level in LEVELS[who]]
            argv = ["-m", "sandbox.selfcheck", "--json", *levels]
            done = self._elsewhere.run(argv, user=who == "user", timeout_s=240)
            for line in done.stdout.splitlines():
                found = json.loads(line)
                self._found[who][who, IsolationLevel.parse(found["level"]), found["name"]] = found
            self.said += done.stderr
        return self._found[who]


@pytest.fixture(scope="session")
def runs(elsewhere: Elsewhere) -> Runs:
    return Runs(elsewhere)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.parametrize(("who", "level"), PLACES, ids=[f"{level} as {who}" for who, level in PLACES])
def test_attack_works_in_the_open_and_fails_inside(
    who: str, level: IsolationLevel, attack: Attack, runs: Runs
) -> None:
    finding = runs.findings(who).get((who, level, attack.name))
    assert finding is not None, f"nothing ran at {level}: {runs.said}"
    for hole in KNOWN_HOLES:
        if attack.name in hole.attacks and level in hole.levels:
            if not finding["held"]:
                pytest.xfail(hole.why)
            assert not hole.always, f"it is held now; remove it from KNOWN_HOLES: {hole.why}"
    assert finding["tried"], finding["detail"]
    if level in attack.not_promised:
        assert finding["verdict"] in (Verdict.NOT_PROMISED, Verdict.HELD), finding["detail"]
        return
    assert finding["held"], finding["detail"]
    if not finding["control_worked"]:
        control = finding["detail"].rpartition("the control did not work: ")[2]
        needs_root = Need.ROOT in attack.needs and (who == "user" or os.geteuid() != 0)
        assert needs_root or any(word in control for word in NOT_BUILT), finding["detail"]


@pytest.mark.parametrize("level", list(IsolationLevel)[1:], ids=str)
def test_what_a_level_does_not_promise_really_works_there(level: IsolationLevel, runs: Runs) -> None:
    """Otherwise we would promise less than we keep."""
    whos = [who for who, levels in LEVELS.items() if level in levels and (who == "user" or os.geteuid() == 0)]
    found = {key: each for who in whos for key, each in runs.findings(who).items()}
    for attack in ATTACKS:
        if level in attack.not_promised:
            verdicts = [found[(who, level, attack.name)]["verdict"] for who in whos]
            assert Verdict.NOT_PROMISED in verdicts, f"{attack.name} is held: {attack.not_promised[level]}"


def test_known_holes_are_of_attacks_that_there_are() -> None:
    assert {name for hole in KNOWN_HOLES for name in hole.attacks} <= {attack.name for attack in ATTACKS}

"""Every attack of the self-check in containers, several at a time; each test looks at one finding.

The embedded sandbox is attacked at all its levels by tests/attacks/sandbox.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from sandbox.selfcheck import ATTACKS, Attack, Finding, Need, Verdict, run_all
from tests.contract.backends import Backend

# What a control meets on a kernel that was built without the thing. Inside, it still has to be refused.
NOT_BUILT = ("ENOSYS", "EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT")

Findings = dict[str, Finding]


@pytest.fixture(scope="session")
def attacked(request: pytest.FixtureRequest) -> Callable[[str], Findings]:
    """Makes all attacks on a backend, once."""
    made: dict[str, Findings] = {}

    def findings(fixture: str) -> Findings:
        if fixture not in made:
            backend: Backend = request.getfixturevalue(fixture)
            made[fixture] = {finding.name: finding for finding in run_all(backend.open)}
        return made[fixture]

    return findings


each_backend = pytest.mark.parametrize("fixture", ["docker", "gvisor"], ids=["docker", "docker with gVisor"])


@each_backend
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_works_in_the_open_and_fails_inside(
    attack: Attack, fixture: str, attacked: Callable[[str], Findings]
) -> None:
    finding = attacked(fixture)[attack.name]
    assert finding.backend == "docker"
    assert finding.tried, finding.detail
    if finding.verdict is Verdict.NOT_PROMISED:
        assert "docker" in attack.not_promised_by
        return
    assert finding.held, finding.detail
    if not finding.control_worked:
        control = finding.detail.rpartition("the control did not work: ")[2]
        needs_root = Need.ROOT in attack.needs and os.geteuid() != 0
        assert needs_root or any(word in control for word in NOT_BUILT), finding.detail


@each_backend
def test_what_is_not_promised_really_works_there(fixture: str, attacked: Callable[[str], Findings]) -> None:
    """Otherwise we would promise less than we keep."""
    found = attacked(fixture)
    for attack in ATTACKS:
        if "docker" in attack.not_promised_by:
            assert found[attack.name].verdict is Verdict.NOT_PROMISED, found[attack.name].detail

"""`--attack`: the self-check on the sandbox that would be chosen, and what a breach looks like."""

from __future__ import annotations

from mcp_tools.doctor import State
from mcp_tools.doctor.attacks import told
from sandbox.selfcheck import Family, Finding
from sandbox.types import IsolationLevel
from tests.doctor.conftest import Doctor, without_user_namespaces


def attacked(name: str, **fields: object) -> Finding:
    facts = {"held": True, "control_worked": True, "detail": "EPERM"} | fields
    return Finding(name=name, family=Family.NETWORK, level=IsolationLevel.L2, **facts)  # type: ignore[arg-type]


def test_each_breach_is_reported_with_its_evidence() -> None:
    found = told(
        [
            attacked("connects"),
            attacked(
                "listens", held=False, detail="a listener on the host saw it, token=abcdefghijklmnop1234"
            ),
            attacked("sends", held=False, not_promised="L2 has no network namespace"),
            attacked("pings", control_worked=False),
        ],
        "the embedded sandbox at L2",
    )
    states = {finding.name: finding.state for finding in found}
    assert states == {
        "attacks": State.PROBLEM,
        "network: listens": State.PROBLEM,
        "not proved": State.WARNING,
        "network: sends": State.WARNING,
    }
    text = str(found)
    assert "1 breached, 1 held, 1 not promised, 1 unproven" in text
    assert "a listener on the host saw it" in text
    assert "abcdefghijklmnop" not in text


def test_where_nothing_is_breached_it_says_so() -> None:
    (only,) = told([attacked("connects")], "containers at L3")
    assert only.state is State.OK
    assert only.found == "1 on containers at L3: 1 held"


def test_attacks_that_prove_nothing_do_not_count_as_withstood() -> None:
    """Also where there was none at all."""
    only_unproven = told([attacked("pings", control_worked=False)], "containers at L3")
    assert [each.state for each in only_unproven] == [State.UNKNOWN, State.WARNING]
    (nothing,) = told([], "containers at L3")
    assert nothing.state is State.UNKNOWN


def test_with_the_tool_off_there_is_nothing_to_attack(no_python: Doctor) -> None:
    said = no_python("--attack")
    assert said.code == 0
    assert "turned off" in said.one("attacks")["found"]


def test_a_level_that_cannot_be_had_is_not_attacked(doctor: Doctor) -> None:
    """Nothing weaker is attacked in its place."""
    wanted = ("--attack", "--python-minimum-level", "L4+", "--python-backend", "linux")
    said = doctor(*wanted, through=without_user_namespaces())
    assert said.code == 1
    assert said.one("attacks")["state"] == "unknown"
    assert "nothing could be attacked" in said.one("attacks")["found"]


def test_this_machine_withstands_every_attack(doctor: Doctor) -> None:
    said = doctor("--attack", timeout_s=240)
    assert said.code == 0, said.out
    finding = said.one("attacks", "attacks")
    assert finding["state"] == "ok"
    assert "breached" not in finding["found"]
    assert int(finding["found"].split()[0]) > 100

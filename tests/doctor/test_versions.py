"""E-10: versions with known holes are named; what a distribution built is unknown; others are fine."""

from __future__ import annotations

import pytest

from mcp_tools.doctor import State
from mcp_tools.doctor.versions import known_hole


@pytest.mark.parametrize(
    ("version", "build", "state"),
    [
        ("1.1.15", "", State.WARNING),
        ("1.2.7", "v1.2.7-0-gaab2a3b4", State.WARNING),
        ("1.2.8", "v1.2.8-0-geeb7e602", State.OK),
        ("1.2.10", "", State.OK),
        ("1.3.0", "", State.WARNING),
        ("1.3.2", "", State.WARNING),
        ("1.3.3", "", State.OK),
        ("1.4.0-rc.1", "", State.WARNING),
        ("1.4.0-rc.2", "", State.WARNING),
        ("1.4.0-rc.3", "", State.OK),
        ("1.4.0", "", State.OK),
        ("1.5.0-rc.1", "", State.OK),
        ("2.0.0", "", State.OK),
        ("1.1.5+ds1", "1.1.5+ds1-1+deb12u1", State.UNKNOWN),
        ("1.1.15", "1.1.15+ds1-2+b4", State.UNKNOWN),
        ("1.1.12-0ubuntu3.1", "", State.UNKNOWN),
        ("1.1.12-4.el9", "", State.UNKNOWN),
        ("1.2.8+ds1", "", State.OK),
        ("unknown", "", State.UNKNOWN),
        ("", "", State.UNKNOWN),
    ],
)
def test_runc(version: str, build: str, state: State) -> None:
    finding = known_hole("runc", version, build)
    assert finding is not None
    assert finding.state is state
    if state is not State.OK:
        assert "CVE-2025-31133" in finding.found
        assert "1.2.8" in finding.remedy


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("4.44.2", State.WARNING),
        ("4.9.1", State.WARNING),
        ("4.44.3", State.OK),
        ("4.51.0", State.OK),
        ("5.0.0", State.OK),
    ],
)
def test_docker_desktop(version: str, state: State) -> None:
    finding = known_hole("Docker Desktop", version)
    assert finding is not None
    assert finding.state is state


def test_of_others_nothing_is_said() -> None:
    assert known_hole("crun", "0.1") is None

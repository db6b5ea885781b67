"""D-19: where a host lacks something, a lower level or a refusal that names it; never code without walls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.attacks.sandbox import hosts
from tests.sandbox.places import STRANGER, Elsewhere, interpreter_for_all

PROBE = """
import json, os, sys
from sandbox import IsolationLevel, PythonSandbox, SandboxConfig, SandboxUnavailable
try:
    with PythonSandbox(SandboxConfig(minimum_level=IsolationLevel.parse(sys.argv[1]))) as sandbox:
        result = sandbox.execute_sync("print(6 * 7)\\nimport socket\\nsocket.socket()")
        answer = {"level": str(result.isolation), "said": result.stdout, "exception": result.exception}
        print(json.dumps(answer))
except SandboxUnavailable as error:
    print(json.dumps({"refused": str(error)}))
"""
WORKS = {"said": "42\n", "exception": "PermissionError"}


@pytest.fixture(params=[0, STRANGER], ids=["root", "user"])
def uid(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def probe(elsewhere: Elsewhere, what: str, uid: int, minimum: str = "L2") -> dict[str, Any]:
    """What the sandbox does on a host that lacks `what`."""
    prefix = [interpreter_for_all(), hosts.__file__, what, str(uid)]
    done = elsewhere.run(["-c", PROBE, minimum], prefix=prefix)
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_with_everything_there_it_is_level_4(elsewhere: Elsewhere, uid: int) -> None:
    """The control: the ways in which hosts are made do not lower the level themselves."""
    for what in ("nothing", "user_namespace"):
        assert probe(elsewhere, what, uid)["level"] in ("L4", "L4+"), what


def test_root_of_a_container_with_few_users_gets_level_4(elsewhere: Elsewhere) -> None:
    """Rootless containers and those of LXC have 65,536 users."""
    answer = probe(elsewhere, "few_users", 0)
    assert answer in ({"level": "L4+", **WORKS}, {"level": "L4", **WORKS})


def test_without_user_namespaces_a_user_gets_level_2(elsewhere: Elsewhere) -> None:
    assert probe(elsewhere, "no_user_namespaces", STRANGER) == {"level": "L2", **WORKS}


def test_without_user_namespaces_root_gets_less_or_a_refusal(elsewhere: Elsewhere) -> None:
    answer = probe(elsewhere, "no_user_namespaces", 0)
    assert answer in ({"level": "L3", **WORKS}, {"level": "L2", **WORKS})


def test_without_user_namespaces_the_refusal_names_the_knob(elsewhere: Elsewhere, uid: int) -> None:
    refused = probe(elsewhere, "no_user_namespaces", uid, "L4")["refused"]
    assert "user.max_user_namespaces" in refused


def test_in_a_container_it_is_level_2(elsewhere: Elsewhere, uid: int) -> None:
    assert probe(elsewhere, "container", uid) == {"level": "L2", **WORKS}


def test_in_a_container_the_refusal_speaks_of_its_profile(elsewhere: Elsewhere, uid: int) -> None:
    assert "container" in probe(elsewhere, "container", uid, "L3")["refused"]


def test_without_bubblewrap_the_refusal_names_the_package(elsewhere: Elsewhere) -> None:
    refused = probe(elsewhere, "no_bubblewrap,no_user_namespaces", STRANGER, "L3")["refused"]
    assert "Install the package bubblewrap" in refused


def test_without_namespaces_and_landlock_nothing_runs(elsewhere: Elsewhere, uid: int) -> None:
    refused = probe(elsewhere, "container,no_landlock", uid)["refused"]
    assert "Landlock" in refused


def test_without_landlock_there_is_no_level_2(elsewhere: Elsewhere, uid: int) -> None:
    answer = probe(elsewhere, "no_landlock", uid)
    assert "refused" in answer or answer["level"] not in ("L2", "none")

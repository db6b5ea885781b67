"""How checks are run: at once, each in its own time, and whatever one does, there is an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from mcp_tools.config import Settings
from mcp_tools.doctor import CHECKS, Check, Finding, State, Subject, Topic, examine


@pytest.fixture
def subject() -> Subject:
    return Subject(settings=Settings(), environ={}, home="", cwd=None, platform="linux")


def check(name: str, look: object, **fields: object) -> Check:
    return Check(name=name, topic=Topic.SETTINGS, look=look, **fields)  # type: ignore[arg-type]


def fine(_: Subject) -> Sequence[Finding]:
    return [Finding(name="fine", state=State.OK, found="it is")]


def test_a_check_that_hangs_is_a_finding_and_the_others_are_there(subject: Subject) -> None:
    release = threading.Event()

    def hang(_: Subject) -> Sequence[Finding]:
        release.wait(30)
        return ()

    began_s = time.monotonic()
    examined = examine(subject, [check("hangs", hang, seconds=0.3, is_required=True), check("fine", fine)])
    assert time.monotonic() - began_s < 3
    release.set()
    assert [each.check.name for each in examined] == ["hangs", "fine"]
    assert examined[0].findings[0].state is State.UNKNOWN
    assert "within 0.3 s" in examined[0].findings[0].found
    assert not examined[0].holds
    assert examined[1].findings[0].state is State.OK


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, RecursionError])
def test_a_check_that_raises_is_a_finding_without_its_secrets(
    error: type[BaseException], subject: Subject
) -> None:
    def fail(_: Subject) -> Sequence[Finding]:
        raise error("token=abcdefghijklmnop1234")

    examined = examine(subject, [check("fails", fail), check("fine", fine)])
    assert examined[0].findings[0].state is State.UNKNOWN
    assert error.__name__ in examined[0].findings[0].found
    assert "abcdefghijklmnop" not in examined[0].findings[0].found
    assert examined[0].holds, "only checks that are required decide"


def test_secrets_are_removed_from_what_any_check_says(subject: Subject) -> None:
    secret = "sk-" + "abcdefghijklmnop1234"

    def tell(_: Subject) -> Sequence[Finding]:
        return [Finding(name=f"x {secret}", state=State.OK, found=f"got {secret}", remedy=f"use {secret}")]

    assert secret not in str(examine(subject, [check("tells", tell)])[0].findings)


def test_checks_run_at_the_same_time(subject: Subject) -> None:
    meet = threading.Barrier(3)

    def wait(_: Subject) -> Sequence[Finding]:
        meet.wait(10)
        return fine(subject)

    examined = examine(subject, [check(f"number {number}", wait) for number in range(3)])
    assert all(each.findings[0].state is State.OK for each in examined)


def test_names_of_checks_are_unique() -> None:
    assert len({each.name for each in CHECKS}) == len(CHECKS)

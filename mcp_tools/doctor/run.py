"""Every check at once, each in its own time: one that hangs or fails is a finding like any other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from queue import Empty, SimpleQueue

from mcp_tools.doctor.model import Check, Examined, Finding, State, Subject
from mcp_tools.output.masking import describe_exception, mask_secrets

MAX_TEXT_CHARS = 1_000


def examine(subject: Subject, checks: Iterable[Check]) -> list[Examined]:
    """Run all checks at the same time and return what they found, in their order.

    A check that takes longer than it may is left behind in a daemon thread, which ends with the process.
    """
    checks = list(checks)
    began_s = time.monotonic()
    done: SimpleQueue[tuple[int, tuple[Finding, ...]]] = SimpleQueue()
    for number, check in enumerate(checks):
        thread = threading.Thread(
            target=_look, args=(number, check, subject, done), name=f"doctor: {check.name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no more threads on this machine, which is worth telling, too
            done.put((number, (_failed(check, error),)))
    waiting = dict(enumerate(checks))
    examined: dict[int, Examined] = {}
    while waiting:
        first_s = began_s + min(check.seconds for check in waiting.values())
        try:
            number, findings = done.get(timeout=max(0.0, first_s - time.monotonic()))
        except Empty:
            late = [number for number, check in waiting.items() if began_s + check.seconds <= first_s]
            for number in late:
                check = waiting.pop(number)
                examined[number] = Examined(check=check, findings=(_hung(check),), seconds=check.seconds)
            continue
        finished = waiting.pop(number, None)
        if finished is not None:
            seconds = time.monotonic() - began_s
            examined[number] = Examined(check=finished, findings=findings, seconds=seconds)
    return [examined[number] for number in range(len(checks))]


def _look(
    number: int, check: Check, subject: Subject, done: SimpleQueue[tuple[int, tuple[Finding, ...]]]
) -> None:
    try:
        findings = tuple(_clean(finding) for finding in check.look(subject))
        if not findings:
            findings = (Finding(name=check.name, state=State.OK, found="nothing to say"),)
    except BaseException as error:
        findings = (_failed(check, error),)
    done.put((number, findings))


def _failed(check: Check, error: BaseException) -> Finding:
    return Finding(
        name=check.name,
        state=State.UNKNOWN,
        found=f"this could not be looked at: {describe_exception(error)}",
        remedy="If nothing else here explains it, report it as a fault of mcp-tools.",
    )


def _clean(finding: Finding) -> Finding:
    """Nothing that looks like a secret leaves, whichever check forgot to think of it."""
    found, remedy = (mask_secrets(text)[:MAX_TEXT_CHARS] for text in (finding.found, finding.remedy))
    return replace(finding, name=mask_secrets(finding.name), found=found, remedy=remedy)


def _hung(check: Check) -> Finding:
    return Finding(
        name=check.name,
        state=State.UNKNOWN,
        found=f"this did not come to an end within {check.seconds:g} s",
        remedy="Something that it asks does not answer, or the machine is very busy: try again.",
    )

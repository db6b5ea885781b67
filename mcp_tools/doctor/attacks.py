"""The sandbox's self-check on the backend that would be chosen, told as findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from mcp_tools.doctor.model import Check, Examined, Finding, State, Subject, Topic
from mcp_tools.output.masking import mask_secrets

if TYPE_CHECKING:
    from sandbox.base import Sandbox
    from sandbox.selfcheck import Finding as Attacked
    from sandbox.types import SandboxConfig

CHECK = Check(name="attacks", topic=Topic.ATTACKS, look=lambda _: (), is_required=True)


def attack(subject: Subject) -> Examined:
    """Make every attack of the self-check in the open and inside the sandbox. Takes a minute or so.

    None of the owner's folders or packages is in that sandbox: some attacks fill what they can write.
    """
    import time

    began_s = time.monotonic()
    findings = tuple(_attack(subject))
    return Examined(check=CHECK, findings=findings, seconds=time.monotonic() - began_s)


def _attack(subject: Subject) -> list[Finding]:
    if subject.python is None:
        return [
            Finding(
                name="attacks",
                state=State.OK if not subject.python_error else State.UNKNOWN,
                found=subject.python_error or "execute_python is turned off: there is no sandbox to attack",
            )
        ]
    from sandbox.errors import SandboxError
    from sandbox.selfcheck import run_all
    from sandbox.types import IsolationLevel, SandboxConfig

    config = SandboxConfig(
        allow_network=subject.python.allow_network,
        minimum_level=IsolationLevel.parse(subject.python.minimum_level),
    )
    try:
        make, where = _maker(subject, config)
        found = run_all(make, config)
    except SandboxError as error:
        return [
            Finding(
                name="attacks",
                state=State.UNKNOWN,
                found=f"nothing could be attacked: {str(error).splitlines()[0]}",
                remedy="See what the topic isolation says.",
            )
        ]
    return told(found, where)


def _maker(subject: Subject, config: SandboxConfig) -> tuple[Callable[[SandboxConfig], Sandbox], str]:
    """What makes a sandbox like the one that would be chosen, and its name."""
    from sandbox.select import choose

    options = subject.python
    assert options is not None
    choice = choose(
        config,
        backend=options.backend,  # type: ignore[arg-type]  # checked when it was read
        image=options.image,
        runtime=options.runtime,
        engine=options.engine,
    )
    choice.sandbox.close()
    if choice.backend == "linux":
        from sandbox import PythonSandbox

        return PythonSandbox, f"the embedded sandbox at {choice.level}"
    from sandbox.docker import DockerSandbox

    def make(config: SandboxConfig) -> Sandbox:
        made: Sandbox = DockerSandbox(options.image, config, runtime=options.runtime, engine=options.engine)
        return made

    return make, f"containers at {choice.level}"


def _proves_nothing(finding: Attacked) -> bool:
    return str(finding.verdict) == "unproven"


def told(found: list[Attacked], where: str) -> list[Finding]:
    """What the attacks proved: a summary, then each breach, what proves nothing, and what is not promised."""
    counts = Counter(str(each.verdict) for each in found)
    breaches = [each for each in found if str(each.verdict) == "breached"]
    shown = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    state, remedy = State.OK, ""
    if breaches:
        state, remedy = State.PROBLEM, "Do not run code that you do not trust here, and report this."
    elif not counts["held"]:
        state, remedy = State.UNKNOWN, "Nothing is proved: see why the attacks could not be tried."
    told = [
        Finding(
            name="attacks",
            state=state,
            found=f"{len(found)} on {where}: {shown or 'none'}",
            remedy=remedy,
        )
    ]
    told += [
        Finding(
            name=f"{each.family}: {each.name}",
            state=State.PROBLEM,
            found=mask_secrets(f"breached: {each.detail}"),
            remedy="Report this; until then choose another backend with python_backend.",
        )
        for each in breaches
    ]
    if unproven := [f"{each.family}: {each.name} ({each.detail})" for each in found if _proves_nothing(each)]:
        told.append(
            Finding(
                name="not proved",
                state=State.WARNING,
                found=mask_secrets("; ".join(unproven)),
                remedy="These could not be tried here, or do no harm here even without a sandbox.",
            )
        )
    return told + [
        Finding(
            name=f"{each.family}: {each.name}",
            state=State.WARNING,
            found=f"works, and level {each.level} does not promise otherwise: {each.not_promised}",
            remedy="Raise python_minimum_level if that matters here.",
        )
        for each in found
        if str(each.verdict) == "not promised"
    ]

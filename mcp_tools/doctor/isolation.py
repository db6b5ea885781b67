"""What the embedded sandbox reaches here, by starting it, and what execute_python would run in."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcp_tools.doctor.model import Finding, State, Subject

if TYPE_CHECKING:
    from sandbox.errors import Missing

_KNOBS = {
    "user.max_user_namespaces": "/proc/sys/user/max_user_namespaces",
    "kernel.unprivileged_userns_clone": "/proc/sys/kernel/unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns": (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
    ),
}
_LANDLOCK_GAINS = ((2, "moving files"), (3, "truncating"), (4, "TCP"), (5, "devices"), (6, "signals"))


def embedded(subject: Subject) -> Sequence[Finding]:
    """Start an embedded sandbox as it is configured, and say what it reached and what more would need."""
    if not subject.platform.startswith("linux"):
        return [
            Finding(
                name="embedded sandbox",
                state=State.OK,
                found=f"needs Linux, and this is {subject.platform}: code runs in containers here",
            )
        ]
    from mcp_tools.builtin.python.options import PythonOptions, sandbox_config
    from sandbox.errors import SandboxConfigError
    from sandbox.select import detect
    from sandbox.types import IsolationLevel

    minimum = IsolationLevel.parse(subject.settings.python_minimum_level)
    try:
        host = detect(sandbox_config(subject.python or PythonOptions()))
    except SandboxConfigError as error:
        return [_impossible(str(error))]
    times = f"{host.walls_seconds * 1000:.0f} ms for its walls, {host.seconds:.1f} s with its start and end"
    is_enough = host.level >= minimum and host.level is not IsolationLevel.NONE
    found = [
        Finding(
            name="embedded sandbox",
            state=State.OK if is_enough else State.WARNING,
            found=(
                f"reaches {host.level} ({times})"
                if host.level is not IsolationLevel.NONE
                else "reaches no level here, so it runs nothing"
            )
            + ("" if is_enough else f"; the configured minimum is {minimum}"),
        )
    ]
    return found + _steps(host.missing)


def _steps(missing: Sequence[Missing]) -> list[Finding]:
    findings: dict[str, Finding] = {}
    for each in missing:
        # Several backends may miss the same level.
        name = f"why not {each.level}: {each.step}"
        findings[name] = Finding(name=name, state=State.WARNING, found=each.reason, remedy=each.remedy)
    return list(findings.values())


def _impossible(problem: str) -> Finding:
    return Finding(
        name="execute_python",
        state=State.PROBLEM,
        found=f"its settings make no sense: {problem}",
        remedy="Change the python_… setting that this names.",
    )


def chosen(subject: Subject) -> Sequence[Finding]:
    """Choose a backend just as the first call would, and let it run something."""
    settings = subject.settings
    if not settings.python_enabled:
        return [Finding(name="execute_python", state=State.OK, found="is turned off (python_enabled)")]
    if subject.python is None:
        return [_impossible(subject.python_error)]
    from mcp_tools.builtin.python.options import sandbox_config
    from sandbox.errors import SandboxConfigError, SandboxUnavailable
    from sandbox.select import choose

    options = subject.python
    minimum = settings.python_minimum_level
    try:
        choice = choose(
            sandbox_config(options),
            backend=settings.python_backend,  # type: ignore[arg-type]  # checked when it was read
            image=options.image,
            runtime=options.runtime,
            engine=options.engine,
        )
    except SandboxConfigError as error:
        return [_impossible(str(error))]
    except SandboxUnavailable as refusal:
        first = str(refusal).splitlines()[0]
        return [
            Finding(
                name="execute_python",
                state=State.PROBLEM,
                found=f"refuses every call: {first} (backend {settings.python_backend}, minimum {minimum})",
                remedy=_remedies(refusal.missing)
                or "Lower python_minimum_level if weaker walls are enough, or use --no-python.",
            )
        ]
    choice.sandbox.close()
    kind = "the embedded sandbox" if choice.backend == "linux" else f"containers of {options.image}"
    return [
        Finding(
            name="execute_python",
            state=State.OK,
            found=f"runs in {kind} at {choice.level} (backend {settings.python_backend}, minimum {minimum})",
        ),
        *_exposures(subject),
    ]


def _remedies(missing: Sequence[Missing]) -> str:
    return " ".join(dict.fromkeys(f"{each.level}: {each.remedy}" for each in missing))


def _exposures(subject: Subject) -> list[Finding]:
    settings, found = subject.settings, []
    network = "code has this machine's network, with everything that listens on it"
    if settings.python_backend == "docker":
        network = "code has the network of a container: this machine, and all that this machine can reach"
    if settings.python_network:
        found.append(
            Finding(
                name="network of its code",
                state=State.WARNING,
                found=network,
                remedy="Turn python_network off unless code needs it.",
            )
        )
    if settings.python_workspace:
        found.append(
            Finding(
                name="folder of its code",
                state=State.WARNING,
                found=f"code can change everything in {settings.roots[0]}; rules about paths do not bind it",
                remedy="Turn python_workspace off unless code needs it.",
            )
        )
    return found


def kernel(subject: Subject) -> Sequence[Finding]:
    """The kernel, its Landlock, and the knobs of user namespaces."""
    if not subject.platform.startswith("linux"):
        return [Finding(name="kernel", state=State.OK, found=f"{subject.platform}; nothing to look at")]
    system = os.uname()
    found = [Finding(name="kernel", state=State.OK, found=f"Linux {system.release} on {system.machine}")]
    try:
        from sandbox.linux import landlock
    except ImportError as error:
        return [
            *found,
            Finding(
                name="machine",
                state=State.WARNING,
                found=str(error),
                remedy="Use the Docker sandbox here (python_backend docker).",
            ),
        ]
    return [*found, _landlock(landlock.abi()), *_namespaces()]


def _landlock(abi: int) -> Finding:
    if abi == 0:
        return Finding(
            name="Landlock",
            state=State.WARNING,
            found="this kernel has none, or it is switched off",
            remedy="Boot Linux 5.13 or later with landlock in the parameter lsm=; in a container, let its "
            "seccomp profile allow landlock_create_ruleset.",
        )
    missing = [what for since, what in _LANDLOCK_GAINS if abi < since]
    told = f"; it does not cover {', '.join(missing)}, which seccomp has to" if missing else ""
    return Finding(name="Landlock", state=State.OK, found=f"ABI {abi}{told}")


def _namespaces() -> list[Finding]:
    values = {}
    for name, path in _KNOBS.items():
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            values[name] = file.read().strip()
    shown = ", ".join(f"{name}={value}" for name, value in values.items()) or "no setting can be read"
    finding = Finding(name="user namespaces", state=State.OK, found=shown)
    if values.get("user.max_user_namespaces") == "0":
        return [_closed(shown, "Set sysctl user.max_user_namespaces to a number above 0, such as 10000.")]
    if values.get("kernel.unprivileged_userns_clone") == "0" and os.geteuid() != 0:
        return [_closed(shown, "Set sysctl kernel.unprivileged_userns_clone=1.")]
    if values.get("kernel.apparmor_restrict_unprivileged_userns") == "1" and os.geteuid() != 0:
        return [
            _closed(
                shown,
                "Install an AppArmor profile that allows `userns` for this Python, or set sysctl "
                "kernel.apparmor_restrict_unprivileged_userns=0.",
            )
        ]
    return [finding]


def _closed(shown: str, remedy: str) -> Finding:
    return Finding(
        name="user namespaces", state=State.WARNING, found=f"are closed here: {shown}", remedy=remedy
    )


def bubblewrap(subject: Subject) -> Sequence[Finding]:
    """The program that level L3 needs, where L4 cannot be had."""
    if not subject.platform.startswith("linux"):
        return [Finding(name="bubblewrap", state=State.OK, found="not needed here")]
    path = shutil.which("bwrap", path=subject.environ.get("PATH"))
    if path is None:
        return [
            Finding(
                name="bubblewrap",
                state=State.OK,
                found="is not installed; only L3 needs it, where L4 cannot be had",
            )
        ]
    done = subprocess.run(  # noqa: S603 - found on the owner's own PATH, as the sandbox finds it
        [path, "--version"], capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL
    )
    version = done.stdout.strip().removeprefix("bubblewrap ")
    if done.returncode != 0 or not version:
        return [
            Finding(
                name="bubblewrap",
                state=State.WARNING,
                found=f"{path} does not run: {done.stderr.strip()[:200] or f'exit code {done.returncode}'}",
                remedy="Install the package bubblewrap anew.",
            )
        ]
    return [Finding(name="bubblewrap", state=State.OK, found=f"{version} at {path}")]

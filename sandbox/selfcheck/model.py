"""The words of the self-check: an attack, what was seen of it, and what that proves."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sandbox.types import IsolationLevel, SandboxConfig

if TYPE_CHECKING:
    from sandbox.selfcheck.arenas import Arena
    from sandbox.selfcheck.stage import Stage


class Family(StrEnum):
    """What an attack is after."""

    SECRETS = "secrets"  # read what belongs to the server or the host
    WRITES = "writes"  # change something outside
    NETWORK = "network"
    KERNEL = "kernel"  # reach parts of the kernel that code has no business with
    PROCESSES = "processes"  # signal, slow down or outlive others
    LIMITS = "limits"  # use more than the configuration allows
    TIME = "time"  # run on after the time limit
    CALLS = "calls"  # learn of another call, or be told apart from none
    LIES = "lies"  # make the server believe what did not happen


class Need(StrEnum):
    """What a control needs of the machine, or of the user that it runs as."""

    ROOT = "root"
    X86_64 = "an x86_64 machine"

    def is_met(self) -> bool:
        match self:
            case Need.ROOT:
                return os.geteuid() == 0
            case Need.X86_64:
                return os.uname().machine == "x86_64"


class Verdict(StrEnum):
    """What a finding proves."""

    HELD = "held"  # the attack works without the walls, and fails inside them
    BREACHED = "breached"
    UNPROVEN = "unproven"  # nothing is proved: no control, or the attack did not get as far as trying
    NOT_PROMISED = "not promised"  # it works, and the level does not say that it would not


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was seen of one attack in one place.

    Args:
        breach: The evidence that it worked; `""` if there is none.
        met: What it met instead, such as `"EPERM"`; `""` if it never got as far as trying, which proves
            nothing.
        trouble: Why it did not, as far as that is known.
    """

    breach: str = ""
    met: str = ""
    trouble: str = ""


Settings = Callable[["Stage", SandboxConfig], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One way out, as data.

    Args:
        name: A sentence that says what the code tries.
        family: What it is after.
        function: Makes the attempt in an arena; the same function in the open (the control) and inside walls.
        needs: What must be there for the control to work.
        not_promised: Levels of the embedded sandbox that do not stop it, each with the reason.
        not_promised_by: Other backends that do not stop it, each with the reason.
        settings: Fields of the `SandboxConfig` that it needs, from the stage and the configuration that is
            checked; attacks with the same function share a sandbox.
        alone: It watches something of the whole machine, so nothing else may run beside it.
    """

    name: str
    family: Family
    function: Callable[[Arena, Stage], Observation]
    needs: tuple[Need, ...] = ()
    not_promised: Mapping[IsolationLevel, str] = field(default_factory=dict)
    not_promised_by: Mapping[str, str] = field(default_factory=dict)
    settings: Settings | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one attack proved.

    Args:
        name, family: Of the attack.
        level: The level that it ran at; `NONE` when nothing ran.
        backend: The kind of sandbox that it ran in, as results say it.
        held: The walls held: the attack was tried inside, and there is no evidence that it worked.
        control_worked: The same attack worked in the open. `held` without it proves nothing.
        detail: The evidence, or what the attack met, or why nothing is proved.
        not_promised: Why this level, or backend, does not stop it; `""` if it does.
    """

    name: str
    family: Family
    level: IsolationLevel
    held: bool
    control_worked: bool
    detail: str
    not_promised: str = ""
    tried: bool = True
    backend: str = "linux"

    @property
    def verdict(self) -> Verdict:
        if not self.tried:
            return Verdict.UNPROVEN
        if not self.held:
            return Verdict.NOT_PROMISED if self.not_promised else Verdict.BREACHED
        return Verdict.HELD if self.control_worked else Verdict.UNPROVEN

    def __str__(self) -> str:
        reason = f" ({self.not_promised})" if self.verdict is Verdict.NOT_PROMISED else ""
        where = f"{self.backend} {self.level}"
        return f"{self.verdict:<12} {where:<10} {self.family}: {self.name}: {self.detail}{reason}"

"""Why the sandbox did not run something. That the code failed is a `SandboxResult`, not an error.

SandboxError
├── SandboxConfigError     the configuration makes no sense (also a ValueError); the owner can fix it
├── SandboxUnavailable     this host cannot enforce what is asked for; names the missing knob
├── SandboxBusy            no turn within `queue_seconds`; nothing was started; the caller can try again
├── SandboxDied            what watches over the call ended during it; the call was ended with it
└── SandboxClosed          the sandbox was closed
"""

from __future__ import annotations

from dataclasses import dataclass


class SandboxError(Exception):
    """The sandbox could not do what it was asked to."""


class SandboxConfigError(SandboxError, ValueError):
    """A setting makes no sense; `field` names it. Nothing was started."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Something that this host does not provide.

    Args:
        level: The isolation level that needs it, such as `"L4"`.
        step: What was tried, such as `"unshare(CLONE_NEWUSER)"`.
        reason: What the system answered.
        remedy: The exact setting, profile or package to change.
    """

    level: str
    step: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.level}: {self.step}: {self.reason}. {self.remedy}"


class SandboxUnavailable(SandboxError):
    """This host cannot enforce what is asked for. Nothing was started, nothing is loosened."""

    def __init__(self, problem: str, missing: tuple[Missing, ...] = ()) -> None:
        super().__init__("\n".join([problem, *(f"- {each}" for each in missing)]))
        self.missing = missing


class SandboxBusy(SandboxError):
    """There was no turn for the call in time. Nothing was started; trying again later makes sense."""


class SandboxDied(SandboxError):
    """The process that watches over calls ended while this one ran. The call was ended with it."""


class SandboxClosed(SandboxError):
    """The sandbox was closed before or during the call."""

"""The words of the doctor: what is looked at, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from mcp_tools.builtin.python.options import PythonOptions
    from mcp_tools.config import Settings
    from mcp_tools.config.sources import Source


class State(StrEnum):
    """What a finding means for its reader."""

    OK = "ok"
    WARNING = "warning"  # works, and could be better or safer
    PROBLEM = "problem"  # does not work
    UNKNOWN = "unknown"  # could not be told


class Topic(StrEnum):
    """What findings are grouped by, in the order in which they are shown."""

    ISOLATION = "isolation"
    DOCKER = "docker"
    SETTINGS = "settings"
    FOLDERS = "folders"
    CLIENTS = "clients"
    HTTP = "http"
    AUDIT = "audit"
    LIMITS = "limits"
    WEB = "web"
    VERSIONS = "versions"
    ATTACKS = "attacks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact, and what to do about it.

    Args:
        name: What was looked at; unique within its check.
        state: What it means.
        found: What is so, in one or two sentences. Holds no secret.
        remedy: What to change; `""` where there is nothing to do.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is examined. Everything that checks know of the machine's user comes from here.

    Args:
        settings: What holds; the defaults and flags alone where the rest cannot be read.
        settings_error: Why it cannot; `""` if it can.
        sources: Where settings come from.
        python: What `execute_python` may use; `None` where it is off or makes no sense.
        python_error: Why it makes no sense; `""` if it does.
        environ: The variables of this process.
        home: The user's folder; `""` if there is none.
        cwd: The current folder; `None` where it was deleted.
        platform: As `sys.platform`.
    """

    settings: Settings
    settings_error: str = ""
    sources: tuple[Source, ...] = ()
    python: PythonOptions | None = None
    python_error: str = ""
    environ: Mapping[str, str]
    home: str
    cwd: str | None
    platform: str


Look: TypeAlias = Callable[[Subject], Sequence[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something to look at.

    Args:
        name: Unique.
        topic: Where its findings are shown.
        look: Looks, and returns what it found. It may raise, and may block: both become findings.
        seconds: How long it may take.
        is_required: The configured minimum holds only if nothing it finds is a problem or unknown.
    """

    name: str
    topic: Topic
    look: Look
    seconds: float = 10.0
    is_required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What a check found.

    Args:
        check: Which one.
        findings: At least one.
        seconds: How long it took.
    """

    check: Check
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the configured minimum can hold, as far as this check tells."""
        bad = (State.PROBLEM, State.UNKNOWN)
        return not (self.check.is_required and any(finding.state in bad for finding in self.findings))

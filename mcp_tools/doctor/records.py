"""What outlives a call: whether its record can be written, and where limits are counted."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mcp_tools.doctor.model import Finding, State, Subject
from mcp_tools.errors import ConfigError

_MEBIBYTE = 1024**2


def audit(subject: Subject) -> Sequence[Finding]:
    """The audit log: on, in a safe place, writable. Changes nothing; `mcp-tools audit verify` reads it."""
    settings = subject.settings
    if not settings.audit_enabled:
        return [
            Finding(
                name="audit log",
                state=State.WARNING,
                found="off: what tools did cannot be looked up later",
                remedy="Leave --no-audit and audit_enabled = false out.",
            )
        ]
    from mcp_tools.production import audit_path

    try:
        found = [_audit_log(audit_path(settings, subject.environ), settings.roots)]
    except ConfigError as error:
        found = [
            _refused("audit log", error, "Change what this names, or name another file with --audit-log.")
        ]
    if settings.audit_anchor is None:
        found.append(
            Finding(
                name="anchor",
                state=State.OK,
                found="none: a log that was replaced as a whole would not show",
                remedy="Name a file on another disk with --audit-anchor, where that matters.",
            )
        )
    if settings.audit_required == "changes":
        found.append(
            Finding(
                name="required for",
                state=State.OK,
                found="tools that can change something; read-only ones run also unrecorded",
            )
        )
    return found


def _audit_log(path: str, roots: Sequence[str]) -> Finding:
    from mcp_tools.observe.audit.place import open_folder, real_path

    path = real_path(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return Finding(name="audit log", state=State.OK, found=f"{path}; made at the first start")
    os.close(open_folder(path, roots=roots))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"this user may not write in {folder}")
    if not os.path.exists(path):
        return Finding(name="audit log", state=State.OK, found=f"{path}; begun at the first start")
    size_mib = os.path.getsize(path) / _MEBIBYTE
    return Finding(name="audit log", state=State.OK, found=f"{path}, {size_mib:.1f} MiB")


def limits(subject: Subject) -> Sequence[Finding]:
    """Rates, budgets and places, each as it is understood, and where they are counted. Connects nowhere."""
    settings = subject.settings
    if not settings.limits:
        return [
            Finding(
                name="limits",
                state=State.OK,
                found="none: a client may call as often as it likes",
            )
        ]
    from mcp_tools.limits import parse_limit
    from mcp_tools.production import limits_place

    found = []
    for number, text in enumerate(settings.limits, start=1):
        try:
            limit = parse_limit(text)
        except ConfigError as error:
            found.append(_refused(f"limit {number}", error, "Change it as this says."))
        else:
            found.append(Finding(name=f"limit {number}", state=State.OK, found=limit.name))
    try:
        place = limits_place(settings, subject.environ)
    except ConfigError as error:
        return [*found, _refused("where", error, "Name a place that this machine has.")]
    shown = place if "://" not in place else f"a server ({place.partition(':')[0]})"
    return [*found, Finding(name="where", state=State.OK, found=f"counted in {shown}")]


def _refused(name: str, error: ConfigError, remedy: str) -> Finding:
    return Finding(name=name, state=State.PROBLEM, found=f"{error}; the server does not start", remedy=remedy)

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
    found.append(_anchor(subject))
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
    from mcp_tools.observe.audit.place import real_path

    path = real_path(path)
    if not _check_folder(path, roots, "the audit log"):
        return Finding(name="audit log", state=State.OK, found=f"{path}; made at the first start")
    if not os.path.exists(path):
        return Finding(name="audit log", state=State.OK, found=f"{path}; begun at the first start")
    size_mib = os.path.getsize(path) / _MEBIBYTE
    return Finding(name="audit log", state=State.OK, found=f"{path}, {size_mib:.1f} MiB")


def _anchor(subject: Subject) -> Finding:
    anchor = subject.settings.audit_anchor
    if anchor is None:
        return Finding(
            name="anchor",
            state=State.OK,
            found="none: a log that was replaced as a whole would not show",
            remedy="Name a file on another disk with --audit-anchor, where that matters.",
        )
    from mcp_tools.production import audit_path

    try:
        return _held_anchor(anchor, audit_path(subject.settings, subject.environ), subject.settings.roots)
    except ConfigError as error:
        remedy = "Look with `mcp-tools audit verify`; then change what this names, or move the anchor away."
        return _refused("anchor", error, remedy)


def _held_anchor(path: str, log: str, roots: Sequence[str]) -> Finding:
    """Whether the log can be opened beside its anchor.

    Raises:
        ConfigError: It cannot.
    """
    from mcp_tools.observe.audit.anchor import read_anchor
    from mcp_tools.observe.audit.place import real_path
    from mcp_tools.observe.audit.verify import holds

    path, log = real_path(path), real_path(log)
    if os.path.dirname(path) == os.path.dirname(log):
        raise ConfigError("the anchor of the audit log must not be in the log's own folder")
    _check_folder(path, roots, "the audit log's anchor")
    try:
        tip = read_anchor(path)
    except FileNotFoundError:
        return Finding(name="anchor", state=State.OK, found=f"{path}; begun at the first start")
    except ValueError as error:
        raise ConfigError(f"{path} is no anchor of an audit log") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        is_held = holds(log, tip)
    except OSError as error:
        raise ConfigError(f"{log} cannot be read: {error.strerror}") from error
    if not is_held:
        raise ConfigError(
            f"the audit log does not hold record {tip.seq}, which its anchor {path} names: it was cut or "
            "replaced"
        )
    return Finding(name="anchor", state=State.OK, found=f"{path}; the log holds record {tip.seq}, as it says")


def _check_folder(path: str, roots: Sequence[str], what: str) -> bool:
    """Whether the folder of a record is there, which then is a safe one. Changes nothing.

    Raises:
        ConfigError: It is not safe, or cannot be written or made.
    """
    from mcp_tools.observe.audit.place import open_folder

    folder = there = os.path.dirname(path)
    if os.path.isdir(folder):
        os.close(open_folder(path, roots=roots, what=what))
    else:  # which `open_folder` would make
        while not os.path.lexists(there):
            there = os.path.dirname(there)
        for root in map(os.path.realpath, roots):
            if os.path.commonpath([root, path]) == root:
                raise ConfigError(f"{what} {path} is inside {root}, which tools may change")
        if not os.path.isdir(there):
            raise ConfigError(f"{what} cannot be kept in {folder}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"this user may not write in {there}")
    return there == folder


def limits(subject: Subject) -> Sequence[Finding]:
    """Rates, budgets and places, each as it is understood, and where they are counted. Connects nowhere."""
    from mcp_tools.limits import parse_limit

    settings = subject.settings
    found = []
    if not settings.limits:
        what = "none: a client may call as often as it likes"
        found.append(Finding(name="limits", state=State.OK, found=what))
    for number, text in enumerate(settings.limits, start=1):
        try:
            limit = parse_limit(text)
        except ConfigError as error:
            found.append(_refused(f"limit {number}", error, "Change it as this says."))
        else:
            found.append(Finding(name=f"limit {number}", state=State.OK, found=limit.name))
    try:
        return [*found, _place_of_limits(subject)]
    except ConfigError as error:
        remedy = "Change what this names, or name another place with --limits-store."
        if settings.limits or settings.limits_store is not None:
            return [*found, _refused("where", error, remedy)]
        what = f"{error}; what calls use is kept in memory only"
        return [*found, Finding(name="where", state=State.WARNING, found=what, remedy=remedy)]


def _place_of_limits(subject: Subject) -> Finding:
    """Where they are counted.

    Raises:
        ConfigError: They cannot be there.
    """
    from mcp_tools.production import IN_MEMORY, limits_place

    place = limits_place(subject.settings, subject.environ)
    if place == IN_MEMORY:
        return Finding(name="where", state=State.OK, found="counted in memory, until the server ends")
    if "://" in place:
        from mcp_tools.limits import open_store

        open_store(place).close()  # which connects for the first call only
        shown = f"a server ({place.partition(':')[0]})"
    else:
        from mcp_tools.limits.sqlite import check_sqlite

        shown = place if check_sqlite(place) else f"{place}; made at the first start"
    return Finding(name="where", state=State.OK, found=f"counted in {shown}")


def _refused(name: str, error: ConfigError, remedy: str) -> Finding:
    return Finding(name=name, state=State.PROBLEM, found=f"{error}; the server does not start", remedy=remedy)

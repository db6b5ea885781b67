"""The settings: which files were read, and every name or value in them that is wrong."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from mcp_tools.config import FILE_NAME, user_config_folder
from mcp_tools.config.sources import Source
from mcp_tools.doctor.model import Finding, State, Subject

_WHOSE = {"owner": "your settings", "project": "the project's settings, which can only narrow yours"}


def settings(subject: Subject) -> Sequence[Finding]:
    """Every source of settings, what is wrong in it, and what their owner should know."""
    found = [_source(source) for source in subject.sources]
    if not any(source.role == "owner" for source in subject.sources):
        folder = user_config_folder(subject.environ)
        place = f" at {os.path.join(folder, FILE_NAME)}" if folder else ""
        found.insert(
            0, Finding(name="settings file", state=State.OK, found=f"there is none{place}; defaults hold")
        )
    told = " ".join(finding.found for finding in found if finding.state is State.PROBLEM)
    if subject.settings_error and not told:
        found.append(
            Finding(
                name="settings",
                state=State.PROBLEM,
                found=f"the server does not start: {subject.settings_error}",
                remedy="Change what this names.",
            )
        )
    found += [
        Finding(name=f"notice {number}", state=State.WARNING, found=notice)
        for number, notice in enumerate(subject.settings.notices, start=1)
    ]
    return found + _about_rules(subject)


def _source(source: Source) -> Finding:
    if source.problem or source.mistakes:
        return Finding(
            name=source.place,
            state=State.PROBLEM,
            found=source.problem or "; ".join(source.mistakes),
            remedy="The server does not start until this is right; docs/settings.md lists every setting.",
        )
    names = ", ".join(source.names) or "nothing"
    if source.role == "environment":
        return Finding(name=source.place, state=State.OK, found=f"sets {names}")
    if source.role == "owner" and (who := _who_else_may_change(source.place)):
        return Finding(
            name=source.place,
            state=State.WARNING,
            found=f"{who} may change it, and it decides what is allowed",
            remedy=f"chmod go-w {source.place}",
        )
    return Finding(name=source.place, state=State.OK, found=f"{_WHOSE[source.role]}: {names}")


def _who_else_may_change(path: str) -> str:
    if not hasattr(os, "getuid"):
        return ""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return ""
    if mode & stat.S_IWOTH:
        return "every user of this machine"
    return "everybody in its group" if mode & stat.S_IWGRP else ""


def _about_rules(subject: Subject) -> list[Finding]:
    from mcp_tools.errors import ConfigError
    from mcp_tools.policy import RulePolicy

    given = subject.settings
    try:
        policy = RulePolicy.parse(deny=given.deny, ask=given.ask, allow=given.allow)
    except ConfigError as error:
        return [
            Finding(
                name="rules",
                state=State.PROBLEM,
                found=str(error),
                remedy="A rule is `tool` or `tool(argument pattern)`; docs/settings.md has examples.",
            )
        ]
    if not policy.rules:
        return []
    counts = f"{len(given.deny)} deny, {len(given.ask)} ask, {len(given.allow)} allow"
    if "*" in given.allow:
        return [
            Finding(
                name="rules",
                state=State.WARNING,
                found=f"{counts}; `allow = *` lets every tool run without asking anybody",
                remedy="Allow the tools that you mean, by name.",
            )
        ]
    return [Finding(name="rules", state=State.OK, found=counts)]

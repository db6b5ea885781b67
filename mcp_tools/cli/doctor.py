"""`mcp-tools doctor`: what works here, what does not, and what to change."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from mcp_tools import __version__
from mcp_tools.cli import exits, terminal
from mcp_tools.cli.logs import logging_to_stderr
from mcp_tools.config import SETTINGS, Settings, load_settings
from mcp_tools.config.process import environment
from mcp_tools.config.sources import read_sources
from mcp_tools.config.values import Given
from mcp_tools.doctor import CHECKS, Examined, State, Subject, Topic, examine
from mcp_tools.errors import ConfigError
from mcp_tools.output.masking import mask_secrets
from mcp_tools.output.plain import to_json
from mcp_tools.shipped import python_options

SCHEMA_VERSION: Final = 1
"""Goes up when a program that reads `--json` would have to change."""

MIN_COLUMNS, MAX_COLUMNS = 60, 120
_MARKS: Final = {State.OK: "ok", State.WARNING: "warn", State.PROBLEM: "FAIL", State.UNKNOWN: "?"}
_TITLES: Final = {
    Topic.ISOLATION: "Isolation",
    Topic.DOCKER: "Docker",
    Topic.SETTINGS: "Settings",
    Topic.FOLDERS: "Folders",
    Topic.CLIENTS: "Clients",
    Topic.HTTP: "HTTP",
    Topic.AUDIT: "Audit",
    Topic.LIMITS: "Limits",
    Topic.WEB: "Web",
    Topic.VERSIONS: "Versions",
    Topic.ATTACKS: "Attacks",
}


def doctor(arguments: argparse.Namespace) -> int:
    """Examine, print, and say by the exit code whether the configured minimum holds."""
    subject = _subject(arguments)
    with logging_to_stderr("error", "human"):
        examined = examine(subject, CHECKS)
        if arguments.attack:
            from mcp_tools.doctor.attacks import attack

            print("mcp-tools: attacking the sandbox; this takes a minute or two", file=sys.stderr)
            examined.append(attack(subject))
    holds = all(each.holds for each in examined)
    if arguments.as_json:
        print(to_json(_as_data(examined, subject, holds=holds), indent=2))
    else:
        print(_as_text(examined, holds=holds))
    code = exits.OK if holds else exits.FAILED
    if any(thread.name.startswith("doctor: ") for thread in threading.enumerate()):
        # A check was left behind. Ending in order could wait for what it waits for; what it started ends when
        # it sees us gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _subject(arguments: argparse.Namespace) -> Subject:
    """What is examined. A wrong flag is a mistake in asking; a wrong file or variable is a finding.

    Raises:
        ConfigError: A flag is wrong, or names a file that does not exist.
    """
    environ = environment()
    flags = {name: getattr(arguments, name, None) for name in SETTINGS}
    cwd = _current_folder()
    given: dict[str, Any] = {
        name: SETTINGS[name].parse(
            Given(value=value, where="--" + name.replace("_", "-"), folder=cwd, is_text=True)
        )
        for name, value in flags.items()
        if value is not None
    }
    sources = read_sources(arguments.config, environ)
    settings, problem = Settings(**given), ""
    try:
        settings = load_settings(flags, config_file=arguments.config, environ=environ)
    except ConfigError as error:
        problem = str(error)
    subject = Subject(
        settings=settings,
        settings_error=problem,
        sources=sources,
        environ=environ,
        home=_home(),
        cwd=cwd,
        platform=sys.platform,
    )
    if not settings.python_enabled:
        return subject
    try:
        return replace(subject, python=python_options(settings))
    except ConfigError as error:
        return replace(subject, python_error=str(error))


def _home() -> str:
    home = os.path.expanduser("~")
    return home if os.path.isabs(home) else ""


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # deleted under us
        return None


# --- What it prints ---------------------------------------------------------------------------


def _as_data(examined: Sequence[Examined], subject: Subject, *, holds: bool) -> dict[str, Any]:
    counts = Counter(finding.state for each in examined for finding in each.findings)
    return {
        "schema": SCHEMA_VERSION,
        "version": __version__,
        "platform": f"{sys.platform} {platform.machine()}",
        "holds": holds,
        "minimum_level": subject.settings.python_minimum_level,
        "counts": {str(state): counts[state] for state in State},
        "findings": [
            {
                "topic": each.check.topic,
                "check": each.check.name,
                **asdict(finding),
                "required": each.check.is_required,
            }
            for each in examined
            for finding in each.findings
        ],
    }


def _as_text(examined: Sequence[Examined], *, holds: bool) -> str:
    terminal_columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 100
    columns = min(max(terminal_columns, MIN_COLUMNS), MAX_COLUMNS)
    lines = [f"mcp-tools {__version__} on {platform.system()} {platform.release()}"]
    for topic in Topic:
        findings = [finding for each in examined if each.check.topic is topic for finding in each.findings]
        if not findings:
            continue
        lines += ["", _TITLES[topic]]
        for finding in findings:
            lines += _wrapped(f"{_MARKS[finding.state]:>6}  ", f"{finding.name}: {finding.found}", columns)
            if finding.remedy:
                lines += _wrapped(" " * 8 + "-> ", finding.remedy, columns)
    counts = Counter(finding.state for each in examined for finding in each.findings)
    told = (
        f"{counts[State.PROBLEM]} failed, {counts[State.WARNING]} warnings, {counts[State.UNKNOWN]} unknown"
    )
    lines += ["", f"{told}. What is configured {'holds' if holds else 'does NOT hold'} here."]
    return "\n".join(lines)


def _wrapped(prefix: str, text: str, columns: int) -> list[str]:
    shown = terminal.for_display(mask_secrets(" ".join(text.split())))
    return textwrap.wrap(
        shown,
        columns,
        initial_indent=prefix,
        subsequent_indent=" " * len(prefix),
        break_long_words=False,
        break_on_hyphens=False,
    )

"""The folders that file tools may touch: there, usable, and not more than their owner means."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence

from mcp_tools.config import user_config_folder
from mcp_tools.doctor.model import Finding, State, Subject

_SYSTEM = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/root", "/run", "/sbin", "/sys",
    "/usr", "/var", "/Applications", "/Library", "/System", "/private", "C:\\Windows", "C:\\Program Files",
)  # fmt: skip
_PRIVATE = (".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".config/gcloud", ".password-store")


def roots(subject: Subject) -> Sequence[Finding]:
    """Each root: a folder that exists, may be written, and holds nothing that decides about itself."""
    if not subject.settings.roots:
        return [
            Finding(
                name="roots",
                state=State.WARNING,
                found="no folder is allowed, so file tools refuse everything",
                remedy="Allow one with --root DIR (repeatable), MCP_TOOLS_ROOTS, or roots = [...].",
            )
        ]
    found: list[Finding] = []
    real: dict[str, str] = {}
    for root in subject.settings.roots:
        found += _root(root, subject)
        real[root] = os.path.realpath(root)
    return found + _nested(real)


def _root(root: str, subject: Subject) -> list[Finding]:
    try:
        status = os.stat(root)
    except OSError as error:
        return [
            Finding(
                name=root,
                state=State.PROBLEM,
                found=f"cannot be used: {error.strerror}; the server does not start",
                remedy="Make the folder, or take it out of the roots.",
            )
        ]
    if not stat.S_ISDIR(status.st_mode):
        return [
            Finding(
                name=root,
                state=State.PROBLEM,
                found="is no folder; the server does not start",
                remedy="Name the folder that holds it.",
            )
        ]
    if not os.access(root, os.R_OK | os.X_OK):
        return [
            Finding(
                name=root,
                state=State.PROBLEM,
                found="may not be read by this user",
                remedy=f"Give this user access (chmod, chown), or take {root} out of the roots.",
            )
        ]
    danger = _danger(os.path.realpath(root), subject)
    if danger:
        return [
            Finding(
                name=root,
                state=State.WARNING,
                found=danger,
                remedy="Allow only the folder that the model is to work in.",
            )
        ]
    if not os.access(root, os.W_OK):
        return [
            Finding(
                name=root,
                state=State.WARNING,
                found="can be read and not written: tools that change files fail there",
                remedy="Leave it so if that is meant; otherwise give this user the right to write.",
            )
        ]
    if hasattr(os, "getuid") and status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        return [
            Finding(
                name=root,
                state=State.WARNING,
                found="every user of this machine may change it, and so what the model reads",
                remedy=f"chmod o-w {root}",
            )
        ]
    return [Finding(name=root, state=State.OK, found="is there and can be written")]


def _danger(real: str, subject: Subject) -> str:
    """Why a folder is more than a model should have; `""` if it is not."""
    home = os.path.realpath(subject.home) if subject.home else ""
    if real == os.path.dirname(real):
        return "is the whole machine"
    if home and real == home:
        return "is your whole home folder, with keys, mail and settings of every program"
    if home and is_within(home, real):
        return "holds your home folder, with keys, mail and settings of every program"
    if real in _SYSTEM or real.startswith(("/etc/", "/proc/", "/sys/", "/dev/", "/boot/")):
        return "belongs to the system"
    for name in _PRIVATE:
        if home and is_within(real, os.path.join(home, name)):
            return "holds keys or passwords"
    for path, what in (
        (user_config_folder(subject.environ) or "", "the settings that decide what is allowed"),
        (subject.settings.token_file or "", "the tokens of callers"),
        (sys.prefix, "the Python environment that runs the server, so a model could change the server"),
        (os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "the program that mcp-tools is"),
    ):
        if path and os.path.exists(path) and is_within(os.path.realpath(path), real):
            return f"holds {what} ({path})"
    return ""


def is_within(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or below it. Both without links."""
    return path == folder or path.startswith(os.path.join(folder, ""))


def _nested(real: dict[str, str]) -> list[Finding]:
    found = []
    names = list(real)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            if real[one] == real[other]:
                found.append(_overlap(f"{one} and {other}", "are the same folder", other))
            elif is_within(real[one], real[other]):
                found.append(_overlap(f"{one} and {other}", "the first lies in the second", one))
            elif is_within(real[other], real[one]):
                found.append(_overlap(f"{one} and {other}", "the second lies in the first", other))
    return found


def _overlap(name: str, found: str, spare: str) -> Finding:
    return Finding(
        name=name,
        state=State.WARNING,
        found=f"{found}; the same file has two names",
        remedy=f"Leave {spare} out.",
    )

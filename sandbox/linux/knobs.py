"""What to change on a host where a level cannot be had: from the step that failed to a sentence."""

from __future__ import annotations

import errno
import os
from typing import Any

from sandbox.errors import Missing

_UBUNTU = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
_DEBIAN = "/proc/sys/kernel/unprivileged_userns_clone"
_COUNT = "/proc/sys/user/max_user_namespaces"
_BY_STEP = {  # by a word that is in it
    "landlock": "The kernel needs Landlock: Linux 5.13, with landlock in the boot parameter lsm=.",
    "seccomp": "The kernel needs CONFIG_SECCOMP_FILTER.",
    "target": "At L2 a folder is seen where it is on the host: leave its target out.",
    "ImportError": "Mend the module, or leave it out of `preload`.",
}


def missing(tried: dict[str, Any]) -> Missing:
    """The launcher's word on a level that it could not have, with the knob that would help."""
    step, code = str(tried["failed"]), int(tried["errno"])
    return Missing(
        level=str(tried["level"]),
        step=step,
        reason=str(tried["text"]),
        remedy=str(tried.get("remedy") or remedy(str(tried["level"]), step, code)),
    )


def remedy(level: str, step: str, code: int) -> str:
    """The exact setting, profile or package, as far as the step and this host's settings tell."""
    if level == "L3" and step == "bwrap" and code == errno.ENOENT:
        return "Install the package bubblewrap."
    if step == "interpreter":
        return "Run the server with a Python that every user can read, or as an ordinary user."
    if told := next((text for word, text in _BY_STEP.items() if word in step), None):
        return told
    if code == errno.ESTALE:
        return "Make a new sandbox, if the folder is the one that you mean."
    if step in {"open_tree", "mount_setattr"} and code == errno.ENOSYS:
        return "The kernel is too old: Linux 5.12 is needed."
    if level in {"L4", "L3"}:
        if _value(_COUNT) == "0":
            return "Set sysctl user.max_user_namespaces to a number above 0, such as 10000."
        if _value(_DEBIAN) == "0":
            return "Set sysctl kernel.unprivileged_userns_clone=1."
        if _value(_UBUNTU) == "1":
            return (
                "AppArmor keeps programs from using user namespaces: install a profile that allows `userns` "
                "for this Python, or the package apparmor-profiles with bwrap-userns-restrict for L3, or set "
                "sysctl kernel.apparmor_restrict_unprivileged_userns=0."
            )
        if code in {errno.EPERM, errno.EACCES} and _in_container():
            return (
                "This is a container: its seccomp profile forbids namespaces. Run it with "
                "--security-opt seccomp=unconfined and --security-opt apparmor=unconfined, or accept L2."
            )
        if code == errno.EPERM:
            return (
                "Something on this host forbids user namespaces; a security module or a container's profile."
            )
    return "Run the server on a host that allows it, or lower `minimum_level` if weaker walls are enough."


def _value(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def _in_container() -> bool:
    return os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")

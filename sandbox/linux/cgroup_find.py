"""Find a cgroup that can be divided into slots. Only the launcher needs this, once."""

from __future__ import annotations

import errno
import os

from sandbox.linux.cgroups import (
    CONTROLLERS,
    TRIAL,
    Home,
    NoCgroup,
    owner_name,
    pids_in,
    read_text,
    refused,
    remedy,
    removed,
    stat_fields,
    write_text,
)

TYPE_CHECKING = False  # importing `typing` for it would cost milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterable

    # Kind, root within the hierarchy, mount point, options of the hierarchy.
    Mount = tuple[str, str, str, list[str]]

_NEEDED = ("memory", "pids")
_SERVER = "sandbox-server"  # where version 2 makes us put the processes of a cgroup that is divided


def find_home() -> Home:
    """What `cgroups.find` does."""
    mounts, own = cgroup_mounts(read_text("/proc/self/mountinfo")), own_cgroups()
    try:
        return _find_2(mounts, own)
    except NoCgroup as failure:
        if not all(controller in own for controller in _NEEDED):
            raise
        no_version_2 = failure
    try:
        return _find_1(mounts, own)
    except NoCgroup as failure:
        raise failure from no_version_2


def _find_2(mounts: list[Mount], own: dict[str, str]) -> Home:
    if "" not in own or not any(kind == "cgroup2" for kind, *_ in mounts):
        raise NoCgroup("cgroup version 2 is not mounted", "mount cgroup2 on /sys/fs/cgroup")
    folder = folder_of(mounts, "cgroup2", "", own[""])
    if folder is None:
        raise NoCgroup(
            f"the cgroup {own['']} of this process is outside of what is mounted here",
            "mount cgroup2 in the cgroup namespace of the server",
        )
    if os.path.basename(folder) == _SERVER:
        folder = os.path.dirname(folder)
    try:
        present = read_text(f"{folder}/cgroup.controllers").split()
        if missing := [controller for controller in _NEEDED if controller not in present]:
            raise NoCgroup(
                f"controller {' and '.join(missing)} is not enabled in {folder}",
                f"{remedy(2, errno.EACCES)}; where {folder} is the whole machine's, boot without "
                "cgroup_disable=memory and without controllers in version 1",
            )
        if not set(_NEEDED) <= set(read_text(f"{folder}/cgroup.subtree_control").split()):
            _enable(folder)
    except OSError as failure:
        raise refused(2, failure) from failure
    home = Home(2, dict.fromkeys(CONTROLLERS, folder))
    _try(home)
    return home


def _enable(folder: str) -> None:
    """Let children of `folder` have controllers, if need be after moving its processes into one of them."""
    control = f"{folder}/cgroup.subtree_control"
    try:
        write_text(control, "+memory +pids")
    except OSError as failure:
        if failure.errno != errno.EBUSY:
            raise
    else:
        return
    foreign = set(pids_in(folder)) - _server_processes()
    if foreign and not _is_delegated(folder):
        raise NoCgroup(
            f"the cgroup {folder} holds processes that are not the server's, such as {min(foreign)}",
            remedy(2, errno.EACCES),
        )
    inner = f"{folder}/{_SERVER}"
    os.makedirs(inner, exist_ok=True)
    for last in (*[False] * 9, True):  # what is forked meanwhile needs another round
        _move(pids_in(folder), inner)
        try:
            write_text(control, "+memory +pids")
        except OSError as failure:
            if last or failure.errno != errno.EBUSY:
                _move(pids_in(inner), folder)
                removed(inner)
                raise
        else:
            return


def _move(pids: Iterable[int], folder: str) -> None:
    for pid in pids:
        try:
            write_text(f"{folder}/cgroup.procs", str(pid))
        except ProcessLookupError:  # it ended
            continue


def _is_delegated(folder: str) -> bool:
    """Whether whoever manages cgroups left `folder` to its inhabitants; systemd marks it (`Delegate=`)."""
    for attribute in ("trusted.delegate", "user.delegate"):
        try:
            if os.getxattr(folder, attribute) == b"1":
                return True
        except OSError:
            continue
    # The root of a container's cgroup namespace is the container's.
    return own_cgroups().get("") == "/"


def _server_processes() -> set[int]:
    """Ourselves, the process that started us, and everything that it started."""
    parents = {pid: parent for pid in _all_pids() if (parent := _parent(pid)) is not None}
    server = os.getppid()
    found = {server, os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _find_1(mounts: list[Mount], own: dict[str, str]) -> Home:
    folders = {}
    for controller in CONTROLLERS:
        folder = folder_of(mounts, "cgroup", controller, own[controller]) if controller in own else None
        if folder is None:
            raise NoCgroup(
                f"the controller {controller} of cgroup version 1 is not mounted here",
                f"mount it with -o {controller}, or use version 2",
            )
        folders[controller] = folder
    home = Home(1, folders)
    _try(home)
    return home


def _try(home: Home) -> None:
    name = owner_name(TRIAL)
    try:
        for slot in home.make(name, 1, memory_bytes=64 * 1024**2, processes=16):
            slot.close()
    finally:
        home.remove(name)


def cgroup_mounts(mountinfo: str) -> list[Mount]:
    """The cgroup file systems in the text of `/proc/<pid>/mountinfo`."""
    found = []
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        end_of_optional_fields = fields.index("-", 6)
        kind, _source, options = fields[end_of_optional_fields + 1 : end_of_optional_fields + 4]
        if kind in ("cgroup", "cgroup2"):
            found.append((kind, _unescape(fields[3]), _unescape(fields[4]), options.split(",")))
    return found


def _unescape(text: str) -> str:
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def own_cgroups() -> dict[str, str]:
    """Our cgroup by controller; `""` is version 2."""
    own = {}
    for line in read_text("/proc/self/cgroup").splitlines():
        _number, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    return own


def folder_of(mounts: list[Mount], kind: str, controller: str, path: str) -> str | None:
    """The folder of the cgroup `path`, if one of the mounts shows it."""
    if ".." in path.split("/"):
        return None  # outside of our cgroup namespace
    for mount_kind, root, point, options in mounts:
        inside = root in (path, "/") or path.startswith(f"{root}/")
        if mount_kind == kind and inside and (not controller or controller in options):
            folder = f"{point}/{path.removeprefix(root).strip('/')}".rstrip("/")
            if os.path.isdir(folder):
                return folder
    return None


def _parent(pid: int) -> int | None:
    fields = stat_fields(pid)
    return int(fields[1]) if fields else None


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]

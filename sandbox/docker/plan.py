"""From a `SandboxConfig` to the flags of a container and what its agent is told. Starts nothing."""

from __future__ import annotations

import os
import posixpath
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.docker import bundle, frames
from sandbox.environment import environment
from sandbox.errors import SandboxConfigError
from sandbox.limits import limits
from sandbox.types import Mount, SandboxConfig

WORK = "/work"
USER_ID = 1000
IS_LINUX = sys.platform == "linux"
HOSTNAME = "sandbox"
# Measured in the cgroup: 14 MiB for an init, the agent and a waiting child, 18 MiB for those of a session.
AGENT_MEMORY_BYTES = 24 * 1024**2
SHM_BYTES = 16 * 1024**2  # at most; what a semaphore or a shared block of multiprocessing needs
_AGENT_OPEN_FILES = 256  # the agent lowers it for the code
_SAFE = "nosuid,nodev,noexec"
_VOLUME = f"size=4k,nr_inodes=2,mode=0555,ro,{_SAFE}"
# Podman refuses what it does not know: `nr_inodes`, `uid` and `gid`. It fills a tmpfs unless told not to.
_VOLUME_OF_PODMAN = f"size=4k,mode=0555,ro,{_SAFE},notmpcopyup"
_O_PATH = getattr(os, "O_PATH", None)
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder of the host as it was when the sandbox was made.

    Args:
        fd: Keeps its inode from being given to another; -1 where the system has no such descriptors.
        identity: Device and inode.
    """

    fd: int
    source: str
    target: str
    writable: bool
    identity: tuple[int, int]

    def is_as_it_was(self) -> bool:
        """Whether its path still leads to it, without any link on the way, and nothing was mounted below."""
        try:
            if not self.writable and _mount_below(self.source) is not None:
                return False
            found = os.stat(self.source)
            return (found.st_dev, found.st_ino) == self.identity and os.path.realpath(
                self.source
            ) == self.source
        except OSError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What containers of a sandbox are made from; close the folders with the sandbox."""

    config: SandboxConfig
    folders: tuple[Folder, ...]
    user_id: int
    group_id: int


def plan(config: SandboxConfig) -> Plan:
    """Check what of the configuration a container cannot have, and open the folders.

    Raises:
        SandboxConfigError: It names packages, or a folder that does not exist.
    """
    if config.packages is not None:
        raise SandboxConfigError(
            "packages",
            "come with the image of a container: make one with `mcp-tools sandbox build-image`",
        )
    mounts = list(config.mounts)
    if config.working_dir is not None:
        mounts.append(Mount(source=config.working_dir, target=WORK, writable=True))
    folders: list[Folder] = []
    try:
        for mount in mounts:
            folders.append(_opened(mount))
    except BaseException:
        close(folders)
        raise
    user_id, group_id = _user(folders)
    return Plan(config=config, folders=tuple(folders), user_id=user_id, group_id=group_id)


def close(folders: Sequence[Folder]) -> None:
    for folder in folders:
        if folder.fd >= 0:
            os.close(folder.fd)


def _opened(mount: Mount) -> Folder:
    field = "working_dir" if mount.target == WORK else "mounts"
    source, fd = os.path.realpath(mount.source), -1
    try:
        if not os.path.isdir(source):
            raise NotADirectoryError(20, "is no folder")
        if not mount.writable and (below := _mount_below(source)) is not None:
            raise PermissionError(1, f"cannot be read-only: {below} is mounted below it, and stays writable")
        if _O_PATH is not None:
            fd = os.open(source, _O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.stat(source if fd < 0 else fd)
    except OSError as error:
        raise SandboxConfigError(field, f"{mount.source!r}: {error.strerror}") from error
    return Folder(
        fd=fd,
        source=source,
        target=mount.target or source,
        writable=mount.writable,
        identity=(found.st_dev, found.st_ino),
    )


def _mount_below(folder: str) -> str | None:
    """Something that is mounted below a folder: engines before API 1.44 make only the folder read-only."""
    if not IS_LINUX:
        return None
    start = os.fsencode(folder).rstrip(b"/") + b"/"
    with open("/proc/self/mountinfo", "rb") as file:
        points = [_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4]) for line in file]
    return next((os.fsdecode(point) for point in points if point.startswith(start) and point != b"/"), None)


def _user(folders: Sequence[Folder]) -> tuple[int, int]:
    """Who the code is: who may write to the folders that it may write to, and never root.

    Without such folders it is always the same, which belongs to nobody on the host.
    """
    writable = [folder for folder in folders if folder.writable]
    if not writable or not IS_LINUX:  # engines in a virtual machine translate owners
        return USER_ID, USER_ID
    if os.getuid() != 0:
        return os.getuid(), os.getgid() or USER_ID
    owner = os.stat(writable[-1].source)
    return owner.st_uid or USER_ID, owner.st_gid or USER_ID


def container_options(
    plan: Plan,
    *,
    labels: Mapping[str, str],
    volumes: Sequence[str],
    session: bool,
    init: bool,
    is_podman: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes to the SDK's `create_container` (without the image), and to its `create_host_config`.

    Without `init` the agent is the first process itself, and does what an init does. Podman cannot be told
    how many files a tmpfs may have, nor whose it is, so there it belongs to everybody in the container.
    """
    config = plan.config
    memory_bytes = config.max_memory_mb * 1024**2 + AGENT_MEMORY_BYTES
    own = frames.OWN_PROCESSES_OF_SESSION if session else frames.OWN_PROCESSES
    processes = config.max_processes + own - (not init)
    size = f"size={config.max_disk_mb}m"
    owner = f"uid={plan.user_id},gid={plan.group_id}"
    disk = f"{size},nr_inodes={config.max_files},mode=0700,{owner},{_SAFE}"
    if is_podman:
        disk = f"{size},mode=1777,{_SAFE},notmpcopyup"
    # The engine makes no volume where something is mounted already.
    taken = {"/tmp", *(folder.target for folder in plan.folders)}  # noqa: S108
    free = [each for each in volumes if posixpath.normpath(each) not in taken]
    container = {
        "command": [],
        "entrypoint": bundle.command(),
        "hostname": HOSTNAME,
        "user": f"{plan.user_id}:{plan.group_id}",
        "stdin_open": True,  # the SDK makes it end with the one who is attached
        "working_dir": "/",
        "environment": {"TINI_VERBOSITY": "0"},  # docker's init would write into our stream
        "labels": dict(labels),
        "healthcheck": {"test": ["NONE"]},
        "use_config_proxy": False,  # proxies come with passwords
    }
    host = {
        "network_mode": "bridge" if config.allow_network else "none",
        "mem_limit": memory_bytes,
        "memswap_limit": memory_bytes,
        "nano_cpus": 10**9,
        "pids_limit": processes,
        "read_only": True,
        "tmpfs": {
            "/tmp": disk,  # noqa: S108 - inside the container
            **dict.fromkeys(free, _VOLUME_OF_PODMAN if is_podman else _VOLUME),
        },
        "shm_size": min(SHM_BYTES, config.max_disk_mb * 1024**2),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "init": init,
        "ipc_mode": "private",
        "auto_remove": True,
        "ulimits": [
            {"Name": "nofile", "Soft": _open_files(config), "Hard": _open_files(config)},
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "memlock", "Soft": 0, "Hard": 0},
        ],
        "log_config": {"Type": "none", "Config": {}},
        "mounts": [
            {
                "Type": "bind",
                "Source": folder.source,
                "Target": folder.target,
                "ReadOnly": not folder.writable,
                "BindOptions": {"Propagation": "rprivate"},
            }
            for folder in plan.folders
        ],
    }
    return container, host


def _open_files(config: SandboxConfig) -> int:
    return max(config.max_open_files, _AGENT_OPEN_FILES)


def setup(plan: Plan, *, session: bool) -> dict[str, Any]:
    """What the agent is told first."""
    config = plan.config
    return {
        "setup": {
            "session": session,
            "preload": list(config.preload),
            "network": config.allow_network,
            "environment": environment(config),
            "cwd": WORK if config.working_dir is not None else "",
            "mounts": [
                # In a virtual machine's view folders have other numbers; see `Folder.is_as_it_was`.
                [folder.target, *(folder.identity if IS_LINUX else (0, 0)), folder.writable]
                for folder in plan.folders
            ],
            "session_idle_s": config.session_idle_seconds,
            "limits": limits(config),
            "max_output_bytes": config.max_output_bytes,
        }
    }

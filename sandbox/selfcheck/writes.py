"""Changing something outside. What counts is what the server finds afterwards, not what the code says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sandbox.selfcheck.arenas import Arena
from sandbox.selfcheck.model import Attack, Family, Need, Observation
from sandbox.selfcheck.prelude import judge, program, snippet, with_mounts
from sandbox.selfcheck.stage import CANARY, Stage, wait_until

_GONE_S = 1.0


def _on_canary(name: str, code: str, **more: Any) -> Attack:
    """An attack on a file that everyone may write, in a folder that everyone may write."""

    def function(arena: Arena, stage: Stage) -> Observation:
        with stage.playground() as canary:
            values = {
                "canary": str(canary),
                "folder": str(canary.parent),
                "secret": str(stage.secret_files[0]),
            }
            said = judge(arena.run(program(code, **values)), stage)
            return Observation(breach=touched(canary), met=said.met, trouble=said.trouble)

    return Attack(name=name, family=Family.WRITES, function=function, **more)


def _make_files(arena: Arena, stage: Stage) -> Observation:
    name = stage.name()
    ran = arena.run(program(_MAKE, name=name, open=str(stage.shared.parent)))
    lines = [line for line in ran.result.stdout.splitlines() if line.startswith("held made ")]
    made = [Path(line.removeprefix("held made ")) / name for line in lines]
    # A level without a file system of its own keeps them in a folder that goes with the call.
    wait_until(lambda: not any(path.exists() for path in made), _GONE_S if arena.walled else 0)
    left = [path for path in made if path.exists()]
    for path in left:
        path.unlink()
    found = " ".join(str(path.parent) for path in left)
    return Observation(breach=f"made files in {found}"[:300] if found else "", met=judge(ran, stage).met)


def _paths(stage: Stage, arena: Arena) -> dict[str, Any]:
    return {"canary": str(stage.read_only / "canary"), "secret": str(stage.secret_files[0])}


_MAKE = r"""
for folder in [T["open"], *places()]:
    try:
        with open(os.path.join(folder, T["name"]), "x") as file:
            file.write("made by an attack")
        held("made", os.path.realpath(folder))
    except OSError as error:
        held(folder, name_of(error.errno))
"""

_OVERWRITE = r"""
for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
    fd = attempt(os.open, T["canary"], flags)
    if fd is not None:
        os.write(fd, b"overwritten")
attempt(os.truncate, T["canary"], 3)
"""

_RENAME = r"""
other = T["canary"] + "-moved"
attempt(os.rename, T["canary"], other)
attempt(os.unlink, T["canary"])
attempt(os.link, T["canary"], os.path.join(T["folder"], "link"))
attempt(os.symlink, "/etc/passwd", os.path.join(T["folder"], "symlink"))
attempt(os.mkfifo, os.path.join(T["folder"], "fifo"))
attempt(os.link, T["canary"], "mine")
if os.path.exists("mine"):
    os.chmod("mine", 0o600)
"""

_METADATA = r"""
import stat
targets = [T["canary"], T["secret"], os.__file__, sys.executable, "/etc", "/tmp/..", "/usr", "/"]
for path in targets if T["walled"] else targets[:2]:
    try:
        status = os.stat(path)
    except OSError as error:
        held("stat", name_of(error.errno))
        continue
    # To what they are already, except the canary's; the answer is what matters.
    for function, args in (
        (os.chmod, (0o666 if path == T["canary"] else stat.S_IMODE(status.st_mode),)),
        (os.utime, (None, (status.st_atime_ns, status.st_mtime_ns))),
        (os.chown, (status.st_uid, status.st_gid)),
        (os.setxattr, ("user.selfcheck", b"1")),
    ):
        try:
            if function is os.utime:
                os.utime(path, ns=args[1])
            else:
                function(path, *args)
        except OSError as error:
            held(function.__name__, name_of(error.errno))
            continue
        breach(function.__name__, path)
        if function is os.setxattr:
            os.removexattr(path, "user.selfcheck")
"""

_METADATA_BY_DESCRIPTOR = r"""
targets = [T["canary"], T["secret"], os.__file__]
for path in targets if T["walled"] else targets[:2]:
    fd = attempt(os.open, path, os.O_RDONLY)
    if fd is None:
        continue
    status = os.fstat(fd)
    for function, args in ((os.fchmod, (status.st_mode & 0o7777,)), (os.fchown, (-1, status.st_gid))):
        try:
            function(fd, *args)
        except OSError as error:
            held(function.__name__, name_of(error.errno))
        else:
            breach(function.__name__, path)
    try:
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    except OSError as error:
        held("utime", name_of(error.errno))
    else:
        breach("utime", path)
    # ioctl FS_IOC_SETFLAGS with the flags it has
    import fcntl, struct
    try:
        flags = fcntl.ioctl(fd, 0x80086601, struct.pack("l", 0))
        fcntl.ioctl(fd, 0x40086602, flags)
    except OSError as error:
        held("flags", name_of(error.errno))
    else:
        breach("flags of", path)
"""

_OWN_INTERPRETER = r"""
import json
library = os.path.dirname(os.__file__)
for path in (os.__file__, json.__file__, library + "/site.py", "/etc/ld.so.cache", "/etc/hosts"):
    fd = attempt(os.open, path, os.O_WRONLY)
    if fd is not None:
        breach("opened to write:", path)
        break
for folder in (library, library + "/__pycache__", library + "/lib-dynload", library + "/site-packages",
               os.path.dirname(sys.executable)):
    if os.access(folder, os.W_OK):
        breach("may write into", folder)
        break
"""

_PROC_SYS = r"""
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger",
             "/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ip_forward"):
    # opening changes nothing
    if attempt(os.open, path, os.O_WRONLY) is not None:
        breach("opened to write:", path)
        break
"""

_SYS = r"""
import glob
names = ["/sys/kernel/uevent_helper", "/sys/power/state", "/sys/kernel/mm/ksm/run", "/sys/kernel/profiling",
         "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/devices/system/cpu/cpu0/uevent",
         *glob.glob("/sys/fs/cgroup/*/release_agent"), *glob.glob("/sys/fs/cgroup/*/cgroup.procs"),
         *glob.glob("/sys/fs/cgroup/cgroup.*"), "/sys/kernel/debug/tracing/trace_marker"]
for path in names:
    if attempt(os.open, path, os.O_WRONLY) is not None:
        breach("opened to write:", path)
        break
"""

_READ_ONLY_MOUNT = r"""
path = T["canary"]
for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
    fd = attempt(os.open, path, flags)
    if fd is not None:
        os.write(fd, b"overwritten")
attempt(os.truncate, path, 3)
attempt(os.chmod, path, 0o600)
attempt(os.symlink, "/etc/passwd", path + "-link")
fd = os.open(path, os.O_RDONLY)
# A descriptor for reading, opened again for writing.
for way in (f"/proc/self/fd/{fd}", f"/dev/fd/{fd}", f"/proc/thread-self/fd/{fd}"):
    again = attempt(os.open, way, os.O_RDWR)
    if again is not None:
        os.write(again, b"by its descriptor")
def remount():
    if namespaces(NEWNS):
        call("mount", None, os.fsencode(os.path.dirname(path)), None, 32 | 4096, None)
        os.write(os.open(path, os.O_WRONLY), b"after a remount")
in_child(remount)
attempt(os.unlink, path)
"""

_BESIDE_MOUNT = r"""
shared, canary = T["shared"], T["canary"]
fd = os.open(shared, os.O_RDONLY)
for way in ("../canary", "../../../../../.." + canary):
    try:
        os.write(os.open(way, os.O_WRONLY | os.O_TRUNC, dir_fd=fd), b"beside the mount")
    except OSError as error:
        held("open", name_of(error.errno))
for source in (canary, shared + "/../canary"):
    attempt(os.link, source, shared + "/linked")
    attempt(os.rename, source, shared + "/moved")
os.symlink(canary, shared + "/link")
fd = attempt(os.open, shared + "/link", os.O_WRONLY)
if fd is not None:
    os.write(fd, b"through a link")
"""


def _read_only_mount(arena: Arena, stage: Stage) -> Observation:
    canary = stage.read_only / "canary"
    said = judge(arena.run(program(_READ_ONLY_MOUNT, canary=str(canary), walled=arena.walled)), stage)
    breach = touched(canary, only=False)
    stage.plant(canary)
    return Observation(breach=breach, met=said.met, trouble=said.trouble)


def _beside_mount(arena: Arena, stage: Stage) -> Observation:
    with stage.playground() as canary:
        said = judge(arena.run(program(_BESIDE_MOUNT, canary=str(canary), shared=str(stage.shared))), stage)
        found = touched(canary)
    for name in ("link", "linked", "moved"):
        (stage.shared / name).unlink(missing_ok=True)
    return Observation(breach=found, met=said.met, trouble=said.trouble)


def touched(canary: Path, *, only: bool = True) -> str:
    """What is not as it was planted; with `only`, nothing else may be in its folder."""
    try:
        status, text = canary.stat(), canary.read_text()
    except OSError as error:
        return f"the file is gone ({error.strerror})"
    if text != CANARY or status.st_mode & 0o777 != 0o666 or status.st_nlink != 1:
        return f"the file is {text[:40]!r}, mode {status.st_mode & 0o777:o}, {status.st_nlink} links"
    beside = sorted(path.name for path in canary.parent.iterdir() if path != canary) if only else []
    return f"made {' '.join(beside)} outside" if beside else ""


ATTACKS = (
    Attack(name="make files all over the host", family=Family.WRITES, function=_make_files),
    _on_canary("overwrite a file of the host", _OVERWRITE),
    _on_canary("rename, delete or link a file of the host", _RENAME),
    Attack(
        name="write through a read-only mount",
        family=Family.WRITES,
        function=_read_only_mount,
        settings=with_mounts,
    ),
    Attack(
        name="get from a writable mount to what is beside it",
        family=Family.WRITES,
        function=_beside_mount,
        settings=with_mounts,
    ),
    snippet(
        "change mode, owner, times or attributes of the host's files",
        Family.WRITES,
        _METADATA,
        values=_paths,
    ),
    snippet(
        "change mode, owner or times through a descriptor",
        Family.WRITES,
        _METADATA_BY_DESCRIPTOR,
        values=_paths,
        settings=with_mounts,
    ),
    snippet("change the interpreter or its library", Family.WRITES, _OWN_INTERPRETER, needs=(Need.ROOT,)),
    snippet("write a setting of the kernel (/proc/sys)", Family.WRITES, _PROC_SYS, needs=(Need.ROOT,)),
    snippet("write a setting of the kernel (/sys, cgroups)", Family.WRITES, _SYS, needs=(Need.ROOT,)),
)

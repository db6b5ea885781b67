"""Reading what belongs to the server, to other processes or to the host."""

from __future__ import annotations

import ctypes
import hashlib
import os
from pathlib import Path
from typing import Any

from sandbox.selfcheck.arenas import Arena
from sandbox.selfcheck.model import Attack, Family, Need, Observation
from sandbox.selfcheck.prelude import judge, program, snippet
from sandbox.selfcheck.stage import Stage
from sandbox.types import IsolationLevel

_SHOWS_METADATA = {
    IsolationLevel.L2: "Landlock does not cover looking at names, sizes and times",
}


def _files(stage: Stage, arena: Arena) -> dict[str, Any]:
    return {"files": [str(path) for path in stage.secret_files], "fd": stage.inheritable}


def _on_victim(name: str, code: str, **more: Any) -> Attack:
    """An attack on a process that holds the secret, and on the server's own."""

    def function(arena: Arena, stage: Stage) -> Observation:
        with stage.victim() as victim:
            return judge(
                arena.run(
                    program(
                        code,
                        pids=[victim.pid, os.getpid()],
                        # Outside the sandbox these attacks succeed: they would stop other programs of this
                        # machine, and take from their pipes what nobody gives back.
                        walled=arena.walled,
                        addresses=[victim.address, ctypes.addressof(stage.memory)],
                        fd=victim.fd,
                        files=[str(path) for path in stage.secret_files],
                    )
                ),
                stage,
            )

    return Attack(name=name, family=Family.SECRETS, function=function, **more)


def _digest(stage: Stage, arena: Arena) -> dict[str, Any]:
    return {"digest": hashlib.sha256(Path("/etc/passwd").read_bytes()).hexdigest()}


def _segment(stage: Stage, arena: Arena) -> dict[str, Any]:
    return {"segment": stage.shared_segment()}


def _handle(stage: Stage, arena: Arena) -> dict[str, Any]:
    kind, data = stage.handle()
    return {"kind": kind, "handle": data, "folder": str(stage.folder)}


_ENVIRONMENT = r"""
for name, value in os.environ.items():
    leak(value, "in os.environ")
block = ctypes.POINTER(ctypes.c_char_p).in_dll(_libc, "environ")
for index in range(10000):
    if not block or block[index] is None:
        break
    leak(block[index], "in environ")
for pid in ("self", "1", os.getppid()):
    leak(attempt(read, f"/proc/{pid}/environ"), f"in /proc/{pid}/environ")
held("nothing of the server's in", len(os.environ), "variables")
"""

_OWN_MEMORY = r"""
# What a fork or a careless exec leaves behind: this process's whole memory. It goes through a pipe, where the
# kernel answers for an address that cannot be read.
far, near = os.pipe()
seen = 0
def look(start, end, where):
    global seen
    kept = b""
    for address in range(start, end, 32768):
        size = _libc.write(near, ctypes.c_void_p(address), min(32768, end - address))
        if size > 0:
            data = os.read(far, size)
            leak(kept[-64:] + data, where)
            kept = data
            seen += size
name = ctypes.c_void_p.in_dll(_libc, "program_invocation_name").value  # beside the first environment
look(name, name + 4096, "beside the name of the program")
for line in (attempt(read, "/proc/self/maps") or b"").decode().splitlines():
    span, rights = line.split()[:2]
    start, end = (int(number, 16) for number in span.split("-"))
    if rights.startswith("rw") and end - start < 1 << 28:
        look(start, end, "in own memory, " + line[73:])
held("nothing in", seen >> 20, "MiB of memory")
"""

_ENVIRON_OF_OTHERS = r"""
for pid in pids():
    leak(attempt(read, f"/proc/{pid}/environ"), f"in /proc/{pid}/environ")
"""

_LIST_PROCESSES = r"""
for pid in pids():
    for name in ("cmdline", "comm", "status"):
        leak(attempt(read, f"/proc/{pid}/{name}"), f"in /proc/{pid}/{name}")
"""

_PROC_MEM = r"""
for pid in pids():
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            opened = pid not in T["pids"]  # an ancestor of ours; the addresses are of others
            for address in T["addresses"]:
                try:
                    memory.seek(address)
                    leak(memory.read(64), f"in /proc/{pid}/mem")
                except OSError as error:
                    held("read", name_of(error.errno))
            if opened:
                breach(f"opened /proc/{pid}/mem")
    except OSError as error:
        held("open", name_of(error.errno))
"""

_PROCESS_VM = r"""
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(64)
here = Piece(ctypes.addressof(buffer), 64)
for pid in pids():
    for address in T["addresses"]:
        there = Piece(address, 64)
        result, code = call("process_vm_readv", pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
        leak(buffer.raw if result > 0 else b"", f"of process {pid}")
        # ESRCH is an answer about a process that it should not be asked about at all, but not a breach
        held("process_vm_readv", name_of(code)) if result < 0 else None
"""

_PTRACE = r"""
ATTACH, DETACH, PEEKDATA, SEIZE = 16, 17, 2, 0x4206
_libc.ptrace.restype = ctypes.c_long
def trace(request, pid, address=0):
    ctypes.set_errno(0)
    result = _libc.ptrace(ctypes.c_long(request), pid, ctypes.c_void_p(address), None)
    return result, ctypes.get_errno()
for pid in pids()[:8]:
    result, code = trace(ATTACH, pid)
    if code:
        held("ptrace", name_of(code))
        continue
    os.waitpid(pid, 0x40000000)
    for address in T["addresses"]:
        words = [trace(PEEKDATA, pid, address + 8 * index) for index in range(6)]
        leak(b"".join((word & (1 << 64) - 1).to_bytes(8, "little") for word, _ in words), f"of process {pid}")
    trace(DETACH, pid)
    breach(f"traced process {pid}")
"""

_PIDFD_GETFD = r"""
for pid in pids():
    pidfd, code = call("pidfd_open", pid, 0)
    if pidfd < 0:
        held("pidfd_open", name_of(code))
        continue
    fd, code = call("pidfd_getfd", pidfd, T["fd"], 0)
    if fd < 0:
        held("pidfd_getfd", name_of(code))
        continue
    leak(os.pread(fd, 64, 0), f"in descriptor {T['fd']} of process {pid}")
"""

_PROC_LINKS = r"""
for pid in [*pids(), "self", "thread-self"]:
    for file in T["files"]:
        for way in ("root", "cwd/../../../../../../..", "root/../.."):
            leak(attempt(read, f"/proc/{pid}/{way}{file}"), f"through /proc/{pid}/{way}")
    if pid != "self":
        leak(attempt(read, f"/proc/{pid}/fd/{T['fd']}"), f"through /proc/{pid}/fd")
"""

_FILE = r"""
for file in T["files"]:
    for path in (file, "/../../../.." + file, "../../../../../../../.." + file, "/proc/self/root" + file,
                 "/proc/self/cwd/../../../../../../.." + file, "//" + file):
        leak(attempt(read, path), "at " + path)
    link = f"link-{os.getpid()}-{T['files'].index(file)}"
    attempt(os.symlink, file, link)
    leak(attempt(read, link), "through a link")
    attempt(os.link, file, link + "-hard")
    leak(attempt(read, link + "-hard"), "through a hard link")
    for number in range(256):
        try:
            fd = os.open("../" * 12 + file.lstrip("/"), os.O_RDONLY, dir_fd=number)
        except OSError:
            continue
        leak(os.read(fd, 64), f"relative to descriptor {number}")
"""

_USERS = r"""
import hashlib
text = attempt(read, "/etc/passwd") or b""
mine = hashlib.sha256(text).hexdigest() != T["digest"]
held("another file, of", len(text), "bytes") if mine else breach(len(text), "bytes of it")
"""

_EXISTENCE = r"""
for file in T["files"]:
    for function in (os.stat, os.lstat):
        if attempt(function, file):
            breach(function.__name__, "answers")
    if os.access(file, os.F_OK):
        breach("access answers")
    if attempt(os.open, file, os.O_PATH) is not None:
        breach("O_PATH opens it")
# The others are in folders that there may be inside too.
folder = os.path.dirname(T["files"][0])
for function in (os.chdir, os.listdir, os.statvfs):
    try:
        function(folder)
        breach(function.__name__, "goes there")
    except OSError as error:
        held(function.__name__, name_of(error.errno))
"""

_INOTIFY = r"""
folder = os.path.dirname(T["files"][0])
ctypes.set_errno(0)
fd = _libc.inotify_init1(os.O_NONBLOCK)
if fd < 0:
    held("inotify_init", name_of(ctypes.get_errno()))
elif _libc.inotify_add_watch(fd, os.fsencode(folder), 0xFFF) >= 0:
    breach("watches", folder)
else:
    held("inotify_add_watch", name_of(ctypes.get_errno()))
"""

_SYSV = r"""
_libc.shmat.restype = ctypes.c_void_p
ctypes.set_errno(0)
address = _libc.shmat(T["segment"], None, 0o10000)
if address and address != ctypes.c_void_p(-1).value:
    leak(ctypes.string_at(address, 64), "in a segment of the server")
    held("it is another segment")
else:
    held("shmat", name_of(ctypes.get_errno()))
"""

_HANDLE = r"""
class Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_char * 128)]
handle = Handle(len(T["handle"]), T["kind"])
ctypes.memmove(ctypes.addressof(handle) + Handle.data.offset, T["handle"], len(T["handle"]))
for folder in (T["folder"], "/", "/usr", "/tmp", os.path.dirname(os.__file__), sys.prefix, "."):
    root = attempt(os.open, folder, os.O_RDONLY)
    if root is not None:
        fd, code = call("open_by_handle_at", root, ctypes.byref(handle), os.O_RDONLY)
        if fd >= 0:
            leak(os.read(fd, 64), "by its handle under " + folder)
        elif code in REFUSED:
            held(name_of(code))
        else:
            breach("the kernel looked:", name_of(code))
"""

_DESCRIPTORS = r"""
kinds = []
for fd in range(256):
    try:
        os.fstat(fd)
    except OSError:
        continue
    kinds.append(fd)
    for act in (lambda: os.pread(fd, 64, 0), lambda: read(f"/proc/self/fd/{fd}", 64)):
        if fd > 2:
            try:
                os.set_blocking(fd, False)
                leak(act(), f"in descriptor {fd}")
            except OSError:
                pass
    for path in ("..", "../../../../../../.."):
        try:
            names = os.listdir(os.open(path, os.O_RDONLY, dir_fd=fd))
            breach(f"descriptor {fd} is a folder")
        except OSError:
            pass
held("descriptors", *kinds)
"""

_KERNEL_LOG = r"""
buffer = ctypes.create_string_buffer(4096)
result, code = call("syslog", 3, buffer, 4096)
breach("read", result, "bytes of the kernel's log") if result >= 0 else held("syslog", name_of(code))
fd = attempt(os.open, "/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
if fd is not None:
    breach("opened /dev/kmsg")
"""

_DEVICES = r"""
for name in ("kvm", "fuse", "net/tun", "vsock", "mem", "port", "loop-control", "tty0", "sda", "vda",
             "nvme0n1", "input/event0", "dri/card0", "vhost-net", "uinput", "userfaultfd"):
    if attempt(os.open, "/dev/" + name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) is not None:
        breach("opened /dev/" + name)
        break
"""

_MAKE_DEVICE = r"""
import stat
for folder in (".", "/tmp", "/dev", "/dev/shm", "/var/tmp"):
    path = os.path.join(folder, f"device-{os.getpid()}")
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero, which harms nobody
        with open(path, "rb") as device:
            breach("made and opened a device in", folder, len(device.read(8)))
        os.unlink(path)
        break
    except OSError as error:
        held(folder, name_of(error.errno))
"""

ATTACKS = (
    snippet("read a variable of the server's environment", Family.SECRETS, _ENVIRONMENT),
    snippet("find the server's secret in its own memory", Family.SECRETS, _OWN_MEMORY),
    _on_victim("read the environment of another process", _ENVIRON_OF_OTHERS),
    _on_victim("list the processes of the host", _LIST_PROCESSES),
    _on_victim("read another process through /proc/<pid>/mem", _PROC_MEM),
    _on_victim("read another process by process_vm_readv", _PROCESS_VM),
    _on_victim("read another process by ptrace", _PTRACE),
    _on_victim("take a descriptor of another process (pidfd_getfd)", _PIDFD_GETFD),
    _on_victim("follow the links in /proc to another process's files", _PROC_LINKS),
    snippet("read a file of the host by its path", Family.SECRETS, _FILE, values=_files),
    snippet("read the host's /etc/passwd", Family.SECRETS, _USERS, values=_digest),
    snippet(
        "learn whether a file of the host exists",
        Family.SECRETS,
        _EXISTENCE,
        values=_files,
        not_promised=_SHOWS_METADATA,
    ),
    snippet("watch a folder of the host (inotify)", Family.SECRETS, _INOTIFY, values=_files),
    snippet("attach shared memory of the server (System V)", Family.SECRETS, _SYSV, values=_segment),
    snippet(
        "open a file of the host by its handle", Family.SECRETS, _HANDLE, values=_handle, needs=(Need.ROOT,)
    ),
    snippet("use a descriptor inherited from the server", Family.SECRETS, _DESCRIPTORS),
    snippet("read the kernel's log", Family.SECRETS, _KERNEL_LOG, needs=(Need.ROOT,)),
    snippet("open a device of the host", Family.SECRETS, _DEVICES, needs=(Need.ROOT,)),
    snippet("make a device", Family.SECRETS, _MAKE_DEVICE, needs=(Need.ROOT,)),
)

"""Reaching parts of the kernel that code has no business with.

Most are one call, made so that it changes nothing where it is let through: what counts is whether the
kernel answers about rights (`EPERM`, `EACCES`, `ENOSYS`) or about the call itself.
"""

from __future__ import annotations

from typing import Any

from sandbox.selfcheck.model import Attack, Family, Need
from sandbox.selfcheck.prelude import snippet


def _kernel(name: str, code: str, *needs: Need, **more: Any) -> Attack:
    return snippet(name, Family.KERNEL, code, needs=needs, **more)


_NEW_NAMESPACES = r"""
for name, flag in (("user", NEWUSER), ("user and mount", NEWUSER | NEWNS), ("mount", NEWNS), ("pid", NEWPID),
                   ("network", NEWNET), ("ipc", NEWIPC), ("host name", NEWUTS), ("cgroup", 1 << 25),
                   ("time", 1 << 7), ("user and network", NEWUSER | NEWNET)):
    in_child(lambda: reach("unshare", flag, what=name))
"""

_CLONE = r"""
# Without libc, so the new process does nothing but leave.
for flag in (NEWUSER, NEWUSER | NEWNS, NEWPID, NEWNS, NEWNET):
    pid, code = call("clone", flag | 17, 0, 0, 0, 0)
    if pid == 0:
        _libc._exit(0)
    if pid > 0:
        os.waitpid(pid, 0)
        breach("clone made a process with new namespaces")
        break
    held("clone", name_of(code))
"""

_CLONE3 = r"""
import struct
arguments = struct.pack("=11Q", NEWUSER, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
pid, code = call("clone3", arguments, len(arguments))
if pid == 0:
    _libc._exit(0)
if pid > 0:
    os.waitpid(pid, 0)
    breach("clone3 made a process in a new user namespace")
else:
    held("clone3", name_of(code))
"""

_SETNS = r"""
def enter():
    namespaces(NEWUTS)
    for name in ("uts", "user", "mnt", "net", "pid", "ipc"):
        fd = attempt(os.open, f"/proc/self/ns/{name}", os.O_RDONLY)
        if fd is not None:
            result, code = call("setns", fd, 0)
            breach("entered the namespace", name) if result == 0 else held("setns", name_of(code))
    pidfd, code = call("pidfd_open", os.getppid(), 0)
    if pidfd >= 0:
        result, code = call("setns", pidfd, NEWUTS)
        breach("entered that of the parent") if result == 0 else held("setns", name_of(code))
    result, code = call("setns", 0, 0)
    held("setns", name_of(code)) if code in REFUSED else breach("the kernel looked:", name_of(code))
in_child(enter)
"""

_MOUNT = r"""
import tempfile
def mounts():
    namespaces(NEWNS)
    folder = tempfile.mkdtemp().encode()
    for source, kind, flags, data in ((b"none", b"tmpfs", 0, None), (b"/", None, 4096 | 16384, None),
                                      (b"proc", b"proc", 0, None), (b"none", b"sysfs", 0, None),
                                      (b"overlay", b"overlay", 0, b"lowerdir=/usr:/etc")):
        result, code = call("mount", source, folder, kind, flags, data)
        if result == 0:
            call("umount2", folder, 2)
            os.rmdir(folder)
            breach("mounted", kind or b"a copy of /")
            return
        held("mount", name_of(code))
    os.rmdir(folder)
in_child(mounts)
"""

_REMOUNT = r"""
def remount():
    namespaces(NEWNS)
    for folder in (b"/", b"/usr", b"/tmp", b"/proc"):
        result, code = call("mount", None, folder, None, 1 << 18, None)  # private: changes nothing outside
        if result == 0:
            breach("changed the mount", folder)
            return
        held("mount", name_of(code))
in_child(remount)
"""

_UMOUNT = r"""
def unmount():
    namespaces(NEWNS)
    # UMOUNT_NOFOLLOW on something that is no mount: rights are asked for first.
    result, code = call("umount2", b"/proc/self/nothing", 8)
    held(name_of(code)) if code in REFUSED else breach("the kernel looked:", name_of(code))
in_child(unmount)
"""

_FSOPEN = r"""
def new_mount():
    namespaces(NEWNS)
    result = reach("fsopen", b"tmpfs", 0)
in_child(new_mount)
"""

_OPEN_TREE = r"""
def copy():
    namespaces(NEWNS)
    for folder in (b"/", b"/tmp", b"."):
        reach("open_tree", -100, folder, 1, what="of " + folder.decode())
in_child(copy)
"""

_MOVE_MOUNT = r"""
def move():
    namespaces(NEWNS)
    reach("move_mount", -1, b"", -1, b"", 0)
    reach("mount_setattr", -1, b"", 0x1000, bytes(32), 32)
in_child(move)
"""

_PIVOT_ROOT = r"""
def pivot():
    namespaces(NEWNS)
    reach("pivot_root", b"/nothing", b"/nothing")
in_child(pivot)
"""

_CHROOT = r"""
def change_root():
    namespaces(NEWNS)
    result, code = call("chroot", b"/")
    breach("chroot") if result == 0 else held("chroot", name_of(code))
in_child(change_root)
"""

_PTRACE_CHILD = r"""
SEIZE, TRACEME = 0x4206, 0
def traced():
    result, code = call("ptrace", TRACEME, 0, 0, 0)
    breach("ptrace") if result == 0 else held("ptrace", name_of(code))
in_child(traced)
reach("ptrace", SEIZE, 1 << 22, 0, 0, what="of nobody")
"""

_KEYS = r"""
reach("add_key", b"user", b"selfcheck", b"x", 1, -2)  # KEY_SPEC_PROCESS_KEYRING: gone with the process
reach("keyctl", 0, -3, 0)  # the id of the session's keyring
reach("request_key", b"user", b"selfcheck", None, -2)
"""

_BPF = r"""
# BPF_OBJ_GET of a path that does not exist needs no rights; BPF_MAP_CREATE does.
import struct
path = ctypes.create_string_buffer(b"/sys/fs/bpf/nothing")
reach("bpf", 7, struct.pack("=QIIQ", ctypes.addressof(path), 0, 0, 0) + bytes(96), 120, what="get")
reach("bpf", 0, struct.pack("=IIII", 2, 4, 8, 1) + bytes(104), 120, what="map")
"""

_IO_URING = r"""
reach("io_uring_setup", 1, ctypes.create_string_buffer(120))
reach("io_uring_register", -1, 0, 0, 0)
"""

_PERF = r"""
import struct
# A counter of this process's own time (software, clock), without the kernel's part.
attr = struct.pack("=IIQQQQQ", 1, 120, 0, 0, 0, 0, 0x60) + bytes(72)
reach("perf_event_open", attr, 0, -1, -1, 0)
"""

_USERFAULTFD = r"""
reach("userfaultfd", 1)  # UFFD_USER_MODE_ONLY, which is open to everyone
attempt(os.open, "/dev/userfaultfd", os.O_RDWR)
"""

_TIOCSTI = r"""
import fcntl, pty, termios
def type_into():
    for fd in (0, 1, 2):
        try:
            fcntl.ioctl(fd, termios.TIOCSTI, b"x")
            breach("typed into descriptor", fd)
        except OSError as error:
            # "not a terminal" is the kernel's answer to whoever got as far as asking
            (held if error.errno in REFUSED else breach)("TIOCSTI", name_of(error.errno))
    attempt(os.setsid)
    try:
        main, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        fcntl.ioctl(terminal, termios.TIOCSTI, b"x")
        breach("typed into a terminal")
    except OSError as error:
        held("pty", name_of(error.errno))
in_child(type_into)
"""

_TIOCLINUX = r"""
import fcntl, struct
requests = ("TIOCLINUX", 0x541C), ("FIOASYNC", 0x5452), ("FIOSETOWN", 0x8901), ("SIOCSPGRP", 0x8902)
for name, request in requests:
    for fd in (0, 1):
        try:
            fcntl.ioctl(fd, request, struct.pack("i", 0) * 8)
            breach(name)
        except OSError as error:
            (held if error.errno in REFUSED else breach)(name, name_of(error.errno))
"""

_IA32 = r"""
import mmap
def legacy():
    # mov eax, 20 (getpid of 32-bit programs); int 0x80; ret
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    code = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    result = code()
    if result == os.getpid():
        breach("a 32-bit call returned the process's number")
    else:
        held("int 0x80 returned", name_of(-result))
in_child(legacy)
"""

_X32 = r"""
def other_numbers():
    for number in (39, 102, 41):
        ctypes.set_errno(0)
        result = _libc.syscall(ctypes.c_long(0x40000000 | number))
        if result >= 0:
            breach("an x32 call returned", result)
        else:
            held("x32", name_of(ctypes.get_errno()))
in_child(other_numbers)
"""

_PERSONALITY = r"""
for what, value in (("no randomization", 0x0040000), ("read implies exec", 0x0400000), ("32 bit", 8)):
    in_child(lambda: reach("personality", value, what=what))
"""

_KEXEC = r"""
# Flags that do not exist: rights are asked for before them.
reach("kexec_load", 0, 0, 0, 0x0000BAD0)
reach("kexec_file_load", -1, -1, 0, 0, 0x0000BAD0)
"""

_MODULES = r"""
reach("init_module", 0, 0, b"")
reach("finit_module", -1, b"", 0)
reach("delete_module", b"no-such-module-at-all", 0o4000)
"""

_REBOOT = r"""
reach("reboot", 0, 0, 0, 0)  # wrong magic numbers: rights are asked for before them
"""

_SWAP = r"""
reach("swapon", b"/nothing", 0)
reach("swapoff", b"/nothing")
reach("acct", b"/nothing/at/all")
reach("quotactl", 0x800007 << 8, b"/nothing", 0, 0)
"""

_CLOCK = r"""
# Reads the length of the clock's tick and sets it to that.
timex = ctypes.create_string_buffer(256)
result, code = call("adjtimex", timex)
ctypes.c_uint.from_buffer(timex).value = 0x4000
reach("adjtimex", timex)
"""

_HOST_NAME = r"""
import socket
def rename():
    name = os.uname().nodename.encode()
    reach("sethostname", name, len(name))
in_child(rename)
"""

_PORTS = r"""
reach("ioperm", 0x80, 1, 0)
reach("iopl", 0)
"""

_FANOTIFY = r"""
reach("fanotify_init", 0x200, 0)  # FAN_REPORT_FID, which is open to everyone
reach("fanotify_init", 0, 0)
"""

_RARE = r"""
reach("kcmp", os.getpid(), os.getpid(), 0, 0, 0)
reach("move_pages", 0, 0, 0, 0, 0, 0)
reach("migrate_pages", 0, 0, 0, 0)
reach("process_madvise", -1, 0, 0, 0, 0)
reach("memfd_secret", 0)
"""

_LDT = r"""
reach("modify_ldt", 0, ctypes.create_string_buffer(16), 16)
"""

_REAL_TIME = r"""
def first():
    reach("sched_setscheduler", 0, 1, ctypes.byref(ctypes.c_int(1)))
    attempt(os.nice, -5) is not None and breach("nicer than others")
in_child(first)
"""


_FULL_RIGHTS = r"""
# The rights of root, if only in a namespace of its own: half of the kernel's holes begin here.
def become_root():
    if namespaces(NEWNS | NEWNET):
        breach("has capabilities", re.search("CapEff:.*", read("/proc/self/status").decode()).group())
in_child(become_root)
"""

ATTACKS = (
    _kernel("make new namespaces (unshare)", _NEW_NAMESPACES),
    _kernel("make a process in new namespaces (clone)", _CLONE),
    _kernel("make a process in new namespaces (clone3)", _CLONE3),
    _kernel("become root in a namespace of its own", _FULL_RIGHTS),
    _kernel("enter another namespace (setns)", _SETNS),
    _kernel("mount a file system", _MOUNT),
    _kernel("change a mount", _REMOUNT),
    _kernel("unmount something", _UMOUNT),
    _kernel("mount by descriptor (fsopen)", _FSOPEN),
    _kernel("copy a mount (open_tree)", _OPEN_TREE),
    _kernel("move a mount or change its attributes", _MOVE_MOUNT),
    _kernel("change the root folder (pivot_root)", _PIVOT_ROOT),
    _kernel("change the root folder (chroot)", _CHROOT),
    _kernel("trace a process of its own (ptrace)", _PTRACE_CHILD),
    _kernel("use the kernel's keyrings", _KEYS),
    _kernel("use bpf", _BPF),
    _kernel("use io_uring", _IO_URING),
    _kernel("use performance counters (perf)", _PERF),
    _kernel("use userfaultfd", _USERFAULTFD),
    _kernel("type into a terminal (TIOCSTI)", _TIOCSTI),
    _kernel("use a rare device request (ioctl)", _TIOCLINUX),
    _kernel("call the kernel as a 32-bit program", _IA32, Need.X86_64),
    _kernel("call the kernel with x32 numbers", _X32, Need.X86_64),
    _kernel("change its personality", _PERSONALITY),
    _kernel("load another kernel (kexec)", _KEXEC, Need.ROOT),
    _kernel("load a module into the kernel", _MODULES, Need.ROOT),
    _kernel("restart the machine", _REBOOT, Need.ROOT),
    _kernel("change swap, accounting or quotas", _SWAP, Need.ROOT),
    _kernel("change the clock", _CLOCK, Need.ROOT),
    _kernel("change the host's name", _HOST_NAME, Need.ROOT),
    _kernel("use hardware ports", _PORTS, Need.ROOT, Need.X86_64),
    _kernel("watch a file system (fanotify)", _FANOTIFY),
    _kernel("use rare calls on memory and processes", _RARE),
    _kernel("change its descriptor tables (modify_ldt)", _LDT, Need.X86_64),
    _kernel("run before everybody else (real time)", _REAL_TIME, Need.ROOT),
)

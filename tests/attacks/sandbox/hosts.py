"""Hosts that lack something, made for one process: it changes its surroundings and then becomes the program.

`python hosts.py WHAT[,WHAT…] UID program…`; run as root. UID 0 stays root, another one becomes that user.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

NEWNS, NEWUSER, NEWPID, NEWNET = 1 << 17, 1 << 28, 1 << 29, 1 << 30
EPERM, ENOSYS = 1, 38
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
ARM = platform.machine() == "aarch64"
CLONE, UNSHARE, MOUNT, SETNS, PIVOT_ROOT = (220, 97, 40, 268, 41) if ARM else (56, 272, 165, 308, 155)
CLONE3, OPEN_TREE, LANDLOCK = 435, 428, (444, 445, 446)
BUBBLEWRAP = ("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap")
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def user_namespace(ids: int = 2**32 - 1) -> None:
    """A user namespace in which the first `ids` users are themselves, so that nothing else is different."""
    far, near = os.pipe()
    parent = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.read(far, 1)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{parent}/{name}", "w") as file:
                file.write(f"0 0 {ids}")
        os._exit(0)
    checked(libc.unshare(NEWUSER))
    os.write(near, b"x")
    assert os.waitpid(helper, 0)[1] == 0
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def no_user_namespaces() -> None:
    user_namespace()
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")


def no_bubblewrap() -> None:
    checked(libc.unshare(NEWNS))
    checked(libc.mount(None, b"/", None, 1 << 18 | 16384, None))
    for path in BUBBLEWRAP:
        if os.path.exists(path):
            checked(libc.mount(b"/dev/null", os.path.realpath(path).encode(), None, 4096, None))


def install(rules: list[tuple[int, int, int]]) -> None:
    """A filter that answers calls with an error: (call, error, flags of its first argument or 0 for any)."""
    program = [struct.pack("=HBBI", 0x20, 0, 0, 0)]  # the number of the call
    for number, code, flags in rules:
        if flags:
            # another call: over the next four
            program.append(struct.pack("=HBBI", 0x15, 0, 4, number))
            program.append(struct.pack("=HBBI", 0x20, 0, 0, 16))
            program.append(struct.pack("=HBBI", 0x45, 0, 1, flags))
            program.append(struct.pack("=HBBI", 0x06, 0, 0, ERRNO | code))
            program.append(struct.pack("=HBBI", 0x20, 0, 0, 0))
        else:
            program.append(struct.pack("=HBBI", 0x15, 0, 1, number))
            program.append(struct.pack("=HBBI", 0x06, 0, 0, ERRNO | code))
    program.append(struct.pack("=HBBI", 0x06, 0, 0, ALLOW))
    text = ctypes.create_string_buffer(b"".join(program))
    header = struct.pack("=HxxxxxxQ", len(program), ctypes.addressof(text))
    checked(libc.prctl(38, 1, 0, 0, 0))
    checked(libc.prctl(22, 2, header, 0, 0))


def container() -> None:
    """What a container's usual profile forbids."""
    rules = [(number, EPERM, 0) for number in (UNSHARE, MOUNT, SETNS, PIVOT_ROOT, OPEN_TREE)]
    install([*rules, (CLONE3, ENOSYS, 0), (CLONE, EPERM, NEWNS | NEWUSER | NEWPID | NEWNET)])


def no_landlock() -> None:
    install([(number, ENOSYS, 0) for number in LANDLOCK])


WHAT = {
    "user_namespace": user_namespace,
    "few_users": lambda: user_namespace(65536),
    "no_user_namespaces": no_user_namespaces,
    "no_bubblewrap": no_bubblewrap,
    "container": container,
    "no_landlock": no_landlock,
    "nothing": lambda: None,
}

if __name__ == "__main__":
    for what in sys.argv[1].split(","):
        WHAT[what]()
    if uid := int(sys.argv[2]):
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.execv(sys.argv[3], sys.argv[3:])

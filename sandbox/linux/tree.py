"""The file system that code sees: built once by the zygote, read-only, from folders opened as descriptors.

`plan` thinks, `build` acts: `plan` says which folders of the host the interpreter needs, `build` opens all
of them before it hides anything, because a virtual environment may live under the very folder that is
mounted over.
"""

from __future__ import annotations

import os
import sys

from sandbox.linux import libc

TRIPLET = f"{libc.MACHINE}-linux-gnu"
_LIBRARIES = ("/lib64", "/usr/lib64", f"/lib/{TRIPLET}", f"/usr/lib/{TRIPLET}", f"/usr/{TRIPLET}")
_LIBRARIES_WITHOUT_TRIPLET = ("/lib", "/usr/lib")  # Arch, Alpine
_DATA = ("/usr/share/zoneinfo", "/usr/lib/locale", "/etc/ld.so.cache")
_FOR_NETWORK = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/gai.conf"),
    *("/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates"),
)
DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_PASSWD = "sandbox:x:1000:1000:sandbox:/tmp:/bin/false\n"  # noqa: S105 - x: no password
_GROUP = "sandbox:x:1000:\n"
_CACHE_MB = 64  # what preloaded modules may write, such as a cache of fonts
CACHE = "/var/cache/sandbox"
MOUNT_POINTS = ("/tmp", "/mnt", "/run", "/var")  # noqa: S108 - somewhere to hang the new tree; nothing is written there


def inside(path: str) -> str:
    """Where a path of the host is in the tree: the same, unless a call's own `/tmp` would hide it."""
    return f"/opt{path}" if path.startswith("/tmp/") else path  # noqa: S108


def stdlib() -> list[str]:
    """Where this interpreter finds its standard library: with `-I -S` that is all of `sys.path`."""
    return [path for path in sys.path if os.path.isabs(path) and os.path.exists(path)]


def plan(packages: list[str], *, network: bool) -> list[str]:
    """Files and folders of the host that the interpreter needs, as real paths without those inside others."""
    wanted = [os.path.realpath(sys.executable), *stdlib(), *packages, *_DATA]
    prefix = os.path.realpath(sys.base_prefix)
    if (
        prefix != "/usr"
    ):  # of /usr only the standard library; of an interpreter's own prefix its libraries too
        wanted.append(f"{prefix}/lib")
    if os.path.isdir(f"/usr/lib/{TRIPLET}"):
        wanted += _LIBRARIES
    else:
        wanted += [*_LIBRARIES, *_LIBRARIES_WITHOUT_TRIPLET]
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        wanted += {line.split(None, 5)[5].rstrip("\n") for line in maps if ".so" in line}
    if network:
        wanted += _FOR_NETWORK
    real = sorted({os.path.realpath(path) for path in wanted if os.path.exists(path)})
    outermost: list[str] = []
    for path in real:  # sorted: a folder comes before what it holds
        if not outermost or not path.startswith(f"{outermost[-1]}/"):
            outermost.append(path)
    return outermost


def build(
    sources: list[str],
    mounts: list[tuple[int, str, bool, int]],
    *,
    links: list[str],
) -> None:
    """Replace this mount namespace's root by a tree of `sources`, `mounts`, devices and nothing else.

    Args:
        sources: From `plan`; each appears where `inside` says, read-only.
        mounts: Descriptor of a host folder in this mount namespace, target, writable, descriptor of a user
            namespace to map its owner with (0: as it is).
        links: Paths that are symbolic links on the host and should be here too, such as `/lib`.

    Raises:
        OSError: A step was refused; its `filename` names the step.
    """
    opened = [(os.open(path, os.O_PATH | os.O_CLOEXEC), path, os.path.isdir(path)) for path in sources]
    devices = [(os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC), f"/dev/{name}") for name in DEVICES]
    # Before anything is cloned: what the host mounts later must not appear in it.
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    clones = [
        (
            libc.open_tree(fd, "", libc.OPEN_TREE_CLONE | libc.AT_EMPTY_PATH | libc.AT_RECURSIVE),
            target,
            writable,
            userns,
        )
        for fd, target, writable, userns in mounts
    ]
    targets = {link: os.readlink(link) for link in links if os.path.islink(link)}

    new = next(path for path in MOUNT_POINTS if os.path.isdir(path))
    libc.mount("tmpfs", new, "tmpfs", libc.MS_NOSUID, f"size={_CACHE_MB}m,nr_inodes=16k,mode=755")

    for fd, path, is_folder in opened:
        target = new + inside(path)
        _make(target, is_folder)
        libc.mount(f"/proc/self/fd/{fd}", target, None, libc.MS_BIND | libc.MS_REC)
        flags = libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV
        libc.mount_setattr(-100, target, libc.AT_RECURSIVE, add=flags)
        os.close(fd)
    for fd, path in devices:
        _make(new + path, False)
        libc.mount(f"/proc/self/fd/{fd}", new + path, None, libc.MS_BIND)
        libc.mount_setattr(-100, new + path, 0, add=libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NOEXEC)
        os.close(fd)
    for clone, target, writable, userns in clones:
        _make(new + target, True)
        flags = libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV | libc.MOUNT_ATTR_NOEXEC * writable
        if userns:
            libc.mount_setattr(clone, "", libc.AT_EMPTY_PATH, add=libc.MOUNT_ATTR_IDMAP, userns_fd=userns)
        libc.mount_setattr(
            clone,
            "",
            libc.AT_EMPTY_PATH | libc.AT_RECURSIVE,
            add=flags | (0 if writable else libc.MOUNT_ATTR_RDONLY),
        )
        libc.move_mount(clone, new + target)
        os.close(clone)
    for name, to in _LINKS.items():
        os.symlink(to, f"{new}/dev/{name}")
    os.symlink("/tmp/.shm", f"{new}/dev/shm")  # noqa: S108 - of each call its own
    for link, to in targets.items():
        if not os.path.lexists(new + link):
            os.makedirs(os.path.dirname(new + link), exist_ok=True)
            os.symlink(to, new + link)
    for folder in ("/tmp", "/proc", "/etc", CACHE):  # noqa: S108
        os.makedirs(new + folder, exist_ok=True)
    os.chmod(new + CACHE, 0o777)  # noqa: S103 - for preloaded modules; read-only before any code runs
    for name, text in (("passwd", _PASSWD), ("group", _GROUP)):
        with open(f"{new}/etc/{name}", "w", encoding="ascii") as file:
            file.write(text)

    # The kernel lets nobody mount a /proc who does not see one already. The zygote's own goes on top of this
    # one.
    libc.mount("/proc", f"{new}/proc", None, libc.MS_BIND | libc.MS_REC)

    os.chdir(new)
    libc.pivot_root(".", ".")  # the old root is now stacked on the new one
    libc.umount(".", libc.MNT_DETACH)
    os.chdir("/")


def seal() -> None:
    """Make the tree itself read-only. What it holds already is."""
    libc.mount_setattr(-100, "/", 0, add=libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NODEV)


def _make(path: str, is_folder: bool) -> None:
    if is_folder:
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.lexists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))

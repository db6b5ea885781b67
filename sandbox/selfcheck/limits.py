"""Using more than the configuration allows. Every bomb is bounded: it stops at twice the limit."""

from __future__ import annotations

from typing import Any

from sandbox.selfcheck.arenas import Arena
from sandbox.selfcheck.model import Attack, Family, Observation
from sandbox.selfcheck.prelude import program, snippet
from sandbox.selfcheck.stage import Stage
from sandbox.types import EndedBy, IsolationLevel

CPU_S = 0.6
_UNCOUNTED = dict.fromkeys(
    (IsolationLevel.L4, IsolationLevel.L3),
    "what the kernel keeps for a process is counted by a cgroup only",
)
_NO_QUOTA = dict.fromkeys(
    (IsolationLevel.L3, IsolationLevel.L2),
    "each file is limited, but there is no file system of the call's own that would limit them together",
)

_SHM_APART = {"docker": "/dev/shm is a file system beside /tmp, with a limit of its own"}  # noqa: S108


def _limits(stage: Stage, arena: Arena) -> dict[str, Any]:
    config = arena.config
    return {
        "memory": config.max_memory_mb << 20,
        "processes": config.max_processes,
        "files": config.max_open_files,
        "disk": config.max_disk_mb << 20,
        "inodes": config.max_files,
        "cpu": CPU_S,
    }


def _bomb(name: str, code: str, *ends: EndedBy, **more: Any) -> Attack:
    return snippet(name, Family.LIMITS, _RAISE + code, values=_limits, ends=ends, **more)


_RAISE = r"""
import resource
for kind in range(16):
    attempt(resource.setrlimit, kind, (resource.getrlimit(kind)[1],) * 2)
"""

_FORK = r"""
import mmap
# Every process makes more of them, until one is refused or there are twice as many as allowed.
board = mmap.mmap(-1, 4096)
wanted, far, near = 2 * T["processes"], *os.pipe()
def multiply():
    while board[0] == 0:
        try:
            if os.fork() == 0:
                os.write(near, b"+")
        except OSError as error:
            os.write(near, b"-")
            break
        board[1] = min(255, board[1] + 1)
        if board[1] >= wanted:
            break
first = os.getpid()
multiply()
if os.getpid() != first:
    for _ in range(200):
        if board[0]:
            break
        time.sleep(0.01)
    os._exit(0)
time.sleep(0.3)
os.set_blocking(far, False)
try:
    said = os.read(far, 4096)
except OSError:
    said = b""
board[0] = 1
made = said.count(b"+") + 1
breach(made, "processes at once") if made > T["processes"] else held("stopped at", made, "processes")
"""

_THREADS = r"""
import threading
stop, started = threading.Event(), []
for _ in range(2 * T["processes"]):
    thread = threading.Thread(target=stop.wait, args=(5,))
    try:
        thread.start()
    except RuntimeError:
        break
    started.append(thread)
alive = len(started) + 1
breach(alive, "threads at once") if alive > T["processes"] else held("stopped at", alive, "threads")
stop.set()
for thread in started:
    thread.join()
"""

_MEMORY = r"""
blocks = []
try:
    while len(blocks) << 20 < 2 * T["memory"]:
        blocks.append(b"x" * (1 << 20))
except MemoryError:
    held("MemoryError after", len(blocks), "MiB")
else:
    breach("holds", len(blocks), "MiB")
"""

_MAPPED = r"""
import mmap
try:
    block = mmap.mmap(-1, 2 * T["memory"], flags=T["flags"])
    for page in range(0, len(block), 4096):
        block[page] = 1
    breach("holds", len(block) >> 20, "MiB")
except (OSError, MemoryError) as error:
    held("mmap", type(error).__name__)
"""


def _mapped(name: str, flags: int) -> Attack:
    def values(stage: Stage, arena: Arena) -> dict[str, Any]:
        return {**_limits(stage, arena), "flags": flags}

    return snippet(name, Family.LIMITS, _RAISE + _MAPPED, values=values, ends=(EndedBy.MEMORY,))


_MANY_PROCESSES = r"""
# Eight processes, none of them large: together twice what is allowed, for as long as it takes to notice.
far, near = os.pipe()
gate, key = os.pipe()
children = []
try:
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(key)
                block = bytearray(T["memory"] // 4)
                for page in range(0, len(block), 4096):
                    block[page] = 1
                os.write(near, b"+")
                os.read(gate, 1)
            finally:
                os._exit(0)
        children.append(pid)
except OSError as error:
    held("fork", name_of(error.errno))
import select
full = 0
while full < len(children) and select.select([far], [], [], 1.5)[0]:
    full += len(os.read(far, 8))
if full == 8:
    time.sleep(0.5)
    alive = sum(os.waitpid(pid, os.WNOHANG)[0] == 0 for pid in children)
    breach(alive, "processes hold", alive * T["memory"] // 4 >> 20, "MiB") if alive == 8 else held(alive)
else:
    held(full, "of 8 got their memory")
os.close(key)
"""

_FILES_IN_MEMORY = r"""
def fill(fd, what):
    block, written = b"x" * (1 << 20), 0
    while written < 2 * T["memory"]:
        written += os.write(fd, block)
    breach("holds", written >> 20, "MiB in", what)
"""

_MEMFD = (
    _FILES_IN_MEMORY
    + r"""
try:
    fill(os.memfd_create("bomb"), "a memfd")
except OSError as error:
    held("memfd", name_of(error.errno))
fd, code = call("memfd_secret", 0)
held("memfd_secret", name_of(code)) if fd < 0 else breach("memfd_secret")
"""
)

_SHM = (
    _FILES_IN_MEMORY
    + r"""
import uuid
for folder in ("/dev/shm", "/run/shm"):
    path = f"{folder}/{uuid.uuid4()}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.unlink(path)
        fill(fd, folder)
        break
    except OSError as error:
        held(folder, name_of(error.errno))
"""
)

_SYSV_MEMORY = r"""
_libc.shmat.restype = ctypes.c_void_p
ctypes.set_errno(0)
number = _libc.shmget(0, ctypes.c_size_t(2 * T["memory"]), 0o1600)
if number < 0:
    held("shmget", name_of(ctypes.get_errno()))
else:
    address = _libc.shmat(number, None, 0)
    _libc.shmctl(number, 0, None)
    ctypes.memset(address, 1, 2 * T["memory"])
    breach("holds", 2 * T["memory"] >> 20, "MiB")
"""

_QUEUES = r"""
import uuid
# Messages that nobody reads are memory of the kernel.
made = 0
for number in range(64):
    attributes = (ctypes.c_long * 8)(0, 10, 8192)
    fd, code = call("mq_open", uuid.uuid4().hex.encode(), os.O_RDWR | os.O_CREAT, 0o600, attributes)
    if fd < 0:
        held("mq_open", name_of(code))
        break
    made += 1
ctypes.set_errno(0)
number = call("msgget", 0, 0o1600)
breach(made, "message queues") if made or number[0] >= 0 else held("msgget", name_of(number[1]))
if number[0] >= 0:
    _libc.msgctl(number[0], 0, None)
"""

_BUFFERS = r"""
import select, socket
# What lies in pipes and socket pairs is memory of the kernel, and of no process.
def stuff():
    total, kept = 0, []
    try:
        while total <= 2 * T["memory"]:
            pair = socket.socketpair()
            kept.append(pair)
            for one in pair:
                one.setblocking(False)
                try:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
                except OSError:
                    pass
                try:
                    while True:
                        total += one.send(bytes(65536))
                except BlockingIOError:
                    pass
    except OSError:
        pass
    return total, kept
far, near = os.pipe()
gate, key = os.pipe()
total, kept = stuff()
held_by = {}
while total + sum(held_by.values()) <= 2 * T["memory"] and len(held_by) < T["processes"] - 1:
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        try:
            os.close(key)
            for pair in kept:
                for one in pair:
                    one.close()
            size, kept = stuff()  # kept, so that it is not closed
            os.write(near, size.to_bytes(8, "little"))
            os.read(gate, 1)
        finally:
            os._exit(0)
    held_by[pid] = int.from_bytes(os.read(far, 8), "little") if select.select([far], [], [], 2)[0] else 0
time.sleep(0.3)
alive = [size for pid, size in held_by.items() if os.waitpid(pid, os.WNOHANG)[0] == 0]
total += sum(alive)
text = f"{total >> 20} MiB in buffers of {len(alive) + 1} processes"
breach(text) if total > 2 * T["memory"] else held(text)
"""

_DISK = r"""
written, names = {}, []
for folder in dict.fromkeys([".", *places()]):
    path, size = os.path.join(folder, f"bomb-{os.getpid()}"), 0
    try:
        for part in range(8):
            with open(f"{path}-{part}", "wb", buffering=0) as file:
                names.append(f"{path}-{part}")
                while size < (part + 1) * T["disk"] // 2 and sum(written.values()) + size < 2 * T["disk"]:
                    size += file.write(b"x" * (1 << 18))
    except OSError as error:
        held(name_of(error.errno))
    written[folder] = size
    if sum(written.values()) >= 2 * T["disk"]:
        break
for name in names:
    os.unlink(name)
total = sum(written.values())
text = f"{total >> 20} MiB of files"
breach(text) if total > 1.1 * T["disk"] else held(text)
"""

_LARGE_FILE = r"""
# One file, and one that is nothing but holes.
path = f"bomb-{os.getpid()}"
try:
    with open(path, "wb", buffering=0) as file:
        for _ in range(2 * T["disk"] >> 18):
            file.write(b"x" * (1 << 18))
    breach("a file of", os.path.getsize(path) >> 20, "MiB")
except OSError as error:
    held("write", name_of(error.errno))
finally:
    os.unlink(path)
"""

_INODES = r"""
made, names = 0, []
for folder in dict.fromkeys([".", "/tmp", "/dev/shm", "/tmp/out"]):
    try:
        while made < 2 * T["inodes"]:
            name = os.path.join(folder, f"bomb-{os.getpid()}-{made}")
            os.mkdir(name)
            names.append(name)
            made += 1
    except OSError as error:
        held(name_of(error.errno))
for name in names:
    os.rmdir(name)
breach(made, "folders") if made > T["inodes"] else held("stopped at", made, "folders")
"""

_OPEN_FILES = r"""
kept = []
try:
    while len(kept) < 2 * T["files"]:
        kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    held(name_of(error.errno), "after", len(kept))
else:
    breach(len(kept), "open files")
"""

_CPU = r"""
# Four processes one after another, so that no one of them uses much.
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))
used = 0.0
for _ in range(4):
    try:
        pid = os.fork()
    except OSError:
        burn(T["cpu"] / 2)
        continue
    if pid == 0:
        burn(T["cpu"] / 2)
        os._exit(0)
    os.waitpid(pid, 0)
breach("used", round(os.times()[0] + os.times()[2], 1), "s, twice what is allowed")
"""


def _output(arena: Arena, stage: Stage) -> Observation:
    """A flood on both streams: nothing over the limit may come back, and a word before it must."""
    code = "print('first word', flush=True)\nimport os\n"
    code += "for _ in range(640):\n    os.write(1, b'x' * 65536)\n    os.write(2, b'y' * 65536)\n"
    ran = arena.run(program(code), timeout_seconds=6)
    result = ran.result
    for name, text in (("stdout", result.stdout), ("stderr", result.stderr)):
        if len(text) > arena.config.max_output_bytes:
            return Observation(breach=f"{len(text)} bytes of {name} came back")
    if not result.stdout.startswith("first word"):
        return Observation(breach=f"what was written first is lost: {result.stdout[:40]!r}")
    if not result.stdout_dropped_bytes or not result.stderr_dropped_bytes:
        return Observation(breach="bytes are missing, and the result does not say so")
    return Observation(met=f"ended by {result.ended_by}, {result.stdout_dropped_bytes} bytes dropped")


def _results(arena: Arena, stage: Stage) -> Observation:
    """Large values where nobody looks for them: the value, the exception, the names of files."""
    code = r"""
class Long(Exception):
    pass
Long.__name__ = Long.__qualname__ = "N" * (1 << 20)
Long.__module__ = "M" * (1 << 20)
class Value:
    def __repr__(self):
        return "V" * (1 << 22)
print("V" * (1 << 20)) if T["bare"] else None
%s
"""
    bare = not arena.walled
    for last in ("Value()", "raise Long('E' * (1 << 22))", "import sys; sys.exit('S' * (1 << 22))"):
        result = arena.run(program(code % last, bare=bare)).result
        size = len(result.value or "") + len(result.exception or "") + len(result.error or "")
        size += len(result.stdout) + len(result.stderr)
        if size > 2 * arena.config.max_output_bytes + 40_000:
            return Observation(breach=f"{size} bytes came back for {last}")
    return Observation(met="cut to what a result may hold")


ATTACKS = (
    _bomb("make more processes than allowed (fork bomb)", _FORK, EndedBy.PROCESSES),
    _bomb("make more threads than allowed", _THREADS, EndedBy.PROCESSES),
    _bomb("use more memory than allowed", _MEMORY, EndedBy.MEMORY),
    _mapped("use more memory than allowed (private mapping)", 0x22),
    _mapped("use more memory than allowed (shared mapping)", 0x21),
    _bomb("use more memory than allowed in many processes", _MANY_PROCESSES, EndedBy.MEMORY),
    _bomb("use more memory than allowed (memfd)", _MEMFD, EndedBy.MEMORY),
    _bomb("use more memory than allowed (/dev/shm)", _SHM, EndedBy.MEMORY, EndedBy.DISK),
    _bomb("use more memory than allowed (System V)", _SYSV_MEMORY, EndedBy.MEMORY),
    _bomb("use memory of the kernel (message queues)", _QUEUES, EndedBy.MEMORY),
    _bomb(
        "use memory of the kernel (buffers of pipes and pairs)",
        _BUFFERS,
        EndedBy.MEMORY,
        not_promised=_UNCOUNTED,
    ),
    _bomb(
        "write more files than allowed, in every place there is",
        _DISK,
        EndedBy.DISK,
        EndedBy.MEMORY,
        not_promised=_NO_QUOTA,
        not_promised_by=_SHM_APART,
    ),
    _bomb("write a larger file than allowed", _LARGE_FILE, EndedBy.DISK, EndedBy.MEMORY),
    _bomb(
        "make more files than allowed (inodes)",
        _INODES,
        EndedBy.DISK,
        not_promised=_NO_QUOTA,
        not_promised_by=_SHM_APART,
    ),
    _bomb("open more files than allowed", _OPEN_FILES),
    _bomb(
        "use more CPU time than allowed, in many short processes",
        _CPU,
        EndedBy.CPU,
        settings=lambda stage, config: {"max_cpu_seconds": CPU_S},
    ),
    Attack(name="write more output than allowed", family=Family.LIMITS, function=_output),
    Attack(name="return a larger result than allowed", family=Family.LIMITS, function=_results),
)

"""One call finding traces of another, or getting the same random numbers."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from sandbox.errors import SandboxError
from sandbox.selfcheck.arenas import Arena, end_processes_named
from sandbox.selfcheck.model import Attack, Family, Observation
from sandbox.selfcheck.prelude import judge, program
from sandbox.selfcheck.stage import NOBODY, Stage, processes_named, wait_until
from sandbox.types import SandboxConfig

_GONE_S = 2.0


def _calls(name: str, function: Any, **more: Any) -> Attack:
    return Attack(name=name, family=Family.CALLS, function=function, **more)


def _one_after_another(first: str, second: str, *, in_one: bool = False) -> Any:
    """What the first call leaves, the second looks for. `in_one`: the control is one interpreter for both."""

    def function(arena: Arena, stage: Stage) -> Observation:
        name = stage.name()
        codes = [program(first, name=name), program(second, name=name)]
        if in_one and not arena.walled:
            return judge(arena.run("\n".join(codes)), stage)
        planted = judge(arena.run(codes[0]), stage)
        if not planted.met:
            return Observation(trouble=f"nothing was planted: {planted.trouble}")
        return judge(arena.run(codes[1]), stage)

    return function


_PLANT_FILES = r"""
made = 0
for folder in places():
    try:
        with open(os.path.join(folder, T["name"]), "x") as file:
            file.write("left by a call")
        made += 1
    except OSError:
        pass
held("planted", made, "files")
"""

_FIND_FILES = r"""
for folder in places():
    path = os.path.join(folder, T["name"])
    if os.path.lexists(path):
        breach("found", path)
        os.unlink(path)
held("found none")
"""

_PLANT_OBJECTS = r"""
import zlib
key = zlib.crc32(T["name"].encode()) & 0x7FFFFFFF
made = [what for what, number in (
    ("shared memory", call("shmget", key, 4096, 0o1666)[0]),
    ("message queue", call("msgget", key, 0o1666)[0]),
    ("semaphore", call("semget", key, 1, 0o1666)[0]),
    ("posix queue", call("mq_open", T["name"].encode(), os.O_RDWR | os.O_CREAT, 0o666, None)[0]),
    ("key", call("add_key", b"user", T["name"].encode(), b"x", 1, -4)[0]),
) if number >= 0]
try:
    from multiprocessing import resource_tracker, shared_memory
    resource_tracker.register = lambda *_: None
    shared_memory.SharedMemory(T["name"], create=True, size=4096)
    made.append("posix shared memory")
except (OSError, ImportError) as error:
    pass
held("planted", *made)
"""

_FIND_OBJECTS = r"""
import zlib
key = zlib.crc32(T["name"].encode()) & 0x7FFFFFFF
for what, number, remove in (
    ("shared memory", call("shmget", key, 0, 0)[0], lambda number: _libc.shmctl(number, 0, None)),
    ("message queue", call("msgget", key, 0)[0], lambda number: _libc.msgctl(number, 0, None)),
    ("semaphore", call("semget", key, 0, 0)[0], lambda number: _libc.semctl(number, 0, 0)),
    ("posix queue", call("mq_open", T["name"].encode(), os.O_RDWR, 0, None)[0],
     lambda number: _libc.mq_unlink(b"/" + T["name"].encode())),
    ("key", call("request_key", b"user", T["name"].encode(), None, 0)[0],
     lambda number: call("keyctl", 21, number)),
):
    if number >= 0:
        breach("found", what)
        remove(number)
if os.path.exists("/dev/shm/" + T["name"]):
    breach("found posix shared memory")
    os.unlink("/dev/shm/" + T["name"])
held("found none")
"""

_PLANT_STATE = r"""
import builtins, json, linecache, resource, threading
builtins.planted = json.planted = sys.planted = T["name"]
sys.modules["planted_" + T["name"]] = json
sys.path.insert(0, "/" + T["name"])
os.environ["PLANTED"] = T["name"]
json.load = lambda *_: T["name"]
sys.stdout.planted = T["name"]
os.makedirs("planted", exist_ok=True)
os.chdir("planted")
os.umask(0o707)
signal.signal(signal.SIGUSR1, lambda *_: None)
resource.setrlimit(resource.RLIMIT_NOFILE, (33, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
attempt(os.nice, 3)
planted_thread = threading.Thread(target=time.sleep, args=(1,), name=T["name"], daemon=True)
attempt(planted_thread.start)
label(T["name"])
held("planted")
"""

_FIND_STATE = r"""
import builtins, json, resource, threading
name = T["name"]
comm = attempt(read, "/proc/self/comm") or b""
for what, found in (
    ("a builtin", hasattr(builtins, "planted")), ("an attribute of json", hasattr(json, "planted")),
    ("a patched function", json.load.__name__ != "load"), ("an attribute of sys", hasattr(sys, "planted")),
    ("a module", "planted_" + name in sys.modules), ("a path", "/" + name in sys.path),
    ("a variable", os.environ.get("PLANTED") == name), ("a global", "planted_thread" in globals()),
    ("an attribute of stdout", hasattr(sys.stdout, "planted")),
    ("the umask", os.umask(0o22) == 0o707), ("a signal handler", callable(signal.getsignal(signal.SIGUSR1))),
    ("a limit", resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 33),
    ("a nice value", os.getpriority(os.PRIO_PROCESS, 0) == 3),
    ("a thread", any(thread.name == name for thread in threading.enumerate())),
    ("the name of the process", name.encode() in comm), ("the folder", os.getcwd().endswith("planted")),
):
    if found:
        breach("found", what)
held("found none")
"""

_PLANT_MEMORY = r"""
# Not as one string anywhere in this code, which is in memory itself.
marker = b"MARK" + T["name"][::-1].encode()
blocks = [marker * 64 for _ in range(2000)]
del blocks
held("planted")
"""

_FIND_MEMORY = r"""
marker = b"MARK" + T["name"][::-1].encode()
wanted, seen = marker * 2, 0
far, near = os.pipe()
for line in (attempt(read, "/proc/self/maps") or b"").decode().splitlines():
    span, rights = line.split()[:2]
    start, end = (int(number, 16) for number in span.split("-"))
    if not rights.startswith("rw") or end - start > 1 << 27:
        continue
    for address in range(start, end, 32768):
        size = _libc.write(near, ctypes.c_void_p(address), min(32768, end - address))
        data = os.read(far, size) if size > 0 else b""
        seen += len(data)
        # Two in a row: this code makes that only here.
        if wanted in data and data.count(marker) > 8:
            breach("found a trace in", line[73:] or "anonymous memory")
held("found nothing in", seen >> 20, "MiB") if seen else print("saw nothing")
"""

_HOLD = r"""
import socket, tempfile
kept = []
for folder in ("/tmp", "/dev/shm", "/var/tmp", tempfile.gettempdir()):
    try:
        kept.append(open(os.path.join(folder, T["name"]), "w"))
    except OSError:
        pass
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try:
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.bind("\0" + T["name"] + str(int(kind)))
        sock.listen() if kind == socket.SOCK_STREAM else None
        kept.append(sock)
    except OSError:
        pass
try:
    import pty
    kept.append(pty.openpty())
except OSError:
    pass
held("holds", len(kept))
label(T["name"])
time.sleep(1.2)
for folder in ("/tmp", "/dev/shm", "/var/tmp", tempfile.gettempdir()):
    try:
        os.unlink(os.path.join(folder, T["name"]))
    except OSError:
        pass
"""

_LOOK = r"""
import fcntl, resource, socket, struct, tempfile
name, me = T["name"], os.getpid()
for folder in ("/tmp", "/dev/shm", "/var/tmp", tempfile.gettempdir()):
    if os.path.exists(os.path.join(folder, name)):
        breach("sees its file in", folder)
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try:
        socket.socket(socket.AF_UNIX, kind).connect("\0" + name + str(int(kind)))
        breach("connected to its socket")
    except OSError as error:
        held("connect", name_of(error.errno))
for entry in attempt(os.listdir, "/proc") or ():
    if entry.isdigit() and int(entry) != me:
        try:
            if name.encode() in read(f"/proc/{entry}/comm"):
                breach("sees its process")
        except OSError:
            pass
for entry in attempt(os.listdir, "/dev/pts") or ():
    if entry.isdigit():
        breach("sees its terminal")
# The other's number can be guessed. Nothing here changes anything, should it be of somebody else.
if T["walled"]:
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    for pid in dict.fromkeys([*range(1, 200), *range(max(1, me - 100), me + 100)]):
        if pid == me:
            continue
        for what, number in (
            ("kill", call("kill", pid, 0)[0]), ("tgkill", call("tgkill", pid, pid, 0)[0]),
            ("prlimit", call("prlimit64", pid, resource.RLIMIT_CORE, None, bytes(16))[0]),
            ("get_robust_list", call("get_robust_list", pid, ctypes.byref(head), ctypes.byref(size))[0]),
            ("kcmp", call("kcmp", me, pid, 1, 0, 0)[0]),
        ):
            if number >= 0:
                breach(what, "works on process", pid)
held("sees nothing of it")
"""


def _at_once(arena: Arena, stage: Stage) -> Observation:
    """D-22: one call holds what it has while another looks around."""
    name = stage.name()
    holding = beside(arena, program(_HOLD, name=name))
    try:
        if not wait_until(lambda: processes_named(name), 5):
            return Observation(trouble="the first call did not start")
        return judge(arena.run(program(_LOOK, name=name, walled=arena.walled)), stage)
    finally:
        holding.join()
        end_processes_named(name)


_USE_UP = r"""
import resource, threading
# In the open, what a careless sandbox does: a limit that the kernel counts for the whole user.
become(T["uid"])
if T["limit"]:
    resource.setrlimit(resource.RLIMIT_NPROC, (T["limit"], T["limit"]))
stop, started = threading.Event(), 0
try:
    for _ in range(64):
        threading.Thread(target=stop.wait, args=(0.8,), daemon=True).start()
        started += 1
except RuntimeError:
    pass
label(T["name"])
stop.wait(0.8)
held("had", started, "threads")
"""

_NEED_SOME = r"""
import resource, threading
become(T["uid"])
if T["limit"]:
    resource.setrlimit(resource.RLIMIT_NPROC, (T["limit"], T["limit"]))
threads = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(3)]
try:
    for thread in threads:
        thread.start()
    held("gets its own")
except RuntimeError:
    breach("another call has used up the threads")
"""


def _use_up(arena: Arena, stage: Stage) -> Observation:
    """One call takes all processes and threads that it may have; the others must still get theirs."""
    uid = NOBODY if not arena.walled and os.geteuid() == 0 else 0
    limit = 0 if arena.walled else _tasks_of(uid or os.getuid()) + 8
    name = stage.name()
    values: dict[str, Any] = {"uid": uid, "limit": limit, "name": name}
    using = beside(arena, program(_USE_UP, **values))
    try:
        if not wait_until(lambda: processes_named(name), 5):
            return Observation(trouble="the first call did not start")
        seen = [judge(arena.run(program(_NEED_SOME, **values)), stage) for _ in range(2)]
    except SandboxError as error:
        return Observation(breach=f"another call could not run: {error}")
    finally:
        using.join()
    return next((each for each in seen if each.breach or not each.met), seen[0])


def _tasks_of(uid: int) -> int:
    """Processes and threads of a user, as the kernel counts them."""
    count = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}").st_uid == uid:
                    count += len(os.listdir(f"/proc/{entry}/task"))
    return count


def beside(arena: Arena, code: str) -> threading.Thread:
    """A call that runs while others do; what comes of it does not matter."""

    def run() -> None:
        with contextlib.suppress(SandboxError):
            arena.run(code)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


_DEEP = r"""
where = os.getcwd()
made = 0
try:
    for made in range(1500):
        os.mkdir("d")
        os.chdir("d")
except OSError as error:
    held(name_of(error.errno))
held("made", made)
print("at", where)
"""


def _deep(arena: Arena, stage: Stage) -> Observation:
    """A tree so deep that whoever removes it folder by folder, each in the one above, comes to no end."""
    folder = stage.folder / stage.name()
    folder.mkdir()
    ran = arena.run(program(_DEEP), folder=folder)
    said = judge(ran, stage)
    if not arena.walled:
        try:
            shutil.rmtree(folder / "d")
        except RecursionError:
            return Observation(breach="removing it ends with RecursionError")
        finally:
            _flatten(folder)
        return said
    own = Path(ran.result.stdout.rpartition("at ")[2].strip() or "/nowhere")
    # At a level without a file system of its own this is a path of the host.
    if not wait_until(lambda: not (own / "d").exists(), _GONE_S):
        return Observation(breach=f"{own} is still there")
    again = arena.run("print('alive')").result
    return said if again.success else Observation(breach=f"the next call: {again.error}")


def _flatten(folder: Path) -> None:
    """Remove a chain of folders from its top."""
    count = 0
    while names := [path for path in folder.iterdir() if path.is_dir()]:
        for path in names:
            for inner in path.iterdir():
                inner.rename(folder / f"flat-{count}")
                count += 1
            path.rmdir()


_SHADOWS = ("json.py", "colorsys.py", "sitecustomize.py", "usercustomize.py", "this.py", "quopri.py")

_PLANT_SHADOWS = r"""
for name in T["shadows"]:
    with open(name, "w") as file:
        file.write("import sys\nprint('BREACH ran', __file__, flush=True)\n")
with open("x.pth", "w") as file:
    file.write("import sys; print('BREACH ran x.pth', flush=True)\n")
with open("pyvenv.cfg", "w") as file:
    file.write("home = .\ninclude-system-site-packages = true\n")
os.symlink(T["file"], "link")
os.environ["PYTHONSTARTUP"] = os.path.join(os.getcwd(), "sitecustomize.py")
held("planted", *os.listdir("."))
"""

_RUN_SHADOWS = r"""
if "x.pth" not in os.listdir("."):
    print("nothing is here any more")
else:
    for name in T["shadows"]:
        module = name.removesuffix(".py")
        sys.modules.pop(module, None)
        try:
            __import__(module)
            held(module)
        except ImportError as error:
            held(module, "is not found")
    leak(attempt(read, "link"), "through a link that an earlier call left")
"""


def _shadows(arena: Arena, stage: Stage) -> Observation:
    """D-05, D-11: what a call leaves in the workspace is neither run by the next nor a way out for it."""
    folder = stage.workspace
    values = {"shadows": _SHADOWS, "file": str(stage.secret_files[0])}
    observation = judge(arena.run(program(_PLANT_SHADOWS, **values), folder=folder), stage)
    if observation.met:
        observation = judge(arena.run(program(_RUN_SHADOWS, **values), folder=folder, loose=True), stage)
    for path in folder.iterdir():
        if not path.is_dir():
            path.unlink()
    return observation


def _in_workspace(stage: Stage, config: SandboxConfig) -> dict[str, Any]:
    return {"working_dir": str(stage.workspace)}


ATTACKS = (
    _calls("find a file that an earlier call left", _one_after_another(_PLANT_FILES, _FIND_FILES)),
    _calls(
        "find shared memory, queues or keys of an earlier call",
        _one_after_another(_PLANT_OBJECTS, _FIND_OBJECTS),
    ),
    _calls(
        "find what an earlier call changed in Python",
        _one_after_another(_PLANT_STATE, _FIND_STATE, in_one=True),
    ),
    _calls(
        "find what an earlier call had in memory",
        _one_after_another(_PLANT_MEMORY, _FIND_MEMORY, in_one=True),
    ),
    _calls("see or touch a call that runs at the same time", _at_once),
    _calls("use up the processes and threads of other calls", _use_up, alone=True),
    _calls("leave a tree of folders too deep to remove", _deep),
    _calls("have the next call run or follow what it left", _shadows, settings=_in_workspace),
)

"""Signalling, slowing down or outliving others."""

from __future__ import annotations

import os
import signal
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sandbox.selfcheck.arenas import Arena, end_processes_named
from sandbox.selfcheck.model import Attack, Family, Need, Observation
from sandbox.selfcheck.prelude import judge, program, snippet, with_mounts
from sandbox.selfcheck.stage import NOBODY, Stage, processes_named, wait_until
from sandbox.types import IsolationLevel

_GONE_S = 1.0


def _state(pid: int) -> str:
    """What others can set on a process: its nice value, affinity and limits."""
    text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    limits = Path(f"/proc/{pid}/limits").read_text()
    return (
        f"nice {text[16]}, processors {sorted(os.sched_getaffinity(pid))}, {hash(limits)}, {text[0] == 'T'}"
    )


def _on_victim(name: str, code: str, *, apart: bool = False, **more: Any) -> Attack:
    """An attack that wants something to happen to another process.

    With `apart`, root's control is made as a user of its own, so that it can reach nothing but the victim.
    """

    def function(arena: Arena, stage: Stage) -> Observation:
        uid = NOBODY if apart and not arena.walled and os.geteuid() == 0 else 0
        with stage.victim(uid) as victim:
            before = _state(victim.pid)
            values = {
                "pids": [victim.pid],
                "walled": arena.walled,  # in the open it works: on the victim, and on nobody else
                "server": os.getpid(),
            }
            said = judge(arena.run(program(f"become({uid})\n{code}", **values)), stage)
            changed = ""
            if victim.process.poll() is None and _state(victim.pid) != before:
                changed = f"the victim has {_state(victim.pid)}, it had {before}"
            return Observation(
                breach=victim.close() or changed or said.breach, met=said.met, trouble=said.trouble
            )

    return Attack(name=name, family=Family.PROCESSES, function=function, **more)


_KILL = r"""
me = os.getpid()
for pid in pids():
    for function, args in ((os.kill, (pid, signal.SIGURG)), (os.killpg, (pid, signal.SIGURG))):
        try:
            function(*args)
            held(function.__name__, "let through")
        except OSError as error:
            held(function.__name__, name_of(error.errno))
    info = ctypes.create_string_buffer(b"\x17\0\0\0\0\0\0\0\xff\xff\xff\xff", 128)
    for name, args in (("tkill", (pid, 23)), ("tgkill", (pid, pid, 23)), ("rt_sigqueueinfo", (pid, 23, info)),
                       ("rt_tgsigqueueinfo", (pid, pid, 23, info))):
        held(name, name_of(call(name, *args)[1]))
"""

_KILL_HARD = r"""
for pid in T["pids"]:
    attempt(os.kill, pid, signal.SIGKILL)
"""

_KILL_ANY = r"""
# Urgent data on a socket: a signal that nobody minds. What it answers says nothing: it is 0 too where every
# single process was refused.
become(T["uid"])
try:
    os.kill(-1, T["signal"])
    held("kill answers")
    if T["only_asks"]:
        breach("may signal somebody")
except OSError as error:
    held("kill", name_of(error.errno))
"""

_NEIGHBOUR = r"""
label(T["name"])
signal.signal(signal.SIGURG, lambda *_: breach("a call at the same time was signalled"))
end = time.monotonic() + 0.6
while time.monotonic() < end:
    time.sleep(0.05)
held("nothing came")
"""


def _kill_any(arena: Arena, stage: Stage) -> Observation:
    """In the open, root tries it as a user who has nothing but the victim; others only ask for the right."""
    root = os.geteuid() == 0
    uid = NOBODY if root and not arena.walled else 0
    only_asks = not arena.walled and not root
    values = {"uid": uid, "signal": 0 if only_asks else int(signal.SIGURG), "only_asks": only_asks}
    name = stage.name()
    with stage.victim(uid) as victim, ThreadPoolExecutor(1) as pool:
        if arena.walled:
            neighbour = pool.submit(arena.run, program(_NEIGHBOUR, name=name))
            wait_until(lambda: processes_named(name) or neighbour.done(), 5)
        said = judge(arena.run(program(_KILL_ANY, **values)), stage)
        beside = judge(neighbour.result(), stage).breach if arena.walled else ""
        return Observation(breach=victim.close() or beside or said.breach, met=said.met, trouble=said.trouble)


_KILL_PARENT = r"""
# Signal 0 asks for the right and does nothing.
for pid in dict.fromkeys([os.getppid(), T["server"], *range(1, 300)]):
    if pid not in (0, os.getpid()):
        try:
            os.kill(pid, 0)
        except OSError as error:
            held("kill", name_of(error.errno))
        else:
            breach("may signal process", pid)
            break
"""

_PIDFD = r"""
for pid in pids():
    pidfd, code = call("pidfd_open", pid, 0)
    if pidfd < 0:
        held("pidfd_open", name_of(code))
    else:
        held("pidfd_send_signal", name_of(call("pidfd_send_signal", pidfd, 23, 0, 0)[1]))
"""

_OWNER = r"""
import fcntl, socket, struct
# The kernel sends a signal to the "owner" of a descriptor when something arrives; anyone may be named owner.
for pid in T["pids"]:
    one, two = socket.socketpair()
    read_end, write_end = os.pipe()
    for fd in (one.fileno(), read_end):
        for how, args in (
            ("F_SETOWN", (fcntl.fcntl, fd, fcntl.F_SETOWN, pid)),
            ("F_SETOWN_EX", (fcntl.fcntl, fd, 15, struct.pack("ii", 1, pid))),
            ("FIOSETOWN", (fcntl.ioctl, fd, 0x8901, struct.pack("i", pid))),
            ("SIOCSPGRP", (fcntl.ioctl, fd, 0x8902, struct.pack("i", pid))),
        ):
            try:
                args[0](*args[1:])
                fcntl.fcntl(fd, 10, signal.SIGURG)  # F_SETSIG
                fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
                held(how, "let through")
            except OSError as error:
                held(how, name_of(error.errno))
        attempt(two.send, b"x")
        attempt(os.write, write_end, b"x")
"""

_PRLIMIT = r"""
import resource, struct
for pid in T["pids"]:
    result, code = call("prlimit64", pid, resource.RLIMIT_CORE, struct.pack("QQ", 0, 0), None)
    breach("set a limit of", pid) if result == 0 else held("prlimit", name_of(code))
"""

_SLOW_DOWN = r"""
for pid in T["pids"]:
    for function, args in ((os.setpriority, (os.PRIO_PROCESS, pid, 15)), (os.sched_setaffinity, (pid, {0})),
                           (os.sched_setscheduler, (pid, os.SCHED_IDLE, os.sched_param(0)))):
        try:
            function(*args)
            breach(function.__name__)
        except OSError as error:
            held(function.__name__, name_of(error.errno))
    result, code = call("ioprio_set", 1, pid, 3 << 13)
    breach("ioprio_set") if result == 0 else held("ioprio_set", name_of(code))
    pidfd = call("pidfd_open", pid, 0)[0]
    held(name_of(call("process_madvise", pidfd, 0, 0, 20, 0)[1]))
"""

_ASK = r"""
head, size = ctypes.c_void_p(), ctypes.c_size_t()
for pid in T["pids"]:
    for name, args in (("get_robust_list", (pid, ctypes.byref(head), ctypes.byref(size))),
                       ("kcmp", (os.getpid(), pid, 1, 0, 0)), ("move_pages", (pid, 0, 0, 0, 0, 0))):
        result, code = call(name, *args)
        breach(name) if result >= 0 else held(name, name_of(code))
    for function in (os.getpgid, os.getsid, os.sched_getscheduler, os.sched_getaffinity):
        try:
            breach(function.__name__, function(pid))
        except OSError as error:
            held(function.__name__, name_of(error.errno))
"""

_DAEMON = r"""
def daemon():
    os.setsid()
    if os.fork():
        os._exit(0)
    label(T["name"])
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(256):
        if fd != null:
            try:
                os.dup2(null, fd)
            except OSError:
                pass
    time.sleep(20)
try:
    if os.fork() == 0:
        try:
            daemon()
        finally:
            os._exit(0)
    time.sleep(0.1)
    held("the call ends now")
except OSError as error:
    held("fork", name_of(error.errno))
"""

_CHILDREN = r"""
try:
    for number in range(4):
        if os.fork() == 0:
            for each in range(1, 65):
                try:
                    signal.signal(each, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            _libc.prctl(1, 0, 0, 0, 0)  # not with its parent either
            attempt(os.setsid)
            label(T["name"])
            os.close(1)
            os.close(2)
            time.sleep(20)
            os._exit(0)
    time.sleep(0.1)
    held("the call ends now")
except OSError as error:
    held("fork", name_of(error.errno))
os._exit(0)
"""


def _outliving(name: str, code: str) -> Attack:
    def function(arena: Arena, stage: Stage) -> Observation:
        label = stage.name()
        ran = arena.run(program(code, name=label), timeout_seconds=3)
        said = judge(ran, stage)
        # Everything of a call is gone a moment after it ended; a daemon stays.
        if not wait_until(lambda: not processes_named(label), _GONE_S if arena.walled else 0):
            left = end_processes_named(label)
            return Observation(breach=f"{len(left)} processes lived on")
        return Observation(breach=ran.outlived, met=said.met, trouble=said.trouble)

    return Attack(name=name, family=Family.PROCESSES, function=function)


_SETUID = r"""
# Whoever runs this as root tries it as somebody else: the question is whether one becomes another.
become(T["uid"])
for program in T["programs"]:
    try:
        status = os.waitpid(os.posix_spawn(program, ["program"], {}), 0)[1]
        code = os.waitstatus_to_exitcode(status)
        breach("became another user or group by", os.path.basename(program)) if code > 0 else held(code)
    except OSError as error:
        held("exec", name_of(error.errno))
for function, target in ((os.setuid, 0), (os.seteuid, 0), (os.setgid, 0), (os.setgroups, [0])):
    try:
        function(target)
    except OSError as error:
        held("set", name_of(error.errno))
    else:
        breach("became", target)
"""

# Two system calls and what differs in their answers, as the exit status.
_X86_64 = "b8{0:02x}0000000f0589c7b8{1:02x}0000000f0531c7b83c0000000f05"
_AARCH64 = "{0}010000d4e10300aa{1}010000d4000001caa80b80d2010000d4"


def tiny_program(machine: str, first: int, second: int) -> bytes:
    """An executable that needs nothing, and ends with 0 if both system calls return the same."""
    if machine == "aarch64":
        words = [(0xD2800008 | number << 5).to_bytes(4, "little").hex() for number in (first, second)]
        code = bytes.fromhex(_AARCH64.format(*words))
    else:
        code = bytes.fromhex(_X86_64.format(first, second))
    base, size = 0x400000, 120 + len(code)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    number = 183 if machine == "aarch64" else 62
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, number, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


def _setuid(arena: Arena, stage: Stage) -> Observation:
    def programs() -> list[str]:
        machine = os.uname().machine
        user, group = ((174, 175), (176, 177)) if machine == "aarch64" else ((102, 107), (104, 108))
        made = []
        for name, mode, calls in (("setuid", 0o4755, user), ("setgid", 0o2755, group)):
            path = stage.read_only / name
            path.write_bytes(tiny_program(machine, *calls))
            if os.geteuid() == 0:
                os.chown(path, 0, 0)
            path.chmod(mode)
            made.append(str(path))
        return made

    values = {"programs": stage.once("setuid", programs), "uid": 0 if arena.walled else NOBODY}
    return judge(arena.run(program(_SETUID, **values)), stage)


_RIGHTS = r"""
label(T["name"])
held("running")
time.sleep(T["seconds"])
"""


def _rights(arena: Arena, stage: Stage) -> Observation:
    """D-06, read on the host while the code runs."""
    label = stage.name()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(arena.run, program(_RIGHTS, name=label, seconds=0.5))
        if not wait_until(lambda: processes_named(label) or running.done(), 5) or running.done():
            return Observation(trouble=f"its process was not found: {running.result().result.error}")
        found = status_of(processes_named(label)[0])
        running.result()
    # Not CapBnd: an ordinary user cannot empty it, and without new rights (NoNewPrivs) it means nothing.
    sets = ("CapInh", "CapPrm", "CapEff", "CapAmb")
    wrong = [f"{name} {found[name]}" for name in sets if int(found[name], 16)]
    exact = ("NoNewPrivs", "1"), ("Seccomp", "2")
    wrong += [f"{name} {found[name]}" for name, right in exact if found[name] != right]
    wrong += [f"{name} {found[name]}" for name in ("Uid", "Gid") if "0" in found[name].split()]
    if os.geteuid() == 0 and set(found["Groups"].split()) & {str(group) for group in (0, *os.getgroups())}:
        wrong.append(f"Groups {found['Groups']}")
    return Observation(breach=", ".join(wrong), met=f"uid {found['Uid'].split()[0]} without rights")


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


_CORE = r"""
import resource
def crash():
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    attempt(resource.setrlimit, resource.RLIMIT_CORE, (hard, hard))
    _libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
    os.kill(os.getpid(), signal.SIGSEGV)
    signal.pause()
limit = resource.getrlimit(resource.RLIMIT_CORE)
try:
    pid = os.fork()
except OSError as error:
    # One process only: what decides is the limit. At 1 the kernel does not ask a program of the host either.
    held("the limit is", limit) if limit[1] <= 1 else breach("the limit is", limit)
else:
    if pid == 0:
        crash()
    status = os.waitpid(pid, 0)[1]
    breach("left a core dump") if os.WCOREDUMP(status) else held("no dump after signal", os.WTERMSIG(status))
"""

ATTACKS = (
    _on_victim("signal another process, in every way there is", _KILL, apart=True),
    _on_victim("kill another process", _KILL_HARD),
    Attack(name="signal everybody (kill -1)", family=Family.PROCESSES, function=_kill_any),
    _on_victim("signal the process that started it, or any other", _KILL_PARENT),
    _on_victim("signal another process by descriptor (pidfd)", _PIDFD),
    _on_victim("have the kernel signal another process (F_SETOWN)", _OWNER),
    _on_victim("set a limit of another process (prlimit)", _PRLIMIT),
    _on_victim("slow another process down", _SLOW_DOWN),
    _on_victim(
        "ask the kernel about another process",
        _ASK,
        not_promised={
            IsolationLevel.L2: "it shares the host's process numbers; that one is in use can be learned"
        },
    ),
    _outliving("leave a daemon behind", _DAEMON),
    _outliving("leave children behind that ignore every signal", _CHILDREN),
    Attack(
        name="become another user by a setuid program",
        family=Family.PROCESSES,
        function=_setuid,
        needs=(Need.ROOT,),
        settings=with_mounts,
    ),
    Attack(name="run with rights or as a user of the host", family=Family.PROCESSES, function=_rights),
    snippet("leave a core dump", Family.PROCESSES, _CORE),
)

"""Sessions: reading others, going on between calls, lying to what keeps them."""

from __future__ import annotations

import contextlib
from typing import Any

from sandbox.errors import SandboxDied, SandboxError
from sandbox.selfcheck.arenas import Arena, end_processes_named
from sandbox.selfcheck.lies import FORGE
from sandbox.selfcheck.model import Attack, Family, Observation
from sandbox.selfcheck.prelude import judge, program
from sandbox.selfcheck.stage import Stage, burns, processes_named, wait_until
from sandbox.types import EndedBy, IsolationLevel

_GONE_S = 1.0

_REMEMBER = "kept = T['name']\nimport builtins\nbuiltins.kept = kept\nopen(kept, 'w').close()\nheld('kept')"
_RECALL = """
import builtins
found = "kept" in globals() or hasattr(builtins, "kept") or os.path.exists(T["name"])
breach("found what it keeps") if found else held("found nothing")
"""


def _others(arena: Arena, stage: Stage) -> Observation:
    """Sessions of another name, and of another tenant under the same name."""
    name = stage.name()
    plant, look = program(_REMEMBER, name=name), program(_RECALL, name=name)
    if not arena.walled:
        return judge(arena.run(f"{plant}\n{look}"), stage)
    planted = judge(arena.run(plant, session=name), stage)
    own = judge(arena.run(look, session=name), stage)
    if not planted.met or not own.breach:
        return Observation(trouble=f"the session keeps nothing: {planted.trouble or own.met}")
    places = [(name, "other"), (f"{name}-other", ""), (None, "")]
    seen = [judge(arena.run(look, session=session, tenant=tenant), stage) for session, tenant in places]
    return next((each for each in seen if each.breach or not each.met), seen[0])


_GO_ON = r"""
def spin(*_, **__):
    while time.monotonic() < END:
        pass
    os._exit(0)
END = time.monotonic() + 10
label(T["name"])
held("the call ends now")
if T["how"] == "bare":
    # What nobody ends goes on: the same loop in a process that has left.
    if os.fork() == 0:
        os.setsid()
        os.closerange(0, 3)
        spin()
elif T["how"] == "hook":
    os.register_at_fork(after_in_child=spin)
elif T["how"] == "hook before":
    os.register_at_fork(before=spin)
elif T["how"] == "patch":
    for module in list(sys.modules.values()):
        for name in ("receive", "receive_fds", "run_call", "live", "read_exactly"):
            if getattr(module, "__name__", "").startswith("sandbox.") and hasattr(module, name):
                setattr(module, name, spin)
elif T["how"] == "thread":
    import threading
    threading.Thread(target=spin, daemon=True).start()
elif T["how"] == "process":
    try:
        if os.fork() == 0:
            os.setsid()
            spin()
    except OSError as error:
        held("fork", name_of(error.errno))
elif T["how"] == "timer":
    signal.signal(signal.SIGALRM, spin)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    os.register_at_fork(before=lambda: time.sleep(0.2))  # for it to ring before the process is stopped
"""


def _goes_on(how: str) -> Any:
    """Between the calls of a session nothing runs; a call may not hide there from its limits."""

    def function(arena: Arena, stage: Stage) -> Observation:
        name = stage.name()
        code = program(_GO_ON, name=name, how=how if arena.walled else "bare")
        said = judge(arena.run(code, session=name if arena.walled else None), stage)
        breach = burns(name, in_the_open=not arena.walled)
        return Observation(breach=breach, met=said.met, trouble=said.trouble)

    return function


_CONTROL = r"""
import json, socket
label(T["name"])
others = [1, 2, 3, os.getppid(), os.getpid() - 1, os.getpid() + 1, 0, -1, 10**9, 10**30]
messages = [{"done": True}, {"fork": True}, {"call": {}}, {"wall_s": 99999}, {"kill": True}, {}, [], None, 5,
            "x", {"status": 0, "why": None, "cpu_ns": -1, "peak_bytes": "x"}]
messages += [{"caller": pid} for pid in others]
packets = [json.dumps(message).encode() for message in messages] + [b"", b"\xff", b"[" * 60000, b"R", b"E"]
for fd in range(3, 64):
    try:
        sock = socket.socket(fileno=os.dup(fd))
        sock.setblocking(False)
    except OSError:
        continue
    for data in packets:
        try:
            sock.send(data)
        except OSError as error:
            held(name_of(error.errno))
send(frame(FORGED, b"forged"))
held("said everything there is to say")
while T["spin"]:
    pass
os._exit(3)
"""


def _control(arena: Arena, stage: Stage) -> Observation:
    """Whatever a session tells the process that keeps it: only that session suffers."""
    if not arena.walled:
        # A keeper that believes what it is told: the message itself is all it takes.
        text = arena.run(
            program(FORGE + _CONTROL.replace("range(3, 64)", "()"), spin=False, name="")
        ).result.stdout
        believed = '"success": true' in text
        return Observation(
            breach="a keeper without doubts believes that the call went well" if believed else ""
        )
    for spin in (False, True):
        name = stage.name()
        other = f"{name}-other"
        arena.run("kept = 41", session=other)
        code = program(FORGE + _CONTROL, spin=spin, name=name)
        with contextlib.suppress(SandboxDied):  # the session is lost, and whoever asked is told so
            ran = arena.run(code, session=name, timeout_seconds=0.5)
            if ran.outlived:
                return Observation(breach=ran.outlived)
        # It may say that it is done while it goes on; then it is stopped there, which comes to the same.
        if breach := burns(name):
            return Observation(breach=breach)
        again = arena.run("print(kept + 1)", session=other).result
        if again.stdout != "42\n":
            return Observation(breach=f"another session lost its state: {again.error or again.stderr[-100:]}")
        fresh = arena.run("print('alive')").result
        if fresh.stdout != "alive\n":
            return Observation(breach=f"the next call ended by {fresh.ended_by}: {fresh.error}")
        with contextlib.suppress(SandboxError):
            arena.run("pass", session=name)
    return Observation(met="other sessions and calls go on")


_SLICE = r"""
kept = globals().get("kept", [])
size = 0
try:
    while size < 3 * T["memory"] // 4:
        kept.append(b"x" * (1 << 20))
        size += 1 << 20
    held("holds", len(kept), "MiB")
except MemoryError:
    held("MemoryError")
if len(kept) << 20 > T["memory"]:
    breach("holds", len(kept), "MiB")
"""


def _adds_up(arena: Arena, stage: Stage) -> Observation:
    """A session that takes a little more memory with every call."""
    memory = arena.config.max_memory_mb << 20
    code = program(_SLICE, memory=memory)
    if not arena.walled:
        return judge(arena.run(f"{code}\n{_SLICE}\n{_SLICE}"), stage)
    name = stage.name()
    seen = []
    for _ in range(3):
        try:
            seen.append(judge(arena.run(code, session=name), stage, ends=(EndedBy.MEMORY,)))
        except SandboxError:
            if not seen:
                raise
            seen.append(Observation(met="the session was ended for it"))
    return next((each for each in seen if each.breach or not each.met), seen[-1])


_LEAVE = r"""
try:
    if os.fork() == 0:
        os.setsid()
        label(T["name"])
        for fd in range(64):
            try:
                os.close(fd)
            except OSError:
                pass
        time.sleep(20)
        os._exit(0)
    time.sleep(0.1)
    held("the call ends now")
except OSError as error:
    held("fork", name_of(error.errno))
"""


def _leaves(arena: Arena, stage: Stage) -> Observation:
    name = stage.name()
    ran = arena.run(program(_LEAVE, name=name), session=stage.name() if arena.walled else None)
    if not wait_until(lambda: not processes_named(name), _GONE_S if arena.walled else 0):
        return Observation(breach=f"{len(end_processes_named(name))} processes lived on")
    return judge(ran, stage)


_ONE_PROCESS = {
    IsolationLevel.L2: "a session is one process there; what a call leaves in it goes on with the session"
}


def _session(name: str, function: Any, family: Family = Family.CALLS, **more: Any) -> Attack:
    return Attack(name=name, family=family, function=function, **more)


ATTACKS = (
    _session("read a session of another name or tenant", _others),
    _session("leave a daemon behind in a session", _leaves, Family.PROCESSES),
    _session(
        "go on between the calls of a session (thread)",
        _goes_on("thread"),
        Family.TIME,
        not_promised=_ONE_PROCESS,
    ),
    _session("go on between the calls of a session (process)", _goes_on("process"), Family.TIME),
    _session("go on between the calls of a session (timer)", _goes_on("timer"), Family.TIME),
    _session("go on between the calls of a session (fork hook)", _goes_on("hook"), Family.TIME),
    _session(
        "go on between the calls of a session (hook before a fork)", _goes_on("hook before"), Family.TIME
    ),
    _session("go on between the calls of a session (patched runner)", _goes_on("patch"), Family.TIME),
    _session("use more memory with every call of a session", _adds_up, Family.LIMITS),
    _session("lie to the process that keeps a session", _control, Family.LIES),
)

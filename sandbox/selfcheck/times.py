"""Running on after the time limit. In the open, a supervisor asks politely and waits; that is not enough."""

from __future__ import annotations

import signal

from sandbox.selfcheck.arenas import Arena, end_processes_named
from sandbox.selfcheck.model import Attack, Family, Observation
from sandbox.selfcheck.prelude import judge, program
from sandbox.selfcheck.stage import Stage, processes_named, wait_until
from sandbox.types import EndedBy

LIMIT_S = 0.4
_GONE_S = 1.0
# The end of every attack if nobody ends it: a control that is killed late must not stay for ever.
_BOUND_S = 20


def _spinning(
    name: str, code: str, *, polite: int = signal.SIGTERM, ends: tuple[EndedBy, ...] = (EndedBy.TIME,)
) -> Attack:
    """`ends`: what may be said to have ended it. Inside, nothing else is true."""

    def function(arena: Arena, stage: Stage) -> Observation:
        label = stage.name()
        source = (
            f"label(T['name'])\nprint('first word', flush=True)\nEND = time.monotonic() + {_BOUND_S}\n{code}"
        )
        ran = arena.run(program(source, name=label), timeout_seconds=LIMIT_S, polite=polite)
        gone = wait_until(lambda: not processes_named(label), _GONE_S if arena.walled else 0)
        left = [] if gone else end_processes_named(label)
        said = judge(ran, stage, ends=ends)
        breach = ran.outlived or (f"{len(left)} processes lived on" if left else "")
        if arena.walled and not breach:
            if ran.result.ended_by not in ends:
                return Observation(trouble=f"ended by {ran.result.ended_by}: {ran.result.stderr[-200:]}")
            if not ran.result.stdout.startswith("first word"):
                breach = "what was written before is lost"
        return Observation(breach=breach, met=said.met, trouble=said.trouble)

    return Attack(name=name, family=Family.TIME, function=function)


_IGNORE_ALL = r"""
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
# also those that cannot be ignored, as far as they can be blocked
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while time.monotonic() < END:
    pass
"""

_CATCH_ALL = r"""
while time.monotonic() < END:
    try:
        while time.monotonic() < END:
            pass
    except BaseException:
        pass
"""

_IN_C = r"""
import itertools
sum(itertools.repeat(1, 10**9))
sum(itertools.repeat(1, 10**10))
"""

_SLEEP = r"""
def sleep_on(*_):
    pass
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP):
    signal.signal(number, sleep_on)
while time.monotonic() < END:
    time.sleep(1)
"""

_STOP = r"""
os.kill(os.getpid(), signal.SIGSTOP)
signal.signal(signal.SIGTSTP, signal.SIG_DFL)
# The first process of a namespace cannot stop itself; its children can.
try:
    pid = os.fork()
except OSError:
    pid = 0
if pid == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(END - time.monotonic())
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while os.waitpid(pid, 0)[0] != pid:
    pass
"""

_AT_EXIT = r"""
import atexit
def again():
    try:
        while time.monotonic() < END:
            time.sleep(0.01)
    except BaseException:
        again()
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
atexit.register(again)
atexit.register(again)
"""

_FINALIZER = r"""
class Late:
    def __del__(self, time=time, end=END):
        while time.monotonic() < end:
            pass
signal.signal(signal.SIGTERM, signal.SIG_IGN)
late = Late()
held("the code ends now")
"""

_THREAD = r"""
import threading
def spin():
    while time.monotonic() < END:
        pass
signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Thread(target=spin).start()
"""

_TIMER = r"""
# A signal that comes so often that nothing else runs.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)
while time.monotonic() < END:
    pass
"""

_CLOSED = r"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.closerange(0, 256)
while time.monotonic() < END:
    time.sleep(0.1)
"""

_KEEPS_PIPE = r"""
# The call is over when its first process is, whoever holds its output open.
try:
    pid = os.fork()
except OSError as error:
    held("fork", name_of(error.errno))
    pid = 1
if pid == 0:
    try:
        os.setsid()
    except OSError:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while time.monotonic() < END:
        time.sleep(0.1)
held("the first process ends now")
os._exit(0)
"""

_PROCESSES = r"""
# A process hands over to the next, so that each is new when somebody looks for it.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
held("where it is the first process it stays, elsewhere it goes at once")
while time.monotonic() < END:
    try:
        if os.fork():
            os.wait() if os.getpid() == 1 else os._exit(0)
    except OSError:
        time.sleep(0.001)
    label(T["name"])
"""

_STOPPED_FAMILY = r"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(5):
    try:
        if os.fork() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
    except OSError:
        break
while time.monotonic() < END:
    time.sleep(0.05)
"""

ATTACKS = (
    _spinning("spin with every signal ignored", _IGNORE_ALL),
    _spinning("catch whatever is raised", _CATCH_ALL, polite=signal.SIGINT),
    _spinning("compute in C, where no signal is looked at", _IN_C, polite=signal.SIGINT),
    _spinning("sleep on after every signal", _SLEEP),
    _spinning("stop itself (SIGSTOP)", _STOP),
    _spinning("stop its children", _STOPPED_FAMILY),
    _spinning("go on in a function for the end (atexit)", _AT_EXIT),
    _spinning("go on in a finalizer", _FINALIZER, ends=(EndedBy.TIME, EndedBy.EXIT)),
    _spinning("go on in a thread", _THREAD),
    _spinning("drown itself in timer signals", _TIMER),
    _spinning("close every descriptor and stay", _CLOSED),
    _spinning("hand over to a new process all the time", _PROCESSES, ends=(EndedBy.TIME, EndedBy.EXIT)),
    _spinning("end while a child keeps the output open", _KEEPS_PIPE, ends=(EndedBy.EXIT,)),
)

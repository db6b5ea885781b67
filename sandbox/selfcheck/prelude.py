"""What the code of an attack begins with: system calls by number, and one line that says how it went."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sandbox.selfcheck.model import Attack, Family, Need, Observation, Settings
from sandbox.types import EndedBy, IsolationLevel, Mount, SandboxConfig

if TYPE_CHECKING:
    from sandbox.selfcheck.arenas import Arena, Ran
    from sandbox.selfcheck.stage import Stage

# x86_64, aarch64; a list of our own, so that a wrong number in the filter is not wrong here too.
# -1: that machine does not have the call.
NUMBERS: dict[str, tuple[int, int]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_robust_list": (274, 100),
    "getpid": (39, 172),
    "init_module": (175, 105),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "listmount": (458, 458),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, -1),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "mq_timedreceive": (243, 183),
    "mq_timedsend": (242, 182),
    "msgget": (68, 186),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setattr": (314, 274),
    "sched_setscheduler": (144, 119),
    "semget": (64, 190),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}

PRELUDE = r"""
import ctypes, errno, os, re, signal, sys, time
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30

def breach(*evidence):
    print("BREACH", *evidence, flush=True)

def held(*met):
    print("held", *met, flush=True)

def name_of(code):
    return errno.errorcode.get(code, str(code))

def call(name, *args):
    "-> (result, errno); an integer goes as a long."
    ctypes.set_errno(0)
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = _libc.syscall(ctypes.c_long(NR[name]), *words)
    return result, ctypes.get_errno() if result == -1 else 0

def reach(name, *args, what=""):
    "Whether the kernel acts on the call: success, or an error that comes after the question of rights."
    result, code = call(name, *args)
    text = f"{name}{what and ' ' + what}: {name_of(code) if result == -1 else result}"
    (held if result == -1 and code in REFUSED else breach)(text)
    return result

def attempt(function, *args):
    "-> its result, or None after noting what it met."
    try:
        return function(*args)
    except Exception as error:
        met = name_of(error.errno) if getattr(error, "errno", None) else type(error).__name__
        held(getattr(function, "__name__", "it"), met)

def leak(data, where=""):
    "Print what looks like a secret of the stage."
    if isinstance(data, str):
        data = data.encode(errors="replace")
    for found in re.findall(rb"SELFCHECK-[0-9a-f]{32}", data or b""):
        print("found", found.decode(), where, flush=True)

def read(path, size=1 << 20):
    with open(path, "rb", buffering=0) as file:
        return file.read(size)

def in_child(function, *args):
    "Run it in a child, so that what it does to its process is gone with it; here, where forking is refused."
    try:
        pid = os.fork()
    except OSError:
        return attempt(function, *args)
    if pid == 0:
        try:
            attempt(function, *args)
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        held("signal", os.WTERMSIG(status))

def namespaces(flags):
    "New namespaces for this process: of its own user namespace, or as root without one. -> whether it did."
    uid, gid = os.getuid(), os.getgid()
    for extra in (NEWUSER, 0):
        result, code = call("unshare", flags | extra)
        if result == 0:
            if extra:
                try:
                    maps = ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")
                    for name, text in maps:
                        with open(f"/proc/self/{name}", "w") as file:
                            file.write(text)
                except OSError as error:
                    held("map", name_of(error.errno))
            return True
        held("unshare", name_of(code))
    if not T["walled"]:
        raise OSError(code, "what follows must not happen to the host's own")
    return False

def label(name):
    "Name this process, so that it can be told apart from outside."
    _libc.prctl(15, name.encode(), 0, 0, 0)

def become(uid):
    "Another user for the rest; 0 for nobody else."
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

def pids():
    "Every process that can be seen or guessed, without this one; of a control, only those made for it."
    if not T["walled"]:
        return list(T["pids"])
    known = {int(name) for name in attempt(os.listdir, "/proc") or () if name.isdigit()}
    every = dict.fromkeys([*T.get("pids", ()), os.getppid(), *sorted(known)])
    return [pid for pid in every if pid > 0 and pid != os.getpid()]

def places():
    "Folders of the host that code would like to write to."
    library = os.path.dirname(os.__file__)
    return ["/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/", "/etc", "/usr", "/usr/lib",
            "/usr/local", "/var", "/var/lib", "/opt", "/srv", "/home", "/root", "/mnt", "/dev",
            "/dev/mqueue", "/sys/fs/cgroup", "/proc", sys.prefix, library, library + "/site-packages",
            os.path.expanduser("~"), os.getcwd()]
"""


def with_mounts(stage: Stage, config: SandboxConfig) -> dict[str, Any]:
    """A folder of the host to read, and one to write."""
    return {"mounts": (Mount(source=str(stage.read_only)), Mount(source=str(stage.shared), writable=True))}


def program(code: str, **values: Any) -> str:
    """`code` with the prelude before it and `values` as the dictionary `T`."""
    column = 1 if platform.machine() == "aarch64" else 0
    numbers = {name: pair[column] for name, pair in NUMBERS.items() if pair[column] >= 0}
    return f"NR = {numbers!r}\nT = {values!r}\n{PRELUDE}\n{code}"


def judge(ran: Ran, stage: Stage, *, ends: tuple[EndedBy, ...] = ()) -> Observation:
    """Read what the code of an attack printed.

    Args:
        ran: What came of it.
        stage: Whose secret counts as evidence wherever it appears.
        ends: Being ended by one of these means that a limit stopped it.
    """
    result = ran.result
    lines = result.stdout.splitlines()
    everything = [result.stdout, result.stderr, result.value or "", result.error or ""]
    everything += [artifact.data.decode(errors="replace") for artifact in result.artifacts]
    if stage.secret in "\n".join(everything):
        line = next((line for line in lines if stage.secret in line), "").partition(stage.secret)[2].strip()
        return Observation(breach=f"read the secret {line}".strip())
    for line in lines:
        if line.startswith("BREACH"):
            return Observation(breach=line.removeprefix("BREACH").strip() or "it worked")
    met = ", ".join(dict.fromkeys(line[5:].strip() for line in lines if line.startswith("held ")))
    if result.ended_by in ends:
        met = f"ended by {result.ended_by}" + (f" after {met}" if met else "")
    if not met and result.return_code == -31:
        met = "killed for the system call"
    errors = result.stderr.strip().splitlines()
    trouble = f"ended by {result.ended_by}, {errors[-1] if errors else 'without a word'}"
    return Observation(met=met[:300], trouble="" if met else trouble)


def snippet(
    name: str,
    family: Family,
    code: str,
    *,
    values: Callable[[Stage, Arena], dict[str, Any]] | None = None,
    ends: tuple[EndedBy, ...] = (),
    needs: tuple[Need, ...] = (),
    not_promised: Mapping[IsolationLevel, str] | None = None,
    not_promised_by: Mapping[str, str] | None = None,
    settings: Settings | None = None,
    timeout_seconds: float | None = None,
) -> Attack:
    """An attack that is one piece of code, judged by what it prints."""

    def function(arena: Arena, stage: Stage) -> Observation:
        given = {"walled": arena.walled, **(values(stage, arena) if values else {})}
        ran = arena.run(program(code, **given), timeout_seconds=timeout_seconds)
        return judge(ran, stage, ends=ends)

    return Attack(
        name=name,
        family=family,
        function=function,
        needs=needs,
        not_promised=not_promised or {},
        not_promised_by=not_promised_by or {},
        settings=settings,
    )

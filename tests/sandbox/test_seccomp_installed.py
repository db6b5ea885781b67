"""The filter, installed in real processes: attacks work without it and fail with it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.linux import seccomp

# Each asks for something that does no harm if it is granted. Any errno but EPERM and ENOSYS means that the
# call reached the kernel's own code.
ATTACKS = """
import ctypes, errno, fcntl, json, mmap, os, sys
from sandbox.linux import libc, seccomp, syscalls

number_of = syscalls.numbers(libc.MACHINE)
memory = ctypes.create_string_buffer(4096)
path = os.fsencode(sys.executable)


def asked(number, *arguments):
    try:
        libc.syscall("", number, *arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


def in_a_child(name, *arguments):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, asked(number_of[name], *arguments).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    return answer.removeprefix("done") or "done"  # two of them answer after clone


def by_32_bits():
    "getpid() of i386, by the software interrupt that a 64-bit process can use as well"
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000 cd80 c3"))
    start = ctypes.addressof(ctypes.c_char.from_buffer(code))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(start)()
    return "done" if result == os.getpid() else errno.errorcode[-result]


if sys.argv[1] == "filtered":
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(seccomp.build(fork=True, network=False, metadata=False, own_sessions=True))
new_user, traceme = libc.CLONE_NEWUSER, 0
answers = {
    "ptrace": in_a_child("ptrace", traceme),
    "unshare": in_a_child("unshare", new_user),
    "clone": in_a_child("clone", new_user | 17, 0, 0, 0, 0),
    "bpf": asked(number_of["bpf"], 0, memory, 0),
    "perf_event_open": asked(number_of["perf_event_open"], memory, 0, -1, -1, 0),
    "userfaultfd": asked(number_of["userfaultfd"], 1),
    "keyctl": asked(number_of["keyctl"], 0, -3, 0),
    "add_key": asked(number_of["add_key"], b"user", b"mcp", b"x", 1, -2),
    "request_key": asked(number_of["request_key"], b"user", b"no such key", None, 0),
    "io_uring_setup": asked(number_of["io_uring_setup"], 1, memory),
    "mount": asked(number_of["mount"], None, b"/no/such", b"tmpfs", 0, None),
    "umount2": asked(number_of["umount2"], b"/no/such", 0),
    "pivot_root": asked(number_of["pivot_root"], b"/no/such", b"/no/such"),
    "chroot": asked(number_of["chroot"], b"/no/such"),
    "setns": asked(number_of["setns"], -1, 0),
    "open_tree": asked(number_of["open_tree"], -100, b"/no/such", 0),
    "fsopen": asked(number_of["fsopen"], b"no such", 0),
    "name_to_handle_at": asked(number_of["name_to_handle_at"], -100, path, memory, memory, 0),
    "open_by_handle_at": asked(number_of["open_by_handle_at"], -1, memory, 0),
    "kexec_load": asked(number_of["kexec_load"], 0, 0, None, 0xFFFF0000),
    "init_module": asked(number_of["init_module"], None, 0, b""),
    "personality": in_a_child("personality", 0x40000),
    "process_vm_readv": asked(number_of["process_vm_readv"], os.getpid(), None, 0, None, 0, 0),
    "kcmp": asked(number_of["kcmp"], os.getpid(), os.getpid(), 0, 0, 0),
    "pidfd_getfd": asked(number_of["pidfd_getfd"], -1, 0, 0),
    "memfd_create": asked(number_of["memfd_create"], b"x", 0),
    "memfd_secret": asked(number_of["memfd_secret"], 0x40000000),
    "shmget": asked(number_of["shmget"], 0, 4096, 0),
    "semget": asked(number_of["semget"], 0, 0, 0),
    "msgget": asked(number_of["msgget"], 12345, 0),
    "mq_open": asked(number_of["mq_open"], b"no such", 0),
    "vmsplice": asked(number_of["vmsplice"], -1, None, 0, 0),
    "inotify_init1": asked(number_of["inotify_init1"], 0),
    "fanotify_init": asked(number_of["fanotify_init"], 0x200, 0),
    "sched_setscheduler": asked(number_of["sched_setscheduler"], 0, 3, bytes(4)),
    "ioprio_set": asked(number_of["ioprio_set"], 1, 0, 3 << 13),
    "setxattr": asked(number_of["setxattr"], b"/no/such", b"user.x", b"", 0, 0),
    "fchmod": asked(number_of["fchmod"], -1, 0o600),
    "utimensat": asked(number_of["utimensat"], -100, b"/no/such", None, 0),
    "fchownat": asked(number_of["fchownat"], -100, b"/no/such", -1, -1, 0),
    "landlock_create_ruleset": asked(number_of["landlock_create_ruleset"], None, 0, 0),
    "clone3": asked(number_of["clone3"], memory, 4),
    "TIOCSTI": asked(number_of["ioctl"], os.open("/dev/null", os.O_RDWR), 0x5412, b"x"),
    "F_SETOWN": asked(number_of["fcntl"], 0, 8, os.getpid()),
    "PR_SET_PDEATHSIG": asked(number_of["prctl"], 1, 0, 0, 0, 0),
    "PR_SET_DUMPABLE": asked(number_of["prctl"], 4, 1, 0, 0, 0),
    **{f"socket of family {family}": asked(number_of["socket"], family, 2, 0) for family in (1, 2, 10, 16)},
    "pair of datagram sockets": asked(number_of["socketpair"], 1, 2, 0, memory),
}
if libc.MACHINE == "x86_64":
    answers["getpid by x32"] = asked(0x40000000 | 39)
    # A kernel without these calls ends the process.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, by_32_bits().encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        answers["getpid by 32 bits"] = stream.read() or "ENOSYS"
    os.waitpid(pid, 0)
print(json.dumps(answers))
"""

# What a host may refuse to ordinary users, or a kernel may lack; everything else must work unfiltered, or the
# attack proves nothing.
OFTEN_REFUSED = {
    *("unshare", "clone", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup"),
    *("keyctl", "add_key", "request_key", "mount", "umount2", "pivot_root", "chroot", "open_tree", "fsopen"),
    *("open_by_handle_at", "kexec_load", "init_module", "fanotify_init", "memfd_secret", "process_vm_readv"),
    *("kcmp", "setns", "name_to_handle_at", "personality", "landlock_create_ruleset", "clone3", "ptrace"),
    *("getpid by x32", "getpid by 32 bits", "mq_open"),
}


def answers(code: str, *arguments: str) -> dict[str, str]:
    """What `code` says, run by a fresh interpreter."""
    command = [sys.executable, "-I", "-c", code, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=30)
    said: dict[str, str] = json.loads(done.stdout)
    return said


def test_dangerous_calls_work_without_the_filter_and_not_with_it() -> None:
    free, filtered = answers(ATTACKS, "free"), answers(ATTACKS, "filtered")
    refusals = {"EPERM", "ENOSYS"}
    assert {name: answer for name, answer in filtered.items() if answer not in refusals} == {}
    assert {name for name, answer in free.items() if answer in refusals} <= OFTEN_REFUSED


CONFINED = """
import errno, json, os, socket, subprocess, sys, threading
from sandbox.linux import libc, seccomp

folder, settings = sys.argv[1:]
path = os.path.join(folder, "file")
open(path, "w").close()
listener = socket.create_server(("127.0.0.1", 0))
priority = os.getpriority(os.PRIO_PROCESS, os.getppid())
if settings:
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    options = dict.fromkeys(("fork", "network", "metadata", "own_sessions"), False)
    options["signal_only_pid"] = os.getpid()
    seccomp.install(seccomp.build(**(options | json.loads(settings))))


def tried(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


def in_a_child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(code, "in a child")


def in_a_thread():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


print(json.dumps({
    "thread": tried(in_a_thread),
    "fork": tried(lambda: in_a_child(os.getpid)),
    "vfork and exec": tried(lambda: subprocess.run([sys.executable, "-S", "-c", ""], check=True)),
    "exec": tried(lambda: os.execv("/no/such", ["such"])),
    "leave the session": tried(lambda: in_a_child(os.setsid)),
    "slow oneself down": tried(lambda: os.nice(1)),
    "slow others down": tried(lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), priority)),
    "chmod": tried(lambda: os.chmod(path, 0o600)),
    "utime": tried(lambda: os.utime(path)),
    "chown": tried(lambda: os.chown(path, -1, -1)),
    "signal oneself": tried(lambda: os.kill(os.getpid(), 0)),
    "signal one's thread": tried(lambda: __import__("signal").pthread_kill(threading.get_ident(), 0)),
    "signal the parent": tried(lambda: os.kill(os.getppid(), 0)),
    "signal by descriptor": tried(lambda: os.pidfd_open(os.getppid())),
    "tcp": tried(lambda: socket.create_connection(listener.getsockname(), 5).close()),
    "udp": tried(lambda: socket.socket(type=socket.SOCK_DGRAM).close()),
    "unix": tried(lambda: socket.socket(socket.AF_UNIX).close()),
    "netlink": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
    "pair": tried(lambda: [end.close() for end in socket.socketpair()]),
}))
"""
FREE = {
    **dict.fromkeys(("thread", "fork", "vfork and exec", "leave the session"), "done"),
    **dict.fromkeys(("chmod", "utime", "chown", "slow oneself down", "slow others down"), "done"),
    **dict.fromkeys(
        ("signal oneself", "signal one's thread", "signal the parent", "signal by descriptor"), "done"
    ),
    **dict.fromkeys(("tcp", "udp", "unix", "netlink", "pair"), "done"),
    "exec": "ENOENT",
}
MOST = {"fork": True, "network": True, "metadata": True, "own_sessions": True, "signal_only_pid": None}
CLOSED_TO_ALL = {"chown": "EPERM", "unix": "EPERM", "netlink": "EPERM"}
LEAST = CLOSED_TO_ALL | dict.fromkeys(
    (
        *("fork", "vfork and exec", "exec", "chmod", "utime", "tcp", "udp"),
        *("signal the parent", "signal by descriptor", "leave the session", "slow others down"),
    ),
    "EPERM",
)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", FREE),
        ("{}", FREE | LEAST),
        (json.dumps(MOST), FREE | CLOSED_TO_ALL),
        (
            json.dumps(MOST | {"own_sessions": False}),
            FREE | CLOSED_TO_ALL | dict.fromkeys(("leave the session", "slow others down"), "EPERM"),
        ),
    ],
    ids=["without", "least", "most", "most but sessions"],
)
def test_settings_hold_in_a_real_process(tmp_path: Path, settings: str, expected: dict[str, str]) -> None:
    assert answers(CONFINED, str(tmp_path), settings) == expected


ORDINARY = """
import asyncio, concurrent.futures, ctypes, decimal, json, multiprocessing, os, pathlib, random, shutil
import signal, socket, sqlite3, ssl, subprocess, sys, tempfile, time, zipfile
from sandbox.linux import libc, seccomp

os.chdir(sys.argv[1])
libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
seccomp.install(seccomp.build(fork=True, network=False, metadata=True, own_sessions=True))
said = {}


async def main():
    process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "print(6*7)", stdout=-1)
    output, _ = await process.communicate()
    said["asyncio"] = output.decode().strip() + await asyncio.to_thread(lambda: "!")


asyncio.run(main())
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    said["threads"] = sum(pool.map(abs, range(-4, 0)))
said["subprocess"] = subprocess.run([sys.executable, "-S", "-c", "1/0"], stderr=-1).returncode
receiver, sender = multiprocessing.Pipe(duplex=False)
worker = multiprocessing.get_context("fork").Process(target=sender.send, args=("hello",))
worker.start()
said["multiprocessing"] = receiver.recv()
worker.join()
for name in ("a.db", "b.db"):
    with sqlite3.connect(name) as database:
        database.execute("pragma journal_mode=wal")
        database.execute("create table t as select 7 as n")
        said["sqlite"] = database.execute("select n from t").fetchone()[0]
    database.close()
said["ssl"] = len(ssl.RAND_bytes(8)) and ssl.create_default_context().verify_mode.name
with tempfile.TemporaryDirectory(dir=".") as folder, zipfile.ZipFile("x.zip", "w") as archive:
    archive.write(shutil.copy2("a.db", folder))
    said["files"] = sorted(os.listdir(folder))
os.mkfifo("fifo")
said["ctypes"] = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: n + 1)(2)
signal.signal(signal.SIGALRM, lambda *_: said.__setitem__("alarm", True))
signal.setitimer(signal.ITIMER_REAL, 0.001)
while "alarm" not in said:
    time.sleep(0.01)
said["terminal"] = os.isatty(0)
print(json.dumps(said))
"""


def test_ordinary_code_does_not_notice_the_filter(tmp_path: Path) -> None:
    assert answers(ORDINARY, str(tmp_path)) == {
        "asyncio": "42!",
        "threads": 10,
        "subprocess": 1,
        "multiprocessing": "hello",
        "sqlite": 7,
        "ssl": "CERT_REQUIRED",
        "files": ["a.db"],
        "ctypes": 3,
        "alarm": True,
        "terminal": False,
    }


def test_a_program_that_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(OSError, match="seccomp") as caught:
        seccomp.install(b"")
    assert caught.value.errno == errno.EINVAL

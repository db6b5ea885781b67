"""The filter, run by an interpreter of its instructions: what it decides for both machines."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import pytest

from sandbox.linux import seccomp, syscalls

MACHINES = ("x86_64", "aarch64")
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ARCH_OF_32_BITS = {"x86_64": 0x40000003, "aarch64": 0x40000028}
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
PID = 4321

# Never, whatever the arguments and settings. A call that is new in the table fails
# `test_every_known_call_is_decided` until it is listed here or allowed.
_CLOSED = """
ptrace process_vm_readv process_vm_writev kcmp process_madvise process_mrelease pidfd_getfd get_robust_list
bpf perf_event_open userfaultfd uprobe uretprobe seccomp syslog lookup_dcookie add_key request_key keyctl
io_uring_setup io_uring_enter io_uring_register io_setup io_destroy io_submit io_cancel io_getevents
io_pgetevents mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount
fspick mount_setattr statmount listmount listns unshare setns name_to_handle_at open_by_handle_at quotactl
quotactl_fd kexec_load kexec_file_load init_module finit_module delete_module create_module get_kernel_syms
query_module reboot swapon swapoff acct sync syncfs vhangup sethostname setdomainname sysfs _sysctl ustat
uselib nfsservctl settimeofday adjtimex clock_settime clock_adjtime iopl ioperm modify_ldt set_thread_area
get_thread_area setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset chown
fchown lchown fchownat setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr
removexattrat file_getattr file_setattr memfd_create memfd_secret shmget shmat shmctl shmdt semget semop
semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
mq_getsetattr fanotify_init fanotify_mark inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
vmsplice move_pages migrate_pages mbind set_mempolicy set_mempolicy_home_node remap_file_pages cachestat
map_shadow_stack pkey_mprotect pkey_alloc pkey_free sched_setscheduler sched_setparam sched_setattr
ioprio_set ioprio_get landlock_create_ruleset landlock_add_rule landlock_restrict_self lsm_get_self_attr
lsm_set_self_attr lsm_list_modules getpmsg putpmsg afs_syscall tuxcall security vserver epoll_ctl_old
epoll_wait_old clone3 openat2
"""
CLOSED = _CLOSED.split()

EXECUTION = ["execve", "execveat", "fork", "vfork"]
NETWORK = ["socket", "connect", "bind", "listen", "accept", "accept4"]
METADATA = ["chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes", "futimesat", "utimensat"]
METADATA += ["truncate", "getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr"]
ABSENT = ["clone3", "openat2"]
SESSIONS = ["setsid", "setpgid"]
OTHERS = ["pidfd_open", "pidfd_send_signal"]
_BY_ARGUMENTS = """
clone socketpair setsockopt ioctl fcntl prctl arch_prctl personality prlimit64 mknod mknodat kill tkill
tgkill rt_sigqueueinfo rt_tgsigqueueinfo sched_setaffinity setpriority
"""
BY_ARGUMENTS = _BY_ARGUMENTS.split()


class Filter:
    """A program, run as the kernel would run it."""

    def __init__(self, machine: str, **settings: object) -> None:
        self.machine = machine
        options = {"fork": True, "network": False, "metadata": True, "own_sessions": True} | settings
        packed = seccomp.build(machine=machine, **options)  # type: ignore[arg-type]
        self.program = list(struct.iter_unpack("<HBBI", packed))
        self.numbers = syscalls.numbers(machine)

    def call(self, name: str, *arguments: int) -> int:
        return self.run(self.numbers[name], *arguments)

    def run(self, number: int, *arguments: int, arch: int | None = None) -> int:
        words = [argument % 2**64 for argument in (*arguments, *[0] * 6)[:6]]
        data = struct.pack("<IIQ6Q", number, ARCH[self.machine] if arch is None else arch, 0xDEAD, *words)
        accumulator, at, steps = 0, 0, 0
        while True:
            code, if_true, if_false, constant = self.program[at]
            at, steps = at + 1, steps + 1
            match code:
                case 0x20:
                    (accumulator,) = struct.unpack_from("<I", data, constant)
                case 0x54:
                    accumulator &= constant
                case 0x05:
                    at += constant
                case 0x15:
                    at += if_true if accumulator == constant else if_false
                case 0x35:
                    at += if_true if accumulator >= constant else if_false
                case 0x06:
                    self.steps = steps
                    return int(constant)
                case _:
                    raise AssertionError(f"instruction {code:#x}")


def filters(machine: str) -> Iterator[tuple[Mapping[str, object], Filter]]:
    both = (True, False)
    for fork, network, metadata, own_sessions, pid in product(both, both, both, both, (None, PID)):
        settings: dict[str, object] = {"fork": fork, "network": network, "metadata": metadata}
        settings |= {"own_sessions": own_sessions, "signal_only_pid": pid}
        yield settings, Filter(machine, **settings)


HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_table_is_the_one_of_the_kernels_headers(machine: str) -> None:
    header = next((path for path in map(Path, HEADERS[machine]) if path.exists()), None)
    if header is None:
        pytest.skip(f"needs the kernel's headers for {machine}")
    text = header.read_text()
    theirs = {name: int(number) for name, number in re.findall(r"define __NR(?:3264)?_(\w+) (\d+)\n", text)}
    if machine == "aarch64":
        theirs = {
            {"fstatat": "newfstatat"}.get(name, name): number
            for name, number in theirs.items()
            # Numbers of 32-bit machines, and the second name that 84 has on some.
            if not 403 <= number <= 423 and name not in {"arch_specific_syscall", "sync_file_range2"}
        }
    theirs.pop("syscalls", None)
    newest = max(theirs.values())
    # The headers may be older than our table, and they do not name calls that are not in them yet.
    ours = {name: number for name, number in syscalls.numbers(machine).items() if number <= newest}
    assert ours.items() >= theirs.items()
    assert set(ours) - set(theirs) <= {"uprobe", "uretprobe"}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_satisfies_the_kernels_checker(machine: str) -> None:
    for _, each in filters(machine):
        last = len(each.program) - 1
        assert last < 4096
        assert each.program[last][0] == 0x06
        for at, (code, if_true, if_false, constant) in enumerate(each.program):
            match code:
                case 0x20:
                    assert constant < 64 and constant % 4 == 0
                case 0x05:
                    assert at + 1 + constant <= last
                case 0x15 | 0x35:
                    assert at + 1 + max(if_true, if_false) <= last
                case _:
                    assert code in {0x06, 0x54}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_known_call_is_decided(machine: str) -> None:
    each = Filter(machine, network=True)
    allowed = {name for name in each.numbers if each.call(name) == ALLOW}
    assert allowed | {*CLOSED, *NETWORK, *BY_ARGUMENTS} >= set(each.numbers)
    assert not allowed & set(CLOSED)


def test_no_list_names_a_call_that_does_not_exist() -> None:
    known = {name for machine in MACHINES for name in syscalls.numbers(machine)}
    words = " ".join(
        value for name, value in vars(seccomp).items() if name.isupper() and isinstance(value, str)
    )
    listed = [name for name in words.split() if name not in MACHINES]
    assert set(listed) <= known
    assert len(listed) == len(set(listed))
    assert {*CLOSED, *EXECUTION, *NETWORK, *METADATA, *SESSIONS, *OTHERS, *BY_ARGUMENTS} <= known


@pytest.mark.parametrize("machine", MACHINES)
def test_closed_calls_are_closed_with_all_settings_and_arguments(machine: str) -> None:
    arguments = [(0,) * 6, (1,) * 6, (2**64 - 1,) * 6, (PID,) * 6, (0x1000,) * 6, (0x10000,) * 6]
    for _, each in filters(machine):
        for name, values in product(CLOSED, arguments):
            if name in each.numbers:
                assert each.call(name, *values) == (ENOSYS if name in ABSENT else EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_unknown_numbers_do_not_exist(machine: str) -> None:
    each = Filter(machine)
    known = set(each.numbers.values()) - {each.numbers[name] for name in ABSENT}
    for number in (*range(1200), 2**29, 2**30 - 1):
        assert (each.run(number) == ENOSYS) == (number not in known)


@pytest.mark.parametrize("number", [2**30, 2**30 + 39, 2**31, 2**32 - 1])
def test_the_x32_numbers_are_denied(number: int) -> None:
    assert Filter("x86_64").run(number) == EPERM
    assert Filter("aarch64").run(number) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_the_32_bit_calls_of_the_machine_are_denied(machine: str) -> None:
    each = Filter(machine, network=True)
    for arch in (ARCH_OF_32_BITS[machine], ARCH[{"x86_64": "aarch64", "aarch64": "x86_64"}[machine]], 0):
        assert {each.run(number, arch=arch) for number in range(512)} == {EPERM}


@pytest.mark.parametrize("machine", MACHINES)
def test_settings_open_what_they_name_and_nothing_else(machine: str) -> None:
    for settings, each in filters(machine):
        alone = settings["signal_only_pid"] is None
        for names, is_open in (
            (EXECUTION, settings["fork"]),
            (NETWORK[1:], settings["network"]),
            (METADATA, settings["metadata"]),
            (SESSIONS, settings["fork"] and settings["own_sessions"]),
            (OTHERS, alone),
        ):
            for name in names:
                if name in each.numbers:
                    assert (name, each.call(name)) == (name, ALLOW if is_open else EPERM)


THREAD, VFORK, SIGCHLD = 0x3D0F00, 0x4100, 17  # the flags that glibc passes
HIGH = 0xABC << 32  # the kernel cuts it off, and so must the filter
SOL_SOCKET, OTHER_LEVELS = 1, (0, 6, 17, 41)
PROGRAMS = (26, 50, 51, 52)  # socket options that carry one
OTHER_PIDS = (-1, 1, -PID, PID + 1, PID - 1)
INTERNET = [(family, kind) for family in (2, 10) for kind in (1, 2)]
FAMILIES = range(64)

# settings, call, what it may be called with, what not
Arguments = Sequence[tuple[int, ...]]
ARGUMENTS: Sequence[tuple[Mapping[str, object], str, Arguments, Arguments]] = [
    (
        {},
        "clone",
        [(THREAD,), (SIGCHLD,), (VFORK | SIGCHLD,)],
        [(base | 1 << bit,) for base in (THREAD, SIGCHLD) for bit in (7, 15, 17, 25, 26, 27, 28, 29, 30)],
    ),
    (
        {"fork": False},
        "clone",
        [(THREAD,)],
        [(SIGCHLD,), (VFORK | SIGCHLD,), (0,), (THREAD | 0x10000000,)],
    ),
    ({}, "socket", [], [(family, kind, 0) for family in FAMILIES for kind in (1, 2, 3, 5)]),
    (
        {"network": True},
        "socket",
        [(*each, 0) for each in INTERNET] + [(2, 1 | 0o2000000, 6), (10, 2 | 0o4000, 17), (HIGH | 2, 1, 0)],
        [(family, kind, 0) for family in FAMILIES for kind in range(11) if (family, kind) not in INTERNET]
        + [(2, kind, protocol) for kind in (1, 2) for protocol in (1, 2, 33, 58, 132, 136, 255, 262)],
    ),
    (
        {"network": True},
        "socketpair",
        [(1, kind | flags) for kind in (1, 5) for flags in (0, 0o2000000, 0o4000)],
        [(1, 2), (1, 3), (1, 2 | 0o4000), *((family, 1) for family in FAMILIES if family != 1)],
    ),
    (
        {},
        "setsockopt",
        [(3, SOL_SOCKET, option) for option in (2, 9, 20)],
        [(3, SOL_SOCKET, option) for option in (*PROGRAMS, 7, 8, 32, 33)]  # also sizes of buffers
        + [(3, level, 1) for level in OTHER_LEVELS],
    ),
    (
        {"network": True},
        "setsockopt",
        [(3, SOL_SOCKET, 9), *((3, level, option) for level in OTHER_LEVELS for option in (1, *PROGRAMS))],
        [(3, level, option) for level in (SOL_SOCKET, HIGH | SOL_SOCKET) for option in PROGRAMS],
    ),
    (
        {"network": True},
        "ioctl",
        [
            (0, high | request)
            for request in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
            for high in (0, HIGH)
        ],
        # TIOCSTI and TIOCLINUX first, also with bits that the kernel cuts off
        [
            (0, high | request)
            for high in (0, HIGH)
            for request in (0x5412, 0x541C, 0x5423, 0x540E, 0x8910, 0)
        ],
    ),
    (
        {},
        "fcntl",
        [(0, command) for command in (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1033, 1034)],
        [(0, high | command) for high in (0, HIGH) for command in (8, 10, 15, 1024, 1026, 1031)],
    ),
    (
        {},
        "prctl",
        [(option,) for option in (3, 15, 16, 21, 23, 38, 39, 0x53564D41)],
        [(option,) for option in (1, 4, 8, 22, 24, 28, 35, 36, 47, 0x59616D61)],
    ),
    (
        {},
        "personality",
        [(0xFFFFFFFF,), (-1,)],
        [(0,), (8,), (0x40000,), (0x400000,), (0xFFFFFFFF << 32,)],
    ),
    *(
        ({}, name, [(*before, mode) for mode in (0, 0o600, 0o1777)], [(*before, 0o4755), (*before, 0o2755)])
        for name, before in {
            **dict.fromkeys(("chmod", "fchmod", "creat", "mkdir"), (0x7000,)),
            **dict.fromkeys(("fchmodat", "fchmodat2", "open", "mkdirat"), (3, 0x7000)),
            "openat": (3, 0x7000, 0o101),
        }.items()
    ),
    ({}, "prlimit64", [(0, 7), (0, 7, 0x7000)], [(pid, 7) for pid in (1, PID, -1)]),
    (
        {},
        "mknodat",
        [(-100, 0x7000, 0o010600)],
        [(-100, 0x7000, kind | 0o600) for kind in (0, 0o20000, 0o60000, 0o140000, 0o100000)],
    ),
    *(({}, name, [(pid,) for pid in (0, PID, *OTHER_PIDS)], []) for name in ("kill", "tkill", "tgkill")),
    *(({}, name, [(2, 77)], []) for name in ("setpriority", "sched_setaffinity")),
    ({"signal_only_pid": PID}, "kill", [(PID,), (0,), (HIGH | PID,)], [(pid,) for pid in OTHER_PIDS]),
    *(
        ({"signal_only_pid": PID}, name, [(PID, PID)], [(pid, PID) for pid in (0, *OTHER_PIDS)])
        for name in ("tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
    ),
    (
        {"protected_pids": (1, PID)},
        "kill",
        [(0,), (PID + 1,), (-PID - 1,), (-2,)],
        [(pid,) for pid in (1, PID, -1, -PID, HIGH | PID)],
    ),
    *(
        ({"protected_pids": (1, PID)}, name, [(PID + 1, PID)], [(1, 1), (PID, PID), (HIGH | PID, PID)])
        for name in ("tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
    ),
    ({"protected_pids": (PID,)}, "pidfd_send_signal", [], [(3, 9)]),
    ({"protected_pids": (PID,)}, "pidfd_open", [(PID,)], []),
    ({"protected_pids": (PID,)}, "setsid", [()], []),
    ({"protected_pids": (PID,)}, "sched_setaffinity", [(0,)], [(PID,)]),
    ({"protected_pids": (PID,)}, "setpriority", [(0, 0)], [(0, PID), (1, PID), (2, 1000)]),
    ({"own_sessions": False}, "sched_setaffinity", [(0,)], [(pid,) for pid in (PID, *OTHER_PIDS)]),
    ({"own_sessions": False}, "setpriority", [(0, 0)], [(0, PID), (0, 1), (0, -1), (1, 0), (2, 0)]),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("settings", "name", "allowed", "denied"), ARGUMENTS, ids=[f"{row[1]}-{row[0]}" for row in ARGUMENTS]
)
def test_arguments_decide(
    machine: str,
    settings: Mapping[str, object],
    name: str,
    allowed: Arguments,
    denied: Arguments,
) -> None:
    each = Filter(machine, **settings)
    if name not in each.numbers:
        assert machine == "aarch64", "only there old calls without a descriptor never were"
        return
    assert [arguments for arguments in allowed if each.call(name, *arguments) != ALLOW] == []
    assert [arguments for arguments in denied if each.call(name, *arguments) != EPERM] == []


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("pid", [1, 2, 255, 65535, 2**22])
def test_the_pid_can_be_filled_in_later(machine: str, pid: int) -> None:
    def built(pid: int) -> bytes:
        return seccomp.build(
            machine=machine, fork=False, network=True, metadata=True, own_sessions=False, signal_only_pid=pid
        )

    assert seccomp.for_pid(built(seccomp.PID_TO_COME), pid) == built(pid)


def test_any_call_is_decided_in_few_steps() -> None:
    each = Filter("x86_64")
    for number in each.numbers.values():
        each.run(number)
        assert each.steps < 40

"""Our own allow-list of system calls, compiled to a seccomp filter.

What is not allowed gets EPERM, and a call that is newer than our table ENOSYS, so that libraries use an
older one. The program looks the number up in a balanced tree and then, for a few calls, at arguments; what a
pointer points to is beyond a filter. Calls that are allowed whatever their arguments cost next to nothing at
run time: Linux 5.11 and later keeps them in a bitmap.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from sandbox.linux import libc, syscalls

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Iterable

# Nothing here reaches further than what the process already has, whatever its arguments.
_ALLOWED = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3
pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime
splice tee sendfile copy_file_range readahead fadvise64 flock fsync fdatasync sync_file_range

access faccessat faccessat2 stat fstat lstat newfstatat statx statfs fstatfs
getdents getdents64 getcwd chdir fchdir readlink readlinkat umask ftruncate fallocate
rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat

brk mmap munmap mremap mprotect madvise msync mincore mlock mlock2 mlockall munlock munlockall mseal
get_mempolicy futex futex_wait futex_wake futex_waitv futex_requeue set_robust_list set_tid_address rseq
rseq_slice_yield membarrier sched_yield sched_getaffinity sched_getscheduler sched_getparam sched_getattr
sched_get_priority_max sched_get_priority_min sched_rr_get_interval getcpu

getpid getppid gettid getpgid getpgrp getsid getuid geteuid getgid getegid getresuid getresgid getgroups
capget getpriority getrlimit setrlimit getrusage times sysinfo uname getrandom
exit exit_group wait4 waitid pause
rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigsuspend rt_sigreturn sigaltstack
restart_syscall alarm getitimer setitimer timer_create timer_settime timer_gettime timer_getoverrun
timer_delete time gettimeofday clock_gettime clock_getres nanosleep clock_nanosleep

sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown getsockname getpeername getsockopt
"""
_WITH_FORK = "fork vfork execve execveat"
_WITH_NETWORK = "connect bind listen accept accept4"
_WITH_METADATA = (
    "utime utimes futimesat utimensat getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr "
    "flistxattr listxattrat truncate"  # by path: Landlock covers it from Linux 6.2 on only
)
# Calls that set permissions, and which argument they are: never set-user-id or set-group-id, which would stay
# in a folder of the host.
_MODES = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}
_CREATE_MODES = {"open": 2, "openat": 3, "creat": 1, "mkdir": 1, "mkdirat": 2}
_SET_IDS = 0o6000
_WITH_OWN_SESSIONS = "sched_setaffinity setpriority"
_WITH_OWN_SESSIONS_AND_FORK = "setsid setpgid"
_WITH_OTHERS = "pidfd_open"
_WITH_ANY_OTHERS = "pidfd_send_signal"  # it does not say whom, and takes a folder of /proc as well
_SIGNALS = "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo"

# ENOSYS although we know it: its flags are in memory, beyond a filter, and libc falls back to clone.
_ABSENT = "clone3 openat2"

_CLONE_NEWTIME, _CLONE_PARENT, _CLONE_THREAD = 0x80, 0x8000, 0x10000
# No namespaces, and no children that the kernel gives to our parent, which knows nothing of them.
_CLONE_DENIED = (
    (libc.CLONE_NEWNS | libc.CLONE_NEWCGROUP | libc.CLONE_NEWUTS | libc.CLONE_NEWIPC | libc.CLONE_NEWUSER)
    | (libc.CLONE_NEWPID | libc.CLONE_NEWNET | _CLONE_NEWTIME | _CLONE_PARENT)
)  # fmt: skip
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET, _SOCK_TYPE_MASK = 1, 2, 5, 0xF
_ANY_PROTOCOL, _IPPROTO_TCP, _IPPROTO_UDP = 0, 6, 17
_SOL_SOCKET = 1
_SO_ATTACH = (26, 50, 51, 52)  # FILTER, BPF, REUSEPORT_CBPF, REUSEPORT_EBPF: programs for the kernel to run
_SO_BUFFERS = (7, 8, 32, 33)  # SNDBUF, RCVBUF and both by force: memory that no limit of a process counts
_S_IFMT, _S_IFIFO = 0xF000, 0x1000
_PRIO_PROCESS = 0
_PERSONALITY_QUERY = 0xFFFFFFFF
_IOCTLS = (
    0x5401,  # TCGETS, which isatty() is
    0x802C542A,  # TCGETS2, the same since glibc 2.42
    0x5413,  # TIOCGWINSZ
    0x541B,  # FIONREAD
    0x5421,  # FIONBIO
    0x5450,  # FIONCLEX
    0x5451,  # FIOCLEX
    0x40049409,  # FICLONE, which pathlib tries first when it copies
)
_FCNTLS_DENIED = (
    8,  # F_SETOWN, which lets the kernel signal others in our name
    10,  # F_SETSIG
    15,  # F_SETOWN_EX
    1024,  # F_SETLEASE
    1026,  # F_NOTIFY
    1031,  # F_SETPIPE_SZ, memory that no limit of the process counts
)
_PRCTLS = (
    2,  # PR_GET_PDEATHSIG
    3,  # PR_GET_DUMPABLE
    15,  # PR_SET_NAME
    16,  # PR_GET_NAME
    21,  # PR_GET_SECCOMP
    23,  # PR_CAPBSET_READ
    29,  # PR_SET_TIMERSLACK
    30,  # PR_GET_TIMERSLACK
    38,  # PR_SET_NO_NEW_PRIVS
    39,  # PR_GET_NO_NEW_PRIVS
    51,  # PR_SVE_GET_VL
    56,  # PR_GET_TAGGED_ADDR_CTRL
    0x53564D41,  # PR_SET_VMA, names of anonymous memory
)
_ARCH_PRCTLS = (
    0x1001,  # ARCH_SET_GS
    0x1002,  # ARCH_SET_FS
    0x1003,  # ARCH_GET_FS
    0x1004,  # ARCH_GET_GS
    0x1011,  # ARCH_GET_CPUID
    0x1021,  # ARCH_GET_XCOMP_SUPP
    0x1022,  # ARCH_GET_XCOMP_PERM
    0x1023,  # ARCH_REQ_XCOMP_PERM, matrix registers of numeric libraries
)

PID_TO_COME = 0x7FFFFFFE
"""For `build`, when the process is not there yet: above the largest pid there can be, 2**22."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SECCOMP_SET_MODE_FILTER = 1

_RET_ALLOW = 0x7FFF0000
_RET_ERRNO = 0x00050000
_DENY = _RET_ERRNO | errno.EPERM
_UNKNOWN = _RET_ERRNO | errno.ENOSYS

# struct seccomp_data { int nr; u32 arch; u64 instruction_pointer; u64 args[6]; }, little endian
_NR, _ARCH, _ARGS = 0, 4, 16
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_RET|K
_JUMP, _IF_EQUAL, _IF_AT_LEAST = 0x05, 0x15, 0x35  # BPF_JMP|JA, BPF_JMP|JEQ|K, BPF_JMP|JGE|K
_FARTHEST = 255

_Instruction = tuple[int, int, int, int]  # code, distance if true, distance if false, constant
# A condition on an argument: its index, a mask, values, and whether the masked low word must be one of them.
# Only low words are compared: the kernel takes all arguments that are checked here as 32 bits.
_Test = tuple[int, int, tuple[int, ...], bool]
_Rule = tuple[tuple[_Test, ...], ...]  # the call is allowed if all tests of any one of these pass
_ALL_BITS = 0xFFFFFFFF


def build(
    *,
    machine: str = libc.MACHINE,
    fork: bool,
    network: bool,
    metadata: bool,
    own_sessions: bool,
    signal_only_pid: int | None = None,
    protected_pids: tuple[int, ...] = (),
) -> bytes:
    """The filter as packed `struct sock_filter`s.

    Args:
        machine: `x86_64` or `aarch64`.
        fork: Whether it may start processes and execute programs. Threads it may always start.
        network: Whether it may open TCP and UDP sockets over IPv4 and IPv6. Others it never may, except pairs
            of connected Unix sockets.
        metadata: Whether it may change permissions and times of files. Owners and attributes it never may.
        own_sessions: Whether it may leave its session and process group, and change the priority and
            processors of others. False where it shares its pid namespace with strangers.
        signal_only_pid: The only process it may signal, where nothing else keeps its signals from strangers.
            With `PID_TO_COME`, `for_pid` fills in the pid later, which is a hundred times faster than
            building again.
        protected_pids: Processes of the same user and pid namespace that it may not signal, neither alone nor
            with their groups, nor schedule: all threads of each, and each leads the group that it is in.
    """
    number_of = syscalls.numbers(machine)
    alone = signal_only_pid is None and not protected_pids
    allowed = _ALLOWED.split()
    allowed += _WITH_FORK.split() if fork else ()
    allowed += _WITH_NETWORK.split() if network else ()
    allowed += _WITH_METADATA.split() if metadata else ()
    allowed += _WITH_OWN_SESSIONS.split() if own_sessions and not protected_pids else ()
    allowed += _WITH_OWN_SESSIONS_AND_FORK.split() if own_sessions and fork else ()
    allowed += _WITH_OTHERS.split() if signal_only_pid is None else ()
    allowed += (*_WITH_ANY_OTHERS.split(), *_SIGNALS.split()) if alone else ()

    rules = _rules(
        fork=fork,
        network=network,
        metadata=metadata,
        own_sessions=own_sessions and not protected_pids,
        signal_only_pid=signal_only_pid,
        protected_pids=protected_pids,
    )
    leaves = dict.fromkeys(number_of.values(), _leaf(_DENY))
    for names, leaf in (
        (allowed, _leaf(_RET_ALLOW)),
        (_ABSENT.split(), _leaf(_UNKNOWN)),
        *(((name,), _checked(rule)) for name, rule in rules),
    ):
        leaves.update((number_of[name], leaf) for name in names if name in number_of)

    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _DENY),
        (_LOAD, 0, 0, _NR),
    ]
    if machine == "x86_64":
        program += [(_IF_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _DENY)]
    program += _search(_ranges(leaves))
    pack = struct.Struct("<HBBI").pack
    return b"".join(pack(*instruction) for instruction in program)


def for_pid(program: bytes, pid: int) -> bytes:
    """The filter that `build` would make for `pid`, from one built with `PID_TO_COME`."""
    return program.replace(PID_TO_COME.to_bytes(4, "little"), pid.to_bytes(4, "little"))


def install(program: bytes) -> None:
    """Put the filter on this thread for good. `no_new_privs` must be set, or the thread be privileged.

    Raises:
        OSError: The kernel took no filter. Nothing is filtered.
    """
    filters = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(filters))
    libc.syscall("seccomp", _SECCOMP[libc.MACHINE], _SECCOMP_SET_MODE_FILTER, 0, fprog)


def _rules(
    *,
    fork: bool,
    network: bool,
    metadata: bool,
    own_sessions: bool,
    signal_only_pid: int | None,
    protected_pids: tuple[int, ...],
) -> Iterable[tuple[str, _Rule]]:
    """Calls whose arguments decide."""
    flags = _no_bit(0, _CLONE_DENIED)
    if fork:
        yield "clone", ((flags,),)
    else:
        yield "clone", ((flags, _one_of(0, (_CLONE_THREAD,), mask=_CLONE_THREAD)),)
    # No options that carry a program for the kernel. At other levels their numbers mean harmless things.
    options: _Rule = ((_one_of(1, (_SOL_SOCKET,)), _none_of(2, (*_SO_ATTACH, *_SO_BUFFERS))),)
    if network:
        family = _one_of(0, (_AF_INET, _AF_INET6))
        kind = _one_of(1, (_SOCK_STREAM, _SOCK_DGRAM), mask=_SOCK_TYPE_MASK)
        protocol = _one_of(2, (_ANY_PROTOCOL, _IPPROTO_TCP, _IPPROTO_UDP))
        yield "socket", ((family, kind, protocol),)
        options += ((_none_of(1, (_SOL_SOCKET,)),),)
    yield "setsockopt", options
    # No datagrams: such a socket can send to any other by name, connected or not.
    kind = _one_of(1, (_SOCK_STREAM, _SOCK_SEQPACKET), mask=_SOCK_TYPE_MASK)
    yield "socketpair", ((_one_of(0, (_AF_UNIX,)), kind),)
    for name, argument in (_MODES | _CREATE_MODES if metadata else _CREATE_MODES).items():
        yield name, ((_no_bit(argument, _SET_IDS),),)
    yield "ioctl", ((_one_of(1, _IOCTLS),),)
    yield "fcntl", ((_none_of(1, _FCNTLS_DENIED),),)
    yield "prctl", ((_one_of(0, _PRCTLS),),)
    yield "arch_prctl", ((_one_of(0, _ARCH_PRCTLS),),)
    yield "personality", ((_one_of(0, (_PERSONALITY_QUERY,)),),)
    yield "prlimit64", ((_one_of(0, (0,)),),)
    yield "mknod", ((_one_of(1, (_S_IFIFO,), mask=_S_IFMT),),)
    yield "mknodat", ((_one_of(2, (_S_IFIFO,), mask=_S_IFMT),),)
    if signal_only_pid is not None:
        own_group = (0,)
        for name in _SIGNALS.split():
            own = own_group if name == "kill" else ()
            yield name, ((_one_of(0, (*own, signal_only_pid)),),)
    elif protected_pids:
        everybody = 0xFFFFFFFF  # -1
        groups = tuple(2**32 - pid for pid in protected_pids)
        for name in _SIGNALS.split():
            many = (everybody, *groups) if name == "kill" else ()
            yield name, ((_none_of(0, (*protected_pids, *many)),),)
    if not own_sessions:
        this_thread = 0
        yield "sched_setaffinity", ((_one_of(0, (this_thread,)),),)
        yield "setpriority", ((_one_of(0, (_PRIO_PROCESS,)), _one_of(1, (this_thread,))),)


def _one_of(argument: int, values: tuple[int, ...], *, mask: int = _ALL_BITS) -> _Test:
    return argument, mask, values, True


def _none_of(argument: int, values: tuple[int, ...]) -> _Test:
    return argument, _ALL_BITS, values, False


def _no_bit(argument: int, mask: int) -> _Test:
    return argument, mask, (0,), True


def _leaf(action: int) -> tuple[_Instruction, ...]:
    return ((_RETURN, 0, 0, action),)


def _checked(alternatives: _Rule) -> tuple[_Instruction, ...]:
    """Instructions that allow the call if every test of one alternative passes."""
    code: list[_Instruction] = []
    for tests in alternatives:
        block: list[_Instruction | None] = []
        for argument, mask, values, wanted in tests:
            block.append((_LOAD, 0, 0, _ARGS + 8 * argument))
            if mask != _ALL_BITS:
                block.append((_AND, 0, 0, mask))
            # A match jumps behind the other comparisons: to the exit, or over it to the next test.
            last = len(values) - 1
            for index, value in enumerate(values):
                on_match = last - index + (1 if wanted else 0)
                otherwise = 0 if wanted or index < last else 1
                block.append((_IF_EQUAL, on_match, otherwise, value))
            block.append(None)
        block.append((_RETURN, 0, 0, _RET_ALLOW))
        for index, instruction in enumerate(block):
            code.append(instruction or (_JUMP, 0, 0, len(block) - 1 - index))
    code.append((_RETURN, 0, 0, _DENY))
    return tuple(code)


def _ranges(
    leaves: dict[int, tuple[_Instruction, ...]],
) -> list[tuple[int, tuple[_Instruction, ...]]]:
    """The first number of each run of numbers with one leaf; the runs cover all numbers."""
    unknown = _leaf(_UNKNOWN)
    runs: list[tuple[int, tuple[_Instruction, ...]]] = []
    for number in range(max(leaves) + 2):
        leaf = leaves.get(number, unknown)
        if not runs or runs[-1][1] != leaf:
            runs.append((number, leaf))
    return runs


def _search(runs: list[tuple[int, tuple[_Instruction, ...]]]) -> list[_Instruction]:
    """A balanced tree of comparisons of the loaded number, with the leaves in place."""
    if len(runs) == 1:
        return list(runs[0][1])
    middle = len(runs) // 2
    low, high = _search(runs[:middle]), _search(runs[middle:])
    if len(low) <= _FARTHEST:
        fork: list[_Instruction] = [(_IF_AT_LEAST, len(low), 0, runs[middle][0])]
    else:
        fork = [(_IF_AT_LEAST, 0, 1, runs[middle][0]), (_JUMP, 0, 0, len(low))]
    return fork + low + high

"""The vocabulary of the sandbox: what is asked for, what came of it, and how strong the walls were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from typing import Any


class IsolationLevel(IntEnum):
    """How strong the walls around a call are; ordered, so that levels can be compared."""

    NONE = 0
    L2 = 2  # Landlock, seccomp and rlimits; one process, no namespaces
    L3 = 3  # bubblewrap as the outer wall, Landlock and seccomp for each call inside it
    L4 = 4  # own user, mount, pid, ipc, uts and cgroup namespaces for each call, Landlock, seccomp, rlimits
    L4_PLUS = 5  # L4, and a cgroup that holds the memory and processes of the whole call

    def __str__(self) -> str:
        return {0: "none", 5: "L4+"}.get(self.value, f"L{self.value}")

    @classmethod
    def parse(cls, text: str) -> IsolationLevel:
        """Read `"L4+"`, `"L4"`, `"L3"` or `"L2"`, in any case.

        Raises:
            ValueError: It is none of these.
        """
        for level in cls:
            if level is not cls.NONE and str(level).casefold() == text.strip().casefold():
                return level
        raise ValueError(f"{text!r} is no isolation level; there are L2, L3, L4 and L4+")


class EndedBy(StrEnum):
    """What ended a call."""

    EXIT = "exit"  # it ran to its end, or left by itself (`sys.exit`, `os._exit`)
    EXCEPTION = "exception"  # an exception that nothing caught
    CRASH = "crash"  # a signal that we did not send, such as a segmentation fault
    TIME = "time"
    CPU = "cpu"
    MEMORY = "memory"
    OUTPUT = "output"
    PROCESSES = "processes"
    DISK = "disk"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A folder of the host that the code sees.

    Args:
        source: An existing folder on the host. Opened once, when the sandbox starts; swapping it for a link
            afterwards changes nothing.
        target: Where the code sees it: an absolute path outside the sandbox's own folders, or `""` for the
            same path as `source`.
        writable: Whether the code can change it. Everything it writes stays on the host.
    """

    source: str
    target: str = ""
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file that the code left in `/tmp/out`, or a picture of an open figure.

    Args:
        name: Relative to `/tmp/out`, with `/` between folders; never absolute, no `..`, and no drive or
            device of Windows. It may hold any other character: escape it before you show it.
        media_type: By its name, `application/octet-stream` when that says nothing.
        data: The whole file.
    """

    name: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """What every call of a sandbox may use; `SandboxResult.not_enforced` names what a host cannot limit.

    Args:
        timeout_seconds: Wall time of one call, more than 0. A call can ask for less, never for more.
        max_memory_mb: Memory of all processes of a call together, in MiB, without what the interpreter
            shares.
        max_output_bytes: Kept per stream. More is dropped and counted; a flood (16 times this, at least
            16 MiB) ends the call.
        allow_network: True gives the code the host's network, with everything that listens on it.
        working_dir: A folder of the host that is mounted writable as the working folder `/work`; `None`: a
            private, empty folder in `/tmp` that goes with the call or the session.
        max_cpu_seconds: CPU time of all processes of a call together; `None`: only `timeout_seconds` counts.
        max_processes: Processes and threads of a call at once.
        max_open_files: Per process.
        max_disk_mb: Bytes in `/tmp` (which includes `/dev/shm`), in MiB; it is memory, and counts as such
            too where the level is L4+.
        max_files: Files and folders in `/tmp`.
        environment: The variables that the code sees, beside `HOME`, `PATH`, `LANG`, `TMPDIR` and settings of
            numeric libraries. Nothing is inherited.
        mounts: Folders of the host, besides `working_dir`.
        packages: A virtual environment, or a `site-packages` folder, whose packages the code can import,
            read-only. `None`: the standard library only. Of a virtual environment, its interpreter is used
            too.
        preload: Modules imported once, before any code: calls get them for nothing. They run outside of the
            lock-down of a call (inside the sandbox's namespaces), so name only what you trust.
        pool_size: Children kept warm for each tenant.
        max_concurrent_calls: Calls of one tenant that run at once; more wait for their turn.
        queue_seconds: How long a call waits for its turn or for the sandbox to start.
        max_sessions: Sessions of all tenants together; at the limit the longest idle one goes.
        session_idle_seconds: A session that was not used for this long goes.
        max_artifacts: Files that come back from one call.
        max_artifact_bytes: All of them together.
        max_tenants: Tenants with warm children at once; at the limit the longest idle one's are ended.
        recycle_calls: Calls after which the process that the children are forked from is replaced.
        recycle_seconds: Age after which it is replaced.
        minimum_level: Below this, nothing runs.
        maximum_level: Stop at this level even where the host allows more; for tests and comparisons.
    """

    timeout_seconds: float = 30.0
    max_memory_mb: int = 256
    max_output_bytes: int = 100_000
    allow_network: bool = False
    working_dir: str | None = None
    max_cpu_seconds: float | None = None
    max_processes: int = 32
    max_open_files: int = 256
    max_disk_mb: int = 64
    max_files: int = 4096
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    packages: str | None = None
    preload: tuple[str, ...] = ()
    pool_size: int = 4
    max_concurrent_calls: int = 8
    queue_seconds: float = 60.0
    max_sessions: int = 16
    session_idle_seconds: float = 1800.0
    max_artifacts: int = 16
    max_artifact_bytes: int = 8 * 1024**2
    max_tenants: int = 8
    recycle_calls: int = 2000
    recycle_seconds: float = 3600.0
    minimum_level: IsolationLevel = IsolationLevel.L2
    maximum_level: IsolationLevel = IsolationLevel.L4_PLUS

    def __post_init__(self) -> None:
        from sandbox.validate import check

        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult(Mapping[str, Any]):
    """What came of a call. Also a mapping: `result["stdout"]`.

    That a limit ended it, its times and its memory are measured from outside. `stdout`, `stderr`, `value`,
    `exception`, `artifacts` and that it came through are what the code says; so is a limit that it met
    without being ended for it (an uncaught `MemoryError`, no space left, no more processes).

    Args:
        success: It ran to its end: `ended_by` is `EXIT` and `return_code` 0.
        stdout, stderr: What was written, up to the limit, also when the call was ended by us. Decoded as
            UTF-8.
        return_code: The exit status; -1 when we ended it, minus the signal when another signal did.
        ended_by: What ended it.
        error: One sentence for a reader when `success` is false, `None` otherwise.
        value: `repr` of the last expression, as a notebook shows it, up to 10,000 characters; `None` if
            there is none.
        exception: Type of the exception that nothing caught, such as `"ValueError"`.
        artifacts: What the code left in `/tmp/out`, and its open figures.
        artifacts_left_out: Names that were over a limit or were no ordinary files, each with the reason.
        duration_ms: From the moment the code was handed over.
        cpu_ms: CPU time of all its processes, user and system.
        peak_memory_bytes: The most memory at one time, of its largest process; of the whole call at L4+
            where it did not just succeed.
        stdout_dropped_bytes, stderr_dropped_bytes: What was over the limit.
        stdout_replaced, stderr_replaced: There were bytes that are no UTF-8; they are U+FFFD in the text.
        isolation: The level that this call really ran at.
        backend: Which kind of sandbox ran it: `"linux"` or `"docker"`.
        runtime: What the container ran under, such as `"runc"` or `"runsc"`; `None` where there is none.
        not_enforced: Limits of the configuration that this level could not enforce, by their field names.
        session: Its name, `None` for a call without one.
        session_lost: The session ended with this call: its variables and files are gone.
        session_started: This call found no session of that name and began a new one.
    """

    success: bool
    stdout: str
    stderr: str
    return_code: int
    ended_by: EndedBy
    error: str | None = None
    value: str | None = None
    exception: str | None = None
    artifacts: tuple[Artifact, ...] = ()
    artifacts_left_out: tuple[str, ...] = ()
    duration_ms: float = 0.0
    cpu_ms: float = 0.0
    peak_memory_bytes: int = 0
    stdout_dropped_bytes: int = 0
    stderr_dropped_bytes: int = 0
    stdout_replaced: bool = False
    stderr_replaced: bool = False
    isolation: IsolationLevel = IsolationLevel.NONE
    backend: str = "linux"
    runtime: str | None = None
    not_enforced: tuple[str, ...] = ()
    session: str | None = None
    session_lost: bool = False
    session_started: bool = False

    def __getitem__(self, key: str) -> Any:
        if key in _RESULT_FIELDS:
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(_RESULT_FIELDS)

    def __len__(self) -> int:
        return len(_RESULT_FIELDS)


_RESULT_FIELDS = tuple(each.name for each in fields(SandboxResult))

"""How a call ended: pure functions from what was measured and what the code said, the same for every backend.

Statuses and signals are those of Linux, where the code runs; the server may run on another system, whose
`os` and `signal` know others.
"""

from __future__ import annotations

import functools
import json
import mimetypes
import re
from dataclasses import dataclass
from typing import Any

from sandbox.types import Artifact, EndedBy, SandboxConfig, SandboxResult

Message = dict[str, Any]

ENDED_BY_US = -1
_LENGTH_BYTES = 4  # before the header of a report, little-endian
_HEADER_BYTES = 256 * 1024  # of a report: its texts are bounded far below this, besides
_HEADER_BYTES_PER_ARTIFACT = 16 * 1024  # two names of 512 characters, each 12 bytes as JSON escapes it
_FLOOD_FACTOR, _FLOOD_BYTES = 16, 16 * 1024**2
_SIGKILL, _SIGXCPU = 9, 24
_SIGNALS = (  # from 1
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN "
    "TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)
_MAX_NAME_CHARS = 512
_DRIVE = re.compile(r"[A-Za-z]:")  # of Windows: what follows is not below the folder that it is joined to
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[1-9¹²³]|lpt[1-9¹²³])\s*(\.|:|$)", re.IGNORECASE)
_ENCODED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_MAX_TEXT_CHARS = 600
_MAX_VALUE_CHARS = 10_100  # what the runner shortens it to, and what it says of that
_MAX_EXCEPTION_CHARS = 200
_MORE_LEFT_OUT = 16  # names of files that were left out, beside as many as may come back


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the processes of a call ended, as it was measured from outside of them.

    Args:
        status: What `wait(2)` says on Linux; `None` when the call was over by its report, before the process
            ended.
        why: The limit for which it was ended.
    """

    status: int | None
    cpu_ns: int
    peak_bytes: int
    why: str | None
    ooms: int
    refused_forks: int

    @property
    def signal(self) -> int | None:
        """The signal that ended the process, if one did."""
        return self.status & 0x7F or None if self.status is not None else None

    @property
    def exit_code(self) -> int | None:
        """What the process exited with, if it did."""
        return None if self.status is None or self.status & 0x7F else self.status >> 8 & 0xFF


class Kept:
    """What came of one stream, up to a limit."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._data = bytearray()
        self.dropped_bytes = 0

    @property
    def total_bytes(self) -> int:
        """All that came, kept or not."""
        return len(self._data) + self.dropped_bytes

    def add(self, data: bytes | memoryview) -> None:
        room = self._limit - len(self._data)
        self._data += data[:room]
        self.dropped_bytes += len(data) - min(len(data), room)

    def text(self) -> tuple[str, bool]:
        """What was kept, and whether bytes that are no UTF-8 had to be replaced."""
        if self.dropped_bytes:
            torn = _torn_end(self._data)
            self.dropped_bytes += torn
            del self._data[len(self._data) - torn :]
        try:
            return self._data.decode(), False
        except UnicodeDecodeError:
            return self._data.decode("utf-8", "replace"), True


def _torn_end(data: bytearray) -> int:
    """How many bytes at the end are the start of a character that the limit cut in two."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
        if byte < 0x80:
            break
    return 0


def flood_bytes(config: SandboxConfig) -> int:
    """How much of one stream may be dropped before the call is ended for it."""
    return max(_FLOOD_FACTOR * config.max_output_bytes, _FLOOD_BYTES)


def header_limit_bytes(config: SandboxConfig) -> int:
    """How long the header of a report can be."""
    return _HEADER_BYTES + config.max_artifacts * _HEADER_BYTES_PER_ARTIFACT


def report_limit_bytes(config: SandboxConfig) -> int:
    """How long a report can be, with the files that come back."""
    return _LENGTH_BYTES + header_limit_bytes(config) + config.max_artifact_bytes


def understood(report: bytes | bytearray, config: SandboxConfig) -> tuple[Message, list[bytes]]:
    """The code's report on itself, with only what we know how to read; empty if it makes no sense."""
    try:
        size = int.from_bytes(report[:_LENGTH_BYTES], "little")
        rest = report[_LENGTH_BYTES:]
        if not 0 < size <= min(header_limit_bytes(config), len(rest)):
            return {}, []
        said = json.loads(rest[:size])
        blobs, at = [], size
        for _, length in said["artifacts"]:
            if not isinstance(length, int) or not 0 <= length <= len(rest) - at:
                return {}, []
            blobs.append(bytes(rest[at : at + length]))
            at += length
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}, []
    return said, blobs


def conclude(
    report: bytes | bytearray,
    ending: Ending,
    *,
    killed: EndedBy | None,
    config: SandboxConfig,
    wall_s: float,
    out: Kept,
    err: Kept,
    **measured: Any,
) -> SandboxResult:
    """Decide how a call ended, from what was measured; only then from what the code says of itself."""
    said, blobs = understood(report, config)
    ended_by, return_code = decide(said, ending, killed)
    found, left_out = artifacts(said, blobs, config)
    exception = exception_of(said)
    stdout, stdout_replaced = out.text()
    stderr, stderr_replaced = err.text()
    return SandboxResult(
        success=ended_by is EndedBy.EXIT and return_code == 0,
        stdout=stdout,
        stderr=stderr,
        return_code=return_code,
        ended_by=ended_by,
        error=sentence(ended_by, return_code, config, wall_s, exception),
        value=value_of(said),
        exception=exception,
        artifacts=found,
        artifacts_left_out=left_out,
        cpu_ms=ending.cpu_ns / 1e6,
        peak_memory_bytes=ending.peak_bytes,
        stdout_dropped_bytes=out.dropped_bytes,
        stderr_dropped_bytes=err.dropped_bytes,
        stdout_replaced=stdout_replaced,
        stderr_replaced=stderr_replaced,
        **measured,
    )


def decide(report: Message, ending: Ending, killed: EndedBy | None) -> tuple[EndedBy, int]:
    """What ended the call, and its return code.

    Measured facts come first, in this order: that we ended it, that what watches over it did, that the
    kernel did for its memory. An exception is the code's own word, and so is that it met a limit that does
    not kill: no memory (`MemoryError`), no disk, no more processes.
    """
    number = ending.signal
    if killed is not None and (ending.status is None or number is not None):
        return killed, ENDED_BY_US
    if ending.why is not None:
        # A program that waits for a process that the kernel ended for its memory would wait for ever.
        by_memory = ending.ooms and ending.why == EndedBy.TIME
        return EndedBy.MEMORY if by_memory else EndedBy(ending.why), ENDED_BY_US
    if number is not None:
        if ending.ooms and number == _SIGKILL:
            return EndedBy.MEMORY, ENDED_BY_US
        if ending.refused_forks and number == _SIGKILL:
            return EndedBy.PROCESSES, ENDED_BY_US
        if number == _SIGXCPU:
            return EndedBy.CPU, ENDED_BY_US
        return EndedBy.CRASH, -number
    code = _exit_code(report) if ending.exit_code is None else ending.exit_code
    if code == 0 or not isinstance(report.get("exception"), str):
        return EndedBy.EXIT, code
    return _limit_met(report, ending), code


def _exit_code(report: Message) -> int:
    """The code's own word; whoever says nothing that makes sense did not come through."""
    said = report.get("exit_code")
    return said if isinstance(said, int) and 0 <= said <= 255 else 1


def _limit_met(report: Message, ending: Ending) -> EndedBy:
    told = report.get("limit")
    if told == EndedBy.MEMORY or ending.ooms:
        return EndedBy.MEMORY
    if told == EndedBy.DISK:
        return EndedBy.DISK
    if told == EndedBy.PROCESSES or ending.refused_forks:
        return EndedBy.PROCESSES
    return EndedBy.EXCEPTION


def value_of(report: Message) -> str | None:
    """The value of the last expression, whatever the code makes of it: a text of the promised length."""
    value = report.get("value")
    return _text(value, _MAX_VALUE_CHARS) if isinstance(value, str) else None


def exception_of(report: Message) -> str | None:
    """The name of an exception, on one line."""
    name = report.get("exception")
    if not isinstance(name, str):
        return None
    return "".join(char if char.isprintable() else "?" for char in _text(name, _MAX_EXCEPTION_CHARS))


def sentence(
    ended_by: EndedBy, return_code: int, config: SandboxConfig, wall_s: float, exception: str | None
) -> str | None:
    """One sentence for a reader on why there was no success; `None` when there was."""
    match ended_by:
        case EndedBy.EXIT:
            return None if return_code == 0 else f"the code exited with status {return_code}"
        case EndedBy.EXCEPTION:
            return f"the code ended with {exception}; see stderr"
        case EndedBy.CRASH:
            return f"the interpreter was ended by signal {-return_code} ({_signal_name(-return_code)})"
        case EndedBy.TIME:
            return f"stopped after {wall_s:g} s, the time limit of this call"
        case EndedBy.CPU:
            return f"stopped at {config.max_cpu_seconds or 0:g} s of CPU time, the limit of a call"
        case EndedBy.MEMORY:
            return f"the memory limit of {config.max_memory_mb} MiB was reached"
        case EndedBy.OUTPUT:
            kept = config.max_output_bytes
            return f"stopped because of a flood of output; {kept} bytes of each stream are kept"
        case EndedBy.PROCESSES:
            return f"the limit of {config.max_processes} processes and threads was reached"
        case EndedBy.DISK:
            return f"the limit of {config.max_disk_mb} MiB and {config.max_files} files was reached"
        case EndedBy.CANCELLED:
            return "cancelled"


def artifacts(
    report: Message, blobs: list[bytes], config: SandboxConfig
) -> tuple[tuple[Artifact, ...], tuple[str, ...]]:
    """The files that came back, under names that cannot lead anywhere, within the limits."""
    found: list[Artifact] = []
    left_out: list[str] = []
    total = 0
    for (name, _), data in zip(report.get("artifacts", ()), blobs, strict=True):
        total += len(data)
        if not isinstance(name, str) or not _is_plain(name):
            left_out.append(f"{_text(name)}: not a name that can be kept")
        elif len(found) >= config.max_artifacts or total > config.max_artifact_bytes:
            left_out.append(f"{_text(name)}: over the limit")
        else:
            found.append(Artifact(name=name, media_type=media_type(name), data=data))
    said = report.get("left_out")
    if isinstance(said, list):
        left_out += [_text(each) for each in said]
    return tuple(found), tuple(left_out[: config.max_artifacts + _MORE_LEFT_OUT])


def media_type(name: str) -> str:
    """By the ending of a name; the same on every host."""
    kind, encoding = _types().guess_type(f"./{name.rpartition('/')[2]}", strict=False)  # not as a URL
    if encoding is not None:
        return _ENCODED.get(encoding, "application/octet-stream")
    return kind or "application/octet-stream"


@functools.cache
def _types() -> mimetypes.MimeTypes:
    return mimetypes.MimeTypes()


def _is_plain(name: str) -> bool:
    """Whether it is a path below a folder, on the server's system too, which may be Windows."""
    parts = name.split("/")
    return (
        len(name) <= _MAX_NAME_CHARS
        and name == _text(name, len(name))
        and "\0" not in name
        and "\\" not in name
        and not _DRIVE.match(name)
        and not any(part in {"", ".", ".."} or _DEVICE.match(part) for part in parts)
    )


def _text(said: object, max_chars: int = _MAX_TEXT_CHARS) -> str:
    """Something that the code said as text that can be encoded, and is not too long."""
    return str(said)[:max_chars].encode("utf-8", "backslashreplace").decode()


def _signal_name(number: int) -> str:
    names = _SIGNALS.split()
    return f"SIG{names[number - 1]}" if 1 <= number <= len(names) else "unknown"

"""How a call ended, in words: pure functions from what was measured and what the code said."""

from __future__ import annotations

import functools
import mimetypes
import os
import signal
from typing import TYPE_CHECKING

from sandbox.types import Artifact, EndedBy, SandboxConfig

if TYPE_CHECKING:
    from sandbox.linux.call import Ending
    from sandbox.linux.wire import Message

ENDED_BY_US = -1
_MAX_NAME_CHARS = 512
_ENCODED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_MAX_TEXT_CHARS = 600
_MAX_VALUE_CHARS = 10_100  # what the runner shortens it to, and what it says of that
_MAX_EXCEPTION_CHARS = 200
_MORE_LEFT_OUT = 16  # names of files that were left out, beside as many as may come back


def decide(report: Message, ending: Ending, killed: EndedBy | None) -> tuple[EndedBy, int]:
    """What ended the call, and its return code.

    Measured facts come first, in this order: that we ended it, that the zygote did, that the kernel did for
    its memory. An exception is the code's own word, and so is that it met a limit that does not kill: no
    memory (`MemoryError`), no disk, no more processes.
    """
    status = ending.status
    if killed is not None and (status is None or os.WIFSIGNALED(status)):
        return killed, ENDED_BY_US
    if ending.why is not None:
        # A program that waits for a process that the kernel ended for its memory would wait for ever.
        by_memory = ending.ooms and ending.why == EndedBy.TIME
        return EndedBy.MEMORY if by_memory else EndedBy(ending.why), ENDED_BY_US
    if status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if ending.ooms and number == signal.SIGKILL:
            return EndedBy.MEMORY, ENDED_BY_US
        if ending.refused_forks and number == signal.SIGKILL:
            return EndedBy.PROCESSES, ENDED_BY_US
        if number == signal.SIGXCPU:
            return EndedBy.CPU, ENDED_BY_US
        return EndedBy.CRASH, -number
    code = _exit_code(report) if status is None else os.WEXITSTATUS(status)
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
    parts = name.split("/")
    if (
        len(name) > _MAX_NAME_CHARS
        or any(part in {"", ".", ".."} for part in parts)
        or "\0" in name
        or "\\" in name
    ):
        return False
    return name == _text(name, len(name))


def _text(said: object, max_chars: int = _MAX_TEXT_CHARS) -> str:
    """Something that the code said as text that can be encoded, and is not too long."""
    return str(said)[:max_chars].encode("utf-8", "backslashreplace").decode()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"

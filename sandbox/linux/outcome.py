"""How a call ended, in words: pure functions from what was measured and what the code said."""

from __future__ import annotations

import errno
import mimetypes
import os
import signal
from typing import TYPE_CHECKING

from sandbox.types import Artifact, EndedBy, SandboxConfig

if TYPE_CHECKING:
    from sandbox.linux.call import Ending
    from sandbox.linux.wire import Message

ENDED_BY_US = -1
_MAX_TEXT_CHARS = 600
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        return EndedBy(ending.why), ENDED_BY_US
    if status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if ending.ooms and number == signal.SIGKILL:
            return EndedBy.MEMORY, ENDED_BY_US
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
    name, number = report["exception"], report.get("errno")
    if name == "MemoryError" or ending.ooms:
        return EndedBy.MEMORY
    if number in _NO_SPACE:
        return EndedBy.DISK
    if ending.refused_forks or number == errno.EAGAIN:
        return EndedBy.PROCESSES
    return EndedBy.EXCEPTION


def sentence(
    ended_by: EndedBy, return_code: int, config: SandboxConfig, wall_s: float, exception: object
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
            left_out.append(f"{_short(name)}: not a name that can be kept")
        elif len(found) >= config.max_artifacts or total > config.max_artifact_bytes:
            left_out.append(f"{_short(name)}: over the limit")
        else:
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            found.append(Artifact(name=name, media_type=kind, data=data))
    said = report.get("left_out")
    if isinstance(said, list):
        left_out += [_short(each) for each in said[: config.max_artifacts + 16]]
    return tuple(found), tuple(left_out)


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    return all(part not in {"", ".", ".."} for part in parts) and "\0" not in name and "\\" not in name


def _short(text: object) -> str:
    return str(text)[:_MAX_TEXT_CHARS]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"

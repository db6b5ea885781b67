"""Making the server believe what did not happen, or choke on what it is told.

A report is a frame: four bytes of length, then JSON. The code can write whatever it likes to any descriptor;
the control is a reader who believes a frame that it finds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sandbox.errors import SandboxDied
from sandbox.selfcheck.arenas import Arena, Ran
from sandbox.selfcheck.model import Attack, Family, Observation
from sandbox.selfcheck.prelude import judge, program
from sandbox.selfcheck.stage import Stage, burns
from sandbox.types import EndedBy

_SERVER_GROWTH_BYTES = 48 * 1024**2


def _lie(name: str, function: Any, **more: Any) -> Attack:
    return Attack(name=name, family=Family.LIES, function=function, **more)


FORGE = r"""
import json, stat
def send(data):
    "To every descriptor there is, as far as it takes it; to a socket also with descriptors of ours."
    for fd in range(256):
        try:
            os.set_blocking(fd, False)
            os.write(fd, data)
        except OSError:
            pass
def frame(said, *blobs):
    text = json.dumps(said).encode()
    return len(text).to_bytes(4, "little") + text + b"".join(blobs)
FORGED = {
    "exit_code": 0, "value": "'forged'", "exception": None, "artifacts": [["forged.txt", 6]], "left_out": [],
    "success": True, "return_code": 0, "ended_by": "exit", "status": 0, "why": None, "cpu_ns": 0,
    "peak_bytes": 0, "ooms": 0, "refused_forks": 0, "duration_ms": 0, "isolation": "L9",
}
held("forged")
"""


def _believed(ran: Ran) -> dict[str, Any]:
    """The first frame that a reader without doubts finds on stdout."""
    data = ran.result.stdout.encode(errors="replace")
    start = data.find(b'{"exit_code"')
    if start < 4:
        return {}
    try:
        said, _ = json.JSONDecoder().raw_decode(data[start:].decode())
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _forged(code: str, *ends: tuple[EndedBy, int], session: bool = False, seconds_inside: float = 1.0) -> Any:
    """The code forges reports, then does something; inside, one of `ends` is said, or that it is done.

    Whoever says that it is done could as well have left, so this ends the call. It must really be its end.
    """

    def function(arena: Arena, stage: Stage) -> Observation:
        label = stage.name()
        source = program(f"{FORGE}label(T['name'])\n{code}", name=label)
        try:
            ran = arena.run(
                source,
                timeout_seconds=seconds_inside if arena.walled else 1.0,
                session=label if session and arena.walled else None,
            )
        except SandboxDied:
            if not session or burns(label):
                raise
            return Observation(met="a session that says what makes no sense is ended")
        result = ran.result
        if not arena.walled:
            ended_well = result.return_code == 0 and result.ended_by is not EndedBy.TIME
            wrong = _believed(ran).get("exit_code") == 0 and not ended_well
            return Observation(breach="a reader of frames believes that it went well" if wrong else "")
        said = f"ended by {result.ended_by}, status {result.return_code}"
        if ran.outlived or (breach := burns(label)):
            return Observation(breach=ran.outlived or f"{said}, but it {breach}")
        if (result.ended_by, result.return_code) not in (*ends, (EndedBy.EXIT, 0)):
            return Observation(breach=f"{said}; that is not true")
        if result.duration_ms <= 0 or result.cpu_ms <= 0 or result.peak_memory_bytes <= 1 << 20:
            used = f"{result.duration_ms} ms, {result.cpu_ms} ms of CPU, {result.peak_memory_bytes} bytes"
            return Observation(breach=f"{used}: that is not what was used")
        return Observation(met=said)

    return function


_EXIT_3 = r"""
send(frame(FORGED, b"forged"))
os._exit(3)
"""

_SPIN = r"""
send(frame(FORGED, b"forged"))
while True:
    pass
"""

_EAT = r"""
send(frame(FORGED, b"forged"))
kept = []
while True:
    kept.append(b"x" * (1 << 20))
"""

_SEGFAULT = r"""
send(frame(FORGED, b"forged"))
ctypes.string_at(8)
"""

_CLOSE_AND_EXIT = r"""
send(frame(FORGED, b"forged"))
os.closerange(0, 256)
os._exit(7)
"""

_LONG_LENGTH = r"""
for head in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f", b"\x05\x00\x00\x00"):
    send(head + b"{" * 100)
send(frame(FORGED))
os._exit(3)
"""

# Each is the text of a frame's JSON.
_ODD_FRAMES = r"""
odd = [
    b"null", b"[]", b'"text"', b"1e999", b"{}", b"[" * 100_000, b"{\"a\":" * 50_000, b"9" * 5000,
    b'{"artifacts": 5, "exit_code": "x"}', b'{"artifacts": [5], "exit_code": []}',
    b'{"artifacts": [["a", -1]], "exit_code": {}}', b'{"artifacts": [["a", 1e999]], "exit_code": 1e999}',
    b'{"artifacts": [[["a"], 0]], "exit_code": "x", "value": 7, "exception": {}, "left_out": 3}',
    b'{"artifacts": [["a", true]], "exit_code": NaN, "left_out": [[], {}], "exception": "\\ud800"}',
    b'{"artifacts": [], "exit_code": "x", "value": "\\ud800", "exception": "MemoryError", "errno": []}',
    b'{"artifacts": [], "exit_code": 340282366920938463463374607431768211456, "left_out": {"a": 1}}',
    b'{"artifacts": {}, "exit_code": -7, "value": [], "exception": "' + b"E" * 200_000 + b'"}',
    b"\xff\xfe\x00", b'{"exit_code": 0, "exit_code": 5, "artifacts": null}',
]
text = odd[T["number"]]
send(len(text).to_bytes(4, "little") + text)
os._exit(3)
"""
_ODD_COUNT = 19
_OWN_WORD = (EndedBy.EXIT, EndedBy.EXCEPTION, EndedBy.MEMORY, EndedBy.DISK, EndedBy.PROCESSES)


def _odd_frames(arena: Arena, stage: Stage) -> Observation:
    """Frames that no reader expects: whatever is in them, there is a result, and it is true."""
    for session in (False, True):
        for number in range(_ODD_COUNT):
            name = stage.name() if session and arena.walled else None
            try:
                result = arena.run(program(FORGE + _ODD_FRAMES, number=number), session=name).result
            except SandboxDied:
                if session:
                    continue  # it is lost, and whoever asked is told so
                raise
            if not arena.walled:
                return _reader_chokes(result.stdout)
            # Which exception it was is the code's own word, and so is a limit that it says it met. The
            # process of a session stays, so there the status is its word too.
            true = result.return_code == 3 or (session and result.return_code > 0)
            if not true or result.success or result.ended_by not in _OWN_WORD:
                found = f"ended by {result.ended_by}, status {result.return_code!r}"
                return Observation(breach=f"frame {number}{' of a session' if session else ''}: {found}")
            json.dumps([result.value, result.exception, result.error, list(result.artifacts_left_out)])
    return Observation(met=f"{2 * _ODD_COUNT} frames, and no result is untrue")


def _reader_chokes(text: str) -> Observation:
    try:
        json.loads(text[text.index("null") :])["artifacts"]
    except (TypeError, ValueError, KeyError) as error:
        return Observation(breach=f"a reader without doubts ends with {type(error).__name__}")
    return Observation()


_FLOOD = r"""
# Three times the memory that the server may grow by, to every descriptor but the streams.
import select
total = 0
for fd in range(3, 64) if T["walled"] else (1,):
    try:
        os.set_blocking(fd, True)
        while total < 3 * T["growth"]:
            total += os.write(fd, b"x" * (1 << 20))
    except OSError:
        pass
print("held wrote", total >> 20, "MiB", file=sys.stderr)
os._exit(0)
"""


def _flood(arena: Arena, stage: Stage) -> Observation:
    """What the server keeps of a flood on the channel that reports come over."""

    def memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = memory()
    source = program(_FLOOD, walled=arena.walled, growth=_SERVER_GROWTH_BYTES)
    ran = arena.run(source)
    grown = memory() - before
    if grown > _SERVER_GROWTH_BYTES:
        return Observation(breach=f"the server grew by {grown >> 20} MiB")
    said = ran.result.stderr.removeprefix("held ").strip()
    return Observation(met=f"{said}, the server grew by {max(grown, 0) >> 20} MiB")


_RIGHTS = r"""
import array, socket
# Descriptors go along with what is sent over a Unix socket, and pile up with whoever does not look.
sent = 0
kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
for fd in range(256):
    try:
        sock = socket.socket(fileno=os.dup(fd))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", kept))]
        for _ in range(50):
            sock.sendmsg([b"x"], rights, socket.MSG_DONTWAIT)
            sent += 1
    except OSError as error:
        held(name_of(error.errno))
held("sent", sent * len(kept), "descriptors")
"""


def _rights(arena: Arena, stage: Stage) -> Observation:
    """Descriptors of the server before and after a call that sends it many."""
    import socket

    before = len(os.listdir("/proc/self/fd"))
    if arena.walled:
        said = judge(arena.run(program(_RIGHTS)), stage)
        for _ in range(3):
            arena.run("pass")
        after = len(os.listdir("/proc/self/fd"))
        # The pool may have refilled in between: a few for each warm child.
        return Observation(
            breach=f"{after - before} more descriptors" if after > before + 40 else "", met=said.met
        )
    one, two = socket.socketpair()
    null = os.open(os.devnull, os.O_RDONLY)
    received: list[int] = []
    for _ in range(50):
        socket.send_fds(one, [b"x"], [null])
        received += socket.recv_fds(two, 1, 1)[1]
    after = len(os.listdir("/proc/self/fd"))
    for fd in (null, *received):
        os.close(fd)
    one.close()
    two.close()
    return Observation(breach=f"a server that takes what it is sent has {after - before} more descriptors")


_ARTIFACTS = r"""
out = os.environ.get("SANDBOX_OUT", "/tmp/out") if T["walled"] else "out"
os.chdir(out)
os.symlink(T["file"], "a-link")
os.symlink("/etc/passwd", "b-link")
attempt(os.link, T["file"], "c-link")
os.symlink("/", "root")
os.symlink(".", "loop")
attempt(os.mkfifo, "fifo")
fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
attempt(os.ftruncate, fd, 1 << 40)
odd = "..\\up", "new\nline", "\x1b[2J", b"\xff\xfe", "a" * 250, "-rf", " ", "con.txt", "\u202egnp.exe"
for name in odd:
    with open(name, "w") as file:
        file.write("content")
path = "deep"
try:
    for _ in range(60):
        os.mkdir(path)
        path += "/deep"
except OSError:
    pass
for number in range(120):
    with open(f"many-{number}", "w") as file:
        file.write("content")
held("left", len(os.listdir(".")), "things")
"""


def _artifacts(arena: Arena, stage: Stage) -> Observation:
    """Links, pipes, holes and odd names where artifacts are collected."""
    values = {"file": str(stage.secret_files[0]), "walled": arena.walled}
    ran = arena.run(program(_ARTIFACTS, **values))
    said, result = judge(ran, stage), ran.result
    if said.breach or not arena.walled:
        return said
    for artifact in result.artifacts:
        parts = artifact.name.split("/")
        if artifact.name.startswith("/") or ".." in parts or b":/" in artifact.data:
            return Observation(breach=f"{artifact.name!r} came back with {artifact.data[:40]!r}")
    size = sum(len(artifact.data) for artifact in result.artifacts)
    if len(result.artifacts) > arena.config.max_artifacts or size > arena.config.max_artifact_bytes:
        return Observation(breach=f"{len(result.artifacts)} artifacts of {size} bytes came back")
    return Observation(met=f"{len(result.artifacts)} ordinary files came back", trouble=said.trouble)


_FORGED_NAMES = r"""
names = ["../up", "/etc/passwd", "a/../../b", "a//b", "", ".", "..", "a\0b", "a\\b", "x" * 5000,
         "same", "same", "\ud800", "c:\\x", "a/./b", "~", "new\nline"]
blobs = [b"forged"] * len(names) if not T["large"] else [b"y" * (1 << 20)] * 40
names = names if not T["large"] else [f"large-{number}" for number in range(40)]
send(frame({"exit_code": 0, "artifacts": [[name, len(blob)] for name, blob in zip(names, blobs)]}))
for fd in range(3, 256):
    try:
        os.set_blocking(fd, True)
        for blob in blobs:
            os.write(fd, blob)
    except OSError:
        pass
os._exit(0)
"""


def _forged_names(arena: Arena, stage: Stage) -> Observation:
    """Artifacts that exist in a forged report only: names that lead somewhere, and more than is allowed."""
    for large in (False, True):
        ran = arena.run(program(FORGE + _FORGED_NAMES, large=large))
        if not arena.walled:
            names = [name for name, _ in _believed(ran).get("artifacts", ())]
            bad = [name for name in names if name.startswith(("/", ".."))]
            return Observation(breach=f"a reader of frames would write to {bad}" if bad else "")
        size = sum(len(artifact.data) for artifact in ran.result.artifacts)
        config = arena.config
        if len(ran.result.artifacts) > config.max_artifacts or size > config.max_artifact_bytes:
            return Observation(breach=f"{len(ran.result.artifacts)} artifacts of {size} bytes were believed")
        for artifact in ran.result.artifacts:
            name = artifact.name
            if (
                name.startswith("/")
                or set(name.split("/")) & {"", ".", ".."}
                or "\0" in name
                or len(name) > 1024
            ):
                return Observation(breach=f"the name {name[:40]!r} was believed")
    return Observation(met="no such name, and not more than allowed")


ATTACKS = (
    _lie("forge a report, then exit with an error", _forged(_EXIT_3, (EndedBy.EXIT, 3))),
    _lie("forge a report, then spin", _forged(_SPIN, (EndedBy.TIME, -1))),
    _lie(
        "forge a report, then use too much memory",
        # A busy machine takes seconds to hand out this memory, and then it would end by time.
        _forged(_EAT, (EndedBy.MEMORY, -1), (EndedBy.MEMORY, 1), (EndedBy.EXIT, 1), seconds_inside=10.0),
    ),
    _lie("forge a report, then crash", _forged(_SEGFAULT, (EndedBy.CRASH, -11))),
    _lie("forge a report, then close everything and leave", _forged(_CLOSE_AND_EXIT, (EndedBy.EXIT, 7))),
    _lie("send lengths that never come true", _forged(_LONG_LENGTH, (EndedBy.EXIT, 3))),
    _lie(
        "forge a report in a session, then exit with an error",
        _forged(_EXIT_3, (EndedBy.EXIT, 3), session=True),
    ),
    _lie("forge a report in a session, then spin", _forged(_SPIN, (EndedBy.TIME, -1), session=True)),
    _lie("send reports that make no sense", _odd_frames),
    _lie("flood the channel of the report", _flood, alone=True),
    _lie("send descriptors to the server until it has too many", _rights, alone=True),
    _lie("leave links, pipes and holes as artifacts", _artifacts),
    _lie("forge the names and sizes of artifacts", _forged_names),
)

"""How a call ended, decided from what was measured and, where nothing was, from what the code says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from sandbox import EndedBy, SandboxConfig, SandboxResult
from sandbox.linux import knobs, wire
from sandbox.linux.call import Call
from sandbox.linux.handle import Taken
from sandbox.outcome import Ending, artifacts, decide, exception_of, media_type, sentence, value_of
from sandbox.types import IsolationLevel

KILLED, SEGV, XCPU = int(signal.SIGKILL), int(signal.SIGSEGV), int(signal.SIGXCPU)
FAILED: dict[str, Any] = {"exit_code": 1, "exception": "ValueError"}


def ending(status: int | None = 0, why: str | None = None, ooms: int = 0, refused_forks: int = 0) -> Ending:
    return Ending(status=status, cpu_ns=0, peak_bytes=0, why=why, ooms=ooms, refused_forks=refused_forks)


@pytest.mark.parametrize(
    ("report", "measured", "killed", "expected"),
    [
        # It came to its end.
        ({}, ending(0), None, (EndedBy.EXIT, 0)),
        ({}, ending(3 << 8), None, (EndedBy.EXIT, 3)),
        ({"exit_code": 0}, ending(3 << 8), None, (EndedBy.EXIT, 3)),
        ({"exit_code": 0, "exception": None}, ending(None), None, (EndedBy.EXIT, 0)),
        ({"exit_code": 7}, ending(None), None, (EndedBy.EXIT, 7)),
        (FAILED, ending(1 << 8), None, (EndedBy.EXCEPTION, 1)),
        (FAILED, ending(None), None, (EndedBy.EXCEPTION, 1)),
        (FAILED, ending(0), None, (EndedBy.EXIT, 0)),
        # It met a limit and ended with that.
        ({**FAILED, "limit": "memory"}, ending(1 << 8), None, (EndedBy.MEMORY, 1)),
        ({**FAILED, "limit": "disk"}, ending(1 << 8), None, (EndedBy.DISK, 1)),
        ({**FAILED, "limit": "processes"}, ending(1 << 8), None, (EndedBy.PROCESSES, 1)),
        ({**FAILED, "limit": "time"}, ending(1 << 8), None, (EndedBy.EXCEPTION, 1)),
        (FAILED, ending(1 << 8, ooms=1), None, (EndedBy.MEMORY, 1)),
        (FAILED, ending(1 << 8, refused_forks=1), None, (EndedBy.PROCESSES, 1)),
        ({}, ending(0, ooms=1, refused_forks=1), None, (EndedBy.EXIT, 0)),
        # It was ended.
        ({}, ending(KILLED, why="time"), None, (EndedBy.TIME, -1)),
        ({}, ending(KILLED, why="cpu"), None, (EndedBy.CPU, -1)),
        ({}, ending(KILLED, why="time", ooms=1), None, (EndedBy.MEMORY, -1)),
        ({}, ending(KILLED, why="cpu", ooms=1), None, (EndedBy.CPU, -1)),
        ({}, ending(KILLED), EndedBy.OUTPUT, (EndedBy.OUTPUT, -1)),
        ({}, ending(None), EndedBy.CANCELLED, (EndedBy.CANCELLED, -1)),
        (FAILED, ending(KILLED, why="time"), EndedBy.OUTPUT, (EndedBy.OUTPUT, -1)),
        ({}, ending(0), EndedBy.TIME, (EndedBy.EXIT, 0)),  # it was quicker
        ({}, ending(KILLED, ooms=1), None, (EndedBy.MEMORY, -1)),
        ({}, ending(KILLED, refused_forks=1), None, (EndedBy.PROCESSES, -1)),
        ({}, ending(XCPU), None, (EndedBy.CPU, -1)),
        # It crashed.
        ({}, ending(KILLED), None, (EndedBy.CRASH, -9)),
        ({}, ending(SEGV), None, (EndedBy.CRASH, -11)),
        ({}, ending(SEGV | 0x80), None, (EndedBy.CRASH, -11)),
        ({}, ending(SEGV, ooms=1), None, (EndedBy.CRASH, -11)),
        (FAILED, ending(SEGV), None, (EndedBy.CRASH, -11)),
        # It says what makes no sense.
        ({"exit_code": "0"}, ending(None), None, (EndedBy.EXIT, 1)),
        ({"exit_code": -1}, ending(None), None, (EndedBy.EXIT, 1)),
        ({"exit_code": 256}, ending(None), None, (EndedBy.EXIT, 1)),
        ({"exit_code": 1.0}, ending(None), None, (EndedBy.EXIT, 1)),
        ({}, ending(None), None, (EndedBy.EXIT, 1)),
        ({"exception": 5}, ending(1 << 8), None, (EndedBy.EXIT, 1)),
        ({**FAILED, "limit": ["memory"]}, ending(1 << 8), None, (EndedBy.EXCEPTION, 1)),
    ],
)
def test_what_was_measured_decides(
    report: dict[str, Any], measured: Ending, killed: EndedBy | None, expected: tuple[EndedBy, int]
) -> None:
    assert decide(report, measured, killed) == expected


@pytest.mark.parametrize("ended_by", list(EndedBy), ids=str)
def test_every_ending_but_success_has_a_sentence(ended_by: EndedBy) -> None:
    config = SandboxConfig(max_cpu_seconds=1.5)
    text = sentence(ended_by, -11, config, 2.5, "ValueError")
    assert text
    assert "\n" not in text
    assert not text.endswith(".")
    assert sentence(EndedBy.EXIT, 0, config, 2.5, None) is None


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    text = sentence(EndedBy.CRASH, -99, SandboxConfig(), 1.0, None)
    assert text == "the interpreter was ended by signal 99 (unknown)"


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (None, None),
        (5, None),
        (["a"], None),
        ("text", "text"),
        ("\ud800", "\\ud800"),
        ("x" * 20_000, "x" * 10_100),
    ],
)
def test_a_value_is_a_text_of_bounded_length(said: object, value: str | None) -> None:
    assert value_of({"value": said}) == value


def test_the_name_of_an_exception_is_one_short_line() -> None:
    assert exception_of({"exception": "a\nb\x1b[31m\ud800" + "c" * 500}) == "a?b?[31m\\ud800" + "c" * 191
    assert exception_of({"exception": {"a": 1}}) is None
    assert exception_of({}) is None


def test_names_of_artifacts_are_files_below_a_folder_on_windows_too() -> None:
    bad = ["C:/a", "c:a", "NUL", "a/aux.txt", "COM1 .log/b", "lpt¹", "CONOUT$"]
    good = ["b/ç:d", "nullable", "com/10:30.txt", "auxiliary.c"]
    report = {"artifacts": [[name, 0] for name in (*bad, *good)]}
    found, left_out = artifacts(report, [b""] * len(bad + good), SandboxConfig())
    assert [each.name for each in found] == good
    assert left_out == tuple(f"{name}: not a name that can be kept" for name in bad)


def test_names_of_artifacts_lead_nowhere_and_limits_hold_whatever_is_said() -> None:
    config = SandboxConfig(max_artifacts=3, max_artifact_bytes=10)
    bad = ["", "/etc/a", "../a", "a/../b", "a/./b", "a//b", "a/", "a\0b", "a\\b", "\ud800", 5, None, ["a"]]
    good = ["a", "b/c", "d", "too many"]
    report = {"artifacts": [[name, 1] for name in (*bad, *good)], "left_out": ["said", {"x": 1}, "\ud800"]}
    found, left_out = artifacts(report, [b""] * len(bad) + [b"1"] * len(good), config)
    assert [each.name for each in found] == ["a", "b/c", "d"]
    assert left_out[: len(bad)] == tuple(
        f"{str(name).encode('utf-8', 'backslashreplace').decode()}: not a name that can be kept"
        for name in bad
    )
    assert left_out[len(bad) :] == ("too many: over the limit", "said", "{'x': 1}", "\\ud800")
    found, left_out = artifacts({"artifacts": [["a", 6], ["b", 6]]}, [b"123456"] * 2, config)
    assert [each.name for each in found] == ["a"]
    assert left_out == ("b: over the limit",)
    _, left_out = artifacts({"artifacts": [], "left_out": ["x" * 10_000] * 500}, [], config)
    assert (len(left_out), {len(each) for each in left_out}) == (19, {600})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "image/png"),
        ("a.JPG", "image/jpeg"),
        ("a.webp", "image/webp"),
        ("folder.d/table.csv", "text/csv"),
        ("a.tar.gz", "application/gzip"),
        ("a.svgz", "application/gzip"),
        ("a.csv.bz2", "application/x-bzip2"),
        ("a.Z", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
        ("http://x/a.html", "text/html"),
        ("a.html?x", "application/octet-stream"),
        ("png", "application/octet-stream"),
        (".png", "application/octet-stream"),
        ("a.unknown", "application/octet-stream"),
    ],
)
def test_media_types_are_by_the_name(name: str, kind: str) -> None:
    assert media_type(name) == kind


# --- Reports, as the server reads them --------------------------------------------------------


class Home:
    """What a call holds on to while it lasts."""

    def hold(self) -> None: ...

    def finished(self, pid: int) -> None: ...


class Guest:
    """The other ends of a call: a child's, and the zygote's."""

    def __init__(self, config: SandboxConfig) -> None:
        ours, self.channel = socket.socketpair()
        status, self.status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, self.out = os.pipe()
        err, self.err = os.pipe()
        self.process = subprocess.Popen(["sleep", "60"])
        fds = [ours.detach(), status.detach(), os.pidfd_open(self.process.pid), out, err]
        taken = Taken(0, fds, Home(), 0)  # type: ignore[arg-type]
        self.call = Call(taken, b"request", wall_s=5.0, config=config)

    def end(self, report: bytes, stdout: bytes = b"") -> SandboxResult:
        """Send a report, and have the zygote say that the child exited with 1."""
        self.channel.setblocking(False)
        os.write(self.out, stdout)
        sent = 0
        with closing(self.call):
            while sent < len(report):
                try:
                    sent += self.channel.send(report[sent:])
                except BlockingIOError:
                    self.call.advance()
            said = {"status": 1 << 8, "cpu_ns": 5_000_000, "peak_bytes": 7, "why": None, "ooms": 0}
            wire.send(self.status, {**said, "refused_forks": 0})
            while not self.call.done:
                self.call.advance()
            return self.call.result(IsolationLevel.L4, ())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for end in (self.channel, self.status):
            end.close()
        for fd in (self.out, self.err):
            os.close(fd)


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest(SandboxConfig(max_artifacts=2, max_artifact_bytes=1000))
    yield made
    made.close()


def test_a_report_is_understood(guest: Guest) -> None:
    said = {**FAILED, "value": "v", "artifacts": [["a", 3]], "left_out": ["b: big"]}
    result = guest.end(wire.frame(said, [b"abc"]), stdout=b"out")
    assert (result.ended_by, result.exception, result.value) == (EndedBy.EXCEPTION, "ValueError", "v")
    assert [(each.name, each.data) for each in result.artifacts] == [("a", b"abc")]
    assert (result.artifacts_left_out, result.stdout) == (("b: big",), "out")
    assert (result.cpu_ms, result.peak_memory_bytes, result.isolation) == (5.0, 7, IsolationLevel.L4)


def framed(text: str, size: int | None = None) -> bytes:
    return (len(text) if size is None else size).to_bytes(4, "little") + text.encode()


NESTED = "[" * 100_000
NONSENSE = {
    "nothing": b"",
    "half a length": b"\x01\x00",
    "no length": framed("", 0),
    "a huge length": framed("{}", 2**32 - 1),
    "a longer length": framed("{}", 100),
    "no JSON": framed("{]"),
    "no object": framed("[]"),
    "a number": framed("5"),
    "null": framed("null"),
    "no artifacts": framed('{"value": "v"}'),
    "artifacts that are none": framed('{"value": "v", "artifacts": 5}'),
    "artifacts without sizes": framed('{"value": "v", "artifacts": [["a"]]}'),
    "a size that is a text": framed('{"value": "v", "artifacts": [["a", "5"]]}'),
    "a negative size": framed('{"value": "v", "artifacts": [["a", -1]]}'),
    "a size beyond the end": framed('{"value": "v", "artifacts": [["a", 1]]}'),
    "a huge size": framed('{"value": "v", "artifacts": [["a", 1e400]]}'),
    "a huge number": framed('{"value": "v", "artifacts": [["a", ' + "9" * 5000 + "]]}"),
    "nested too deeply": framed(NESTED),
    "no UTF-8": b"\x04\x00\x00\x00\xff\xff\xff\xff",
    "too much": framed("{" + '"a": 1, ' * 100_000 + '"artifacts": []}'),
    "a flood": bytes(4_000_000),
}


@pytest.mark.parametrize("report", NONSENSE.values(), ids=NONSENSE)
def test_a_report_that_makes_no_sense_is_no_report(report: bytes, guest: Guest) -> None:
    result = guest.end(report, stdout=b"out")
    assert (result.ended_by, result.return_code, result.stdout) == (EndedBy.EXIT, 1, "out")
    assert (result.value, result.exception, result.artifacts) == (None, None, ())


@pytest.mark.parametrize(
    "said",
    [
        {"value": 5, "exception": 5, "left_out": 5},
        {"value": [], "exception": {}, "left_out": {"a": 1}},
        {"value": None, "exception": None, "left_out": None},
        {"ended_by": "cancelled", "success": True, "cpu_ms": 10**9, "stdout": "forged"},
    ],
)
def test_only_what_we_know_how_to_read_is_taken(said: dict[str, Any], guest: Guest) -> None:
    result = guest.end(framed(json.dumps({"artifacts": [], "exit_code": 0, **said})), stdout=b"out")
    assert (result.ended_by, result.return_code, result.success) == (EndedBy.EXIT, 1, False)
    assert (result.stdout, result.value, result.exception) == ("out", None, None)
    assert result.artifacts_left_out == ()


# --- Remedies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "step", "code", "said"),
    [
        ("L3", "bwrap", 2, "bubblewrap"),
        ("L4", "landlock_create_ruleset", 38, "lsm="),
        ("L2", "landlock", 95, "Landlock"),
        ("L4", "seccomp", 22, "CONFIG_SECCOMP_FILTER"),
        ("L4", "open_tree", 38, "5.12"),
        ("L2", "target", 95, "leave its target out"),
        ("L2", "/srv/data", 116, "new sandbox"),
        ("L4", "ImportError", 0, "preload"),
        ("L2", "something else", 5, "minimum_level"),
    ],
)
def test_what_is_missing_comes_with_what_to_change(level: str, step: str, code: int, said: str) -> None:
    told = knobs.missing({"level": level, "failed": step, "errno": code, "text": "why"})
    assert (told.level, told.step, told.reason) == (level, step, "why")
    assert said in told.remedy
    assert told.remedy.endswith(".")


def test_a_remedy_that_the_launcher_knows_is_kept() -> None:
    tried = {"level": "L4+", "failed": "cgroup", "errno": 0, "text": "why", "remedy": "Do this."}
    assert str(knobs.missing(tried)) == "L4+: cgroup: why. Do this."

"""The self-check itself: it sees a sandbox without walls, and does not take silence for safety."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sandbox.errors import SandboxBusy
from sandbox.linux import syscalls
from sandbox.selfcheck import ATTACKS, Attack, Finding, Stage, Verdict, run_all, run_attack, run_controls
from sandbox.selfcheck.arenas import Bare
from sandbox.selfcheck.model import Family
from sandbox.selfcheck.prelude import NUMBERS
from sandbox.selfcheck.processes import tiny_program
from sandbox.selfcheck.stage import processes_named
from sandbox.types import EndedBy, IsolationLevel, SandboxConfig, SandboxResult

# Of every family some, and none that would touch anything but its own stage.
SAMPLE = [
    "read a variable of the server's environment",
    "read a file of the host by its path",
    "make files all over the host",
    "overwrite a file of the host",
    "reach the server's own port (TCP)",
    "make new namespaces (unshare)",
    "use io_uring",
    "leave a daemon behind",
    "use more memory than allowed",
    "make more threads than allowed",
    "write more output than allowed",
    "spin with every signal ignored",
    "find a file that an earlier call left",
    "forge a report, then spin",
]


class Imitation:
    """What tests put in the place of a sandbox."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config

    def close(self) -> None:
        pass


class NoWalls(Imitation):
    """A sandbox that only says that it is one: code runs as a plain process."""

    stage: Stage

    def execute_sync(
        self,
        code: str,
        *,
        timeout_seconds: float | None = None,
        files: Mapping[str, bytes] | None = None,
        **_: object,
    ) -> SandboxResult:
        # What is longer than its time is cut off late, as it happens where nobody enforces it.
        limit = (timeout_seconds or self.config.timeout_seconds) + 1.2
        return Bare(self.stage, self.config).run(code, timeout_seconds=limit, files=files).result


class Silent(Imitation):
    """Runs nothing, and calls that a success."""

    def execute_sync(self, code: str, **_: object) -> SandboxResult:
        return SandboxResult(success=True, stdout="", stderr="", return_code=0, ended_by=EndedBy.EXIT)


class Refusing(Silent):
    """Runs the first call only."""

    def execute_sync(self, code: str, **options: object) -> SandboxResult:
        if "ready" not in code:
            raise SandboxBusy("not now")
        return super().execute_sync(code, **options)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def sample(*names: str) -> list[Attack]:
    chosen = [attack for attack in ATTACKS if attack.name in (names or SAMPLE)]
    assert len(chosen) == len(names or SAMPLE)
    return chosen


def test_a_sandbox_without_walls_is_seen_through(stage: Stage) -> None:
    NoWalls.stage = stage
    findings = run_all(NoWalls, attacks=sample(), stage=stage)
    assert [finding.name for finding in findings if finding.verdict is not Verdict.BREACHED] == []


@pytest.mark.parametrize("sandbox", [Silent, Refusing])
def test_what_was_not_tried_is_not_held(sandbox: type[Imitation]) -> None:
    finding = run_attack(sample("use io_uring")[0], sandbox)
    assert finding.verdict is Verdict.UNPROVEN
    assert "it was not tried" in finding.detail


def test_held_without_a_control_is_unproven() -> None:
    finding = Finding(
        name="a",
        family=Family.KERNEL,
        level=IsolationLevel.L4,
        held=True,
        control_worked=False,
        detail="EPERM",
    )
    assert finding.verdict is Verdict.UNPROVEN


def test_what_works_where_it_is_not_promised_is_called_that() -> None:
    finding = Finding(
        name="a",
        family=Family.LIMITS,
        level=IsolationLevel.L2,
        held=False,
        control_worked=True,
        detail="16 MiB",
        not_promised="there is no quota",
    )
    assert finding.verdict is Verdict.NOT_PROMISED
    assert "there is no quota" in str(finding)


def test_attacks_have_names_of_their_own_and_every_family_has_some() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(names) == len(set(names))
    assert {attack.family for attack in ATTACKS} == set(Family)


def test_what_is_not_promised_has_a_reason() -> None:
    for attack in ATTACKS:
        assert all(len(reason) > 20 for reason in attack.not_promised.values()), attack.name
        assert not set(attack.not_promised) - {IsolationLevel.L2, IsolationLevel.L3, IsolationLevel.L4}


def test_a_control_that_is_not_possible_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    control = run_controls(stage, sample("make new namespaces (unshare)"), SandboxConfig())
    assert all(seen.breach or seen.met for seen in control.values())
    device = next(attack for attack in ATTACKS if attack.name == "make a device")
    assert run_controls(stage, [device], SandboxConfig())["make a device"].trouble == "needs root"


def test_the_stage_leaves_nothing_behind() -> None:
    with Stage() as stage:
        assert os.environ["SELFCHECK_SECRET"] == stage.secret
        planted = [stage.folder, *stage.secret_files]
        assert all(path.exists() for path in planted)
        stage.shared_segment()
    assert not any(path.exists() for path in planted)
    assert "SELFCHECK_SECRET" not in os.environ
    segments = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    assert not any(line.split()[4] == str(os.getpid()) for line in segments)


def test_a_control_that_is_ended_leaves_no_process(stage: Stage) -> None:
    bare = Bare(stage, SandboxConfig())
    code = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'sc-lasting', 0, 0, 0)\ntime.sleep(30)"
    ran = bare.run(code, timeout_seconds=0.2)
    assert (ran.outlived, ran.result.ended_by) == ("", "time")
    assert processes_named("sc-lasting") == []


def test_the_numbers_of_calls_are_those_of_the_filter() -> None:
    """Two lists, made apart: what both have must be the same."""
    for column, machine in enumerate(("x86_64", "aarch64")):
        of_filter = syscalls.numbers(machine)
        both = {name: numbers[column] for name, numbers in NUMBERS.items() if name in of_filter}
        assert len(both) > 50
        assert both == {name: of_filter[name] for name in both}


def test_the_tiny_program_answers_whether_two_calls_agree(tmp_path: Path) -> None:
    machine = os.uname().machine
    getuid, getpid = (174, 172) if machine == "aarch64" else (102, 39)
    for first, second, agree in ((getuid, getuid, True), (getuid, getpid, False)):
        path = tmp_path / f"tiny-{second}"
        path.write_bytes(tiny_program(machine, first, second))
        path.chmod(0o755)
        done = subprocess.run([path], check=False)
        # 8 bits of the difference is all there is: two numbers may agree by chance.
        assert (done.returncode == 0) is agree or not agree
    assert tiny_program("aarch64", 174, 175)[:4] == b"\x7fELF"

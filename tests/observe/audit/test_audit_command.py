"""`mcp-tools audit`: what it prints, and what it tells a script."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_tools.cli import audit as command
from mcp_tools.observe.audit import DEFAULT_NAME, AuditLog
from mcp_tools.types import ErrorCode, ExecutionStatus
from tests.observe.audit.calls import ended, started
from tests.observe.audit.processes import ROOT, WAIT_S

EVIL = 'x\x1b[2J\nrecord 9: forged\u202e"'
Run = Callable[..., tuple[int, str, str]]

RUN_IT = """
import argparse, sys
from mcp_tools.cli import audit
parser = argparse.ArgumentParser(prog="mcp-tools")
audit.add_parser(parser.add_subparsers())
sys.exit(audit.audit(parser.parse_args(["audit", *sys.argv[1:]])))
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_it(*arguments: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser(prog="mcp-tools")
        command.add_parser(parser.add_subparsers())
        try:
            code = command.audit(parser.parse_args(["audit", *arguments]))
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run_it


@pytest.fixture
def log(path: str, place: Path) -> str:
    async def write() -> None:
        with AuditLog(path, anchor=place / "elsewhere" / "anchor") as log:
            asks = {
                "status": ExecutionStatus.PERMISSION_DENIED,
                "error_code": ErrorCode.CONFIRMATION_REQUIRED,
            }
            await log.end(ended("asked", **asks, confirmation_id="question", error="a person must say yes"))
            await log.begin(started("answered", {"x": EVIL}, confirmation_id="question", channel="terminal"))
            await log.end(ended("answered", confirmation_id="question", channel="terminal"))
            for number in range(20):
                await log.begin(started(f"c{number}", client=EVIL))
                await log.end(ended(f"c{number}"))

    anyio.run(write)
    return path


def test_a_whole_log_is_said_to_be_whole(run: Run, log: str, place: Path) -> None:
    code, out, _ = run("verify", log, "--anchor", str(place / "elsewhere" / "anchor"))
    assert code == 0
    assert out.startswith("whole: 45 records in 1 files, up to number 45\n")
    assert "the anchor names record 45, which is there" in out
    assert "not compared" in run("verify", log)[1]


def test_a_damaged_log_is_said_to_be_damaged_and_where(run: Run, log: str) -> None:
    data = Path(log).read_bytes()
    Path(log).write_bytes(data.replace(b'"call_id":"c7"', b'"call_id":"c8"', 1))
    code, out, _ = run("verify", log)
    assert code == 1
    assert re.match(r"DAMAGED: edited in audit.jsonl, line \d+ \(record \d+\)", out)
    code, out, _ = run("verify", log, "--json")
    found = json.loads(out)
    assert (code, found["is_whole"], found["damage"]["kind"]) == (1, False, "edited")


@pytest.mark.parametrize("name", ["verify", "tail", "head"])
def test_where_there_is_no_log_the_exit_code_is_two(run: Run, place: Path, name: str) -> None:
    code, out, err = run(name, str(place / "missing"))
    assert (code, out) == (2, "")
    assert "No such file" in err


def test_tail_shows_the_last_records_and_nothing_acts_on_the_terminal(run: Run, log: str) -> None:
    code, out, _ = run("tail", log, "-n", "3")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["43", "44", "45"]
    _, out, _ = run("show", "c3", log)
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert not any(line.startswith("record 9:") for line in out.splitlines())
    records = [json.loads(line) for line in run("tail", log, "-n", "2", "--json")[1].splitlines()]
    assert [record["kind"] for record in records] == ["call.outcome", "server.stopped"]
    assert run("tail", log, "-n", "-1")[0] == 2


def test_show_finds_a_call_its_question_and_its_answer(run: Run, log: str) -> None:
    for wanted in ("asked", "answered", "question"):
        code, out, _ = run("show", wanted, log, "--json")
        assert code == 0
        assert [json.loads(line)["seq"] for line in out.splitlines()] == [2, 3, 4]
    assert run("show", "nobody", log)[0] == 1


def test_head_prints_what_an_anchor_holds(run: Run, log: str, place: Path) -> None:
    assert run("head", log, "--json")[1] == (place / "elsewhere" / "anchor").read_text()
    assert re.fullmatch(r"45 [0-9a-f]{64}\n", run("head", log)[1])


def test_ocsf_events_are_chained_and_can_be_checked(run: Run, log: str) -> None:
    code, out, _ = run("export", "--ocsf", log)
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, len(events)) == (0, 43)
    previous = None
    for event in events:
        assert (event["class_uid"], event["type_uid"], event["category_uid"]) == (6003, 600399, 6)
        assert {"activity_id", "severity_id", "time", "actor", "api", "src_endpoint", "metadata"} <= set(
            event
        )
        assert event["metadata"]["profiles"] == ["record_integrity"]
        (attestation,) = event["attestation_list"]
        fingerprint = attestation.pop("fingerprint")
        text = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert fingerprint["value"] == sha256(text.encode()).hexdigest()
        assert attestation.get("prev_event", {}).get("fingerprint") == previous
        previous = fingerprint
    assert [event["status_id"] for event in events[:3]] == [2, 0, 1]
    assert events[0]["status_code"] == "confirmation_required"


def test_cloudevents_have_what_version_1_requires(run: Run, log: str) -> None:
    _, out, _ = run("export", "--cloudevents", log)
    events: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert len(events) == 45
    assert len({event["id"] for event in events}) == 45
    for event in events:
        assert event["specversion"] == "1.0"
        assert event["type"].startswith("mcp_tools.audit.")
        assert event["source"].startswith("file:///")
        assert all(re.fullmatch(r"[a-z0-9]{1,20}", name) for name in event)


def test_tail_follows_across_rotation(place: Path) -> None:
    path = place / "audit.jsonl"
    with AuditLog(path, max_bytes=65536) as log:
        follower = subprocess.Popen(
            [sys.executable, "-c", RUN_IT, "tail", "-n", "1", "-f", "--json", str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["kind"] == "server.started"

        async def write() -> None:
            for number in range(150):
                await log.begin(started(f"c{number}", {"a": "x" * 200, "b": "y" * 200}))

        with anyio.from_thread.start_blocking_portal() as portal:
            future = portal.start_task_soon(write)
            seen = [json.loads(follower.stdout.readline()) for _ in range(150)]
            future.result(WAIT_S)
        follower.kill()
        follower.wait(WAIT_S)
        follower.stdout.close()
    assert [record["seq"] for record in seen] == list(range(2, 152))
    assert "log.rotated" in {record["kind"] for record in seen}


def test_without_a_file_it_is_the_one_of_the_settings(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place))
    AuditLog(place / "mcp_tools" / DEFAULT_NAME).close()
    assert run("head")[1].startswith("2 ")
    AuditLog(place / "named.jsonl").close()
    AuditLog(place / "named.jsonl").close()
    monkeypatch.setenv("MCP_TOOLS_AUDIT_LOG", str(place / "named.jsonl"))
    assert run("head")[1].startswith("4 ")


def test_without_a_command_it_shows_which_there_are(run: Run) -> None:
    code, _, err = run()
    assert code == 2
    assert "verify" in err

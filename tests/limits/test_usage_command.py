"""`mcp-tools usage`: totals, for people and for programs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from mcp_tools.cli import usage as command
from mcp_tools.limits import build_limiter, open_store
from tests.limits.calls import by, run, tool
from tests.limits.redis_process import RedisProcess


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    code = command.usage(parser.parse_args(["usage", *arguments]))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "limits.sqlite3")


def fill(place: str) -> None:
    import anyio

    one = build_limiter([], open_store(place))

    async def calls() -> None:
        for _ in range(3):
            await run(one, cost_usd=0.25, output_tokens=1_000)
        await run(one, tool("fetch"), by("bob\x1b[31m"), sandbox_cpu_s=1.5)

    anyio.run(calls)
    one.close()


def test_people_get_a_table_with_a_sum(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(path)
    code, out, _ = call(capsys, "--limits-store", path)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["tool", "calls", "usd", "cpu", "seconds", "tokens", "in", "tokens", "out"],
        ["fetch", "1", "0.0000", "1.50", "0", "0"],
        ["search", "3", "0.7500", "0.00", "0", "3,000"],
        ["together", "4", "0.7500", "1.50", "0", "3,000"],
    ]


def test_names_cannot_act_on_the_terminal(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(path)
    _, out, _ = call(capsys, "--limits-store", path, "--by", "principal")
    assert "\x1b" not in out
    assert "ada" in out


def test_programs_get_json(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(path)
    _, out, _ = call(capsys, "--limits-store", path, "--by", "principal", "--json", "--days", "92")
    assert json.loads(out)[0] == {
        "principal": "ada",
        "calls": 3,
        "cost_usd": 0.75,
        "sandbox_cpu_s": 0.0,
        "input_tokens": 0,
        "output_tokens": 3_000,
    }
    _, out, _ = call(capsys, "--limits-store", path, "--by", "day", "--json")
    assert sum(each["calls"] for each in json.loads(out)) == 4


def test_where_nothing_was_counted_nothing_is_made(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "--limits-store", path)
    assert (code, out) == (0, "")
    assert "no calls were counted" in err
    assert not Path(path).exists()
    assert call(capsys, "--limits-store", path, "--json")[1] == "[]\n"


def test_totals_that_nobody_keeps_are_a_failure_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "--limits-store", "memory://")
    assert (code, out) == (1, "")
    assert "leave the setting out" in err


def test_a_server_that_is_gone_is_a_failure(
    tmp_path: Path, redis_server: RedisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(redis_server.url)
    assert "search" in call(capsys, "--limits-store", redis_server.url)[1]
    gone = RedisProcess(tmp_path)  # never started
    code, out, err = call(capsys, "--limits-store", gone.url.replace("//", "//user:s3cret@"))
    assert (code, out) == (1, "")
    assert "cannot be reached" in err
    assert "s3cret" not in err


@pytest.mark.parametrize("days", ["0", "-1", "93", "many", "٣"])
def test_days_that_are_not_kept_are_refused(days: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(capsys, "--days", days)

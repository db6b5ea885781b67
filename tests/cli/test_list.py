"""`mcp-tools list`: for people and for programs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mcp_tools import Tool
from mcp_tools.cli.listing import table
from tests.cli.conftest import ROOT, TOOLS, Run


def test_the_table_has_a_line_for_each_tool(run: Run) -> None:
    done = run("list", *TOOLS)
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert "asks" in lines["put"]
    assert "asks" not in lines["echo"]
    assert "Give back what came in." in lines["echo"]
    assert {"read_file", "write_file"} <= set(lines)


def test_a_tag_chooses_and_an_unknown_one_names_the_known(run: Run) -> None:
    assert [line.split()[0] for line in run("list", "--tag", "echo", *TOOLS).out.splitlines()] == ["echo"]
    done = run("list", "--tag", "nothing", *TOOLS)
    assert done.code == 0
    assert "echo, execution, filesystem" in done.err


@pytest.mark.parametrize(
    ("style", "key"), [("json", "parameters"), ("anthropic", "input_schema"), ("openai", "function")]
)
def test_programs_get_json_with_the_schemas(style: str, key: str, run: Run) -> None:
    tools = run("list", "--format", style, *TOOLS).json()
    assert all(key in tool for tool in tools)
    assert len(tools) == len(run("list", *TOOLS).out.splitlines())


def test_descriptions_are_cut_and_cannot_act_on_the_terminal() -> None:
    def nothing() -> None: ...

    tools = [
        Tool("short", "word " * 100, {"type": "object"}, nothing),
        Tool("a_longer_name", "\x1b[31mred\u202e", {"type": "object"}, nothing, requires_confirmation=True),
    ]
    first, second = table(tools, 80).splitlines()
    assert len(first) <= 80
    assert first.endswith("…")
    assert "\\u001b[31mred\\u202e" in second
    assert table([], 80) == ""


def test_a_reader_that_goes_away_is_no_error_to_talk_about(environ: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mcp_tools", "list", "--format", "json", *TOOLS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 1
    process.stderr.close()

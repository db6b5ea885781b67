"""Clients' settings: found on every system, judged, and started only where that is the user's own word."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mcp_tools.doctor import starting
from mcp_tools.doctor.clients import Entry, config_files, is_ours
from mcp_tools.doctor.starting import NotStarted, start
from tests.doctor.conftest import ROOT, Doctor

DESKTOP = ".config/Claude/claude_desktop_config.json"
HELLO = '{"jsonrpc": "2.0", "id": 1, "result": {"serverInfo": {"name": "made-up", "version": "9"}}}'


def paths(
    platform: str, home: str, environ: dict[str, str] | None = None, cwd: str | None = None
) -> list[str]:
    return [file.path for file in config_files(platform, home, environ or {}, cwd)]


def test_where_clients_keep_their_settings() -> None:
    assert paths("linux", "/home/a", cwd="/p") == [
        "/home/a/.config/Claude/claude_desktop_config.json",
        "/home/a/.claude.json",
        "/home/a/.cursor/mcp.json",
        "/home/a/.config/Code/User/mcp.json",
        "/home/a/.config/Code - Insiders/User/mcp.json",
        "/p/.mcp.json",
        "/p/.cursor/mcp.json",
        "/p/.vscode/mcp.json",
    ]
    assert paths("darwin", "/Users/a")[0] == (
        "/Users/a/Library/Application Support/Claude/claude_desktop_config.json"
    )
    assert paths("darwin", "/Users/a")[3] == "/Users/a/Library/Application Support/Code/User/mcp.json"
    windows = paths("win32", "C:\\Users\\a", {"APPDATA": "C:\\Users\\a\\AppData\\Roaming"})
    assert windows[0] == "C:\\Users\\a\\AppData\\Roaming\\Claude\\claude_desktop_config.json"
    assert "C:\\Users\\a\\.cursor\\mcp.json" in windows
    assert "C:\\Users\\a\\AppData\\Roaming\\Code\\User\\mcp.json" in windows
    assert "/etc/a/Claude/claude_desktop_config.json" in paths("linux", "/h", {"XDG_CONFIG_HOME": "/etc/a"})
    assert "/c/.claude.json" in paths("linux", "/h", {"CLAUDE_CONFIG_DIR": "/c"})


def test_a_file_that_is_the_users_and_the_projects_is_looked_at_once() -> None:
    found = [file for file in config_files("linux", "/home/a", {}, "/home/a") if "cursor" in file.path]
    assert [file.is_project for file in found] == [False]


@pytest.mark.parametrize(
    ("name", "command", "arguments", "url", "ours"),
    [
        ("x", "/venv/bin/mcp-tools", ("serve",), "", True),
        ("x", "C:\\venv\\Scripts\\mcp-tools.exe", ("serve",), "", True),
        ("x", "python3", ("-m", "mcp_tools", "serve"), "", True),
        ("x", "uvx", ("--from", "mcp-tools-server", "mcp-tools", "serve"), "", True),
        ("mcp-tools", "", (), "http://127.0.0.1:8000/mcp", True),
        ("mcp-tools", "npx", ("-y", "something-else"), "", False),
        ("files", "npx", ("server-filesystem", "/home/me/mcp-tools-notes"), "", False),
        ("other", "", (), "https://example.com/mcp", False),
    ],
)
def test_which_entry_is_ours(
    name: str, command: str, arguments: tuple[str, ...], url: str, ours: bool
) -> None:
    entry = Entry(name=name, command=command, arguments=arguments, environment={}, url=url)
    assert is_ours(entry) is ours


# --- The command ------------------------------------------------------------------------------


def put(
    environ: dict[str, str], entry: dict[str, Any] | str, place: str = DESKTOP, key: str = "mcpServers"
) -> Path:
    file = Path(environ["HOME"]) / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(entry if isinstance(entry, str) else json.dumps({key: {"mcp-tools": entry}}))
    return file


def program(folder: Path, body: str, name: str = "mcp-tools") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def serves(**environment: str) -> dict[str, Any]:
    return {
        "command": sys.executable,
        "args": ["-m", "mcp_tools", "serve"],
        "env": {"PYTHONPATH": str(ROOT)} | environment,
    }


def test_a_server_that_starts_is_told_with_its_name(no_python: Doctor, environ: dict[str, str]) -> None:
    put(environ, serves())
    finding = no_python().one("clients")
    assert finding["state"] == "ok", finding
    assert "starts (mcp-tools 0.1.0)" in finding["found"]
    assert DESKTOP in finding["name"]


def test_a_server_with_wrong_settings_is_told_with_what_it_said(
    no_python: Doctor, environ: dict[str, str]
) -> None:
    entry = serves()
    entry["args"] += ["--root", "/no/such/folder", "--token-file", "/no/such/file"]
    put(environ, entry)
    said = no_python()
    finding = said.one("clients")
    assert finding["state"] == "problem"
    assert "/no/such/folder" in finding["found"]
    assert said.code == 0, "a client's mistake does not change what holds here"


@pytest.mark.parametrize("kind", ["missing", "not executable"])
def test_a_command_that_cannot_run_is_a_problem(
    kind: str, no_python: Doctor, environ: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "mcp-tools"
    if kind == "not executable":
        path.touch(mode=0o644)
    put(environ, {"command": str(path), "args": ["serve"]})
    finding = no_python().one("clients")
    assert finding["state"] == "problem"
    assert ("cannot be executed" if kind == "not executable" else "does not exist") in finding["found"]


def test_a_command_found_by_path_is_warned_of(
    no_python: Doctor, environ: dict[str, str], tmp_path: Path
) -> None:
    program(tmp_path, f"read line; echo '{HELLO}'")
    put(
        environ,
        {"command": "mcp-tools", "args": ["serve"], "env": {"PATH": f"{tmp_path}:{os.environ['PATH']}"}},
    )
    finding = no_python().one("clients")
    assert finding["state"] == "warning"
    assert str(tmp_path / "mcp-tools") in finding["remedy"]


def test_nothing_that_a_project_names_is_started(
    no_python: Doctor, environ: dict[str, str], tmp_path: Path
) -> None:
    """A folder that somebody else wrote must not be able to run something by being looked at."""
    project = tmp_path / "project"
    project.mkdir()
    marker = tmp_path / "it-ran"
    entry = {"command": str(program(tmp_path, f"touch {marker}; echo '{HELLO}'")), "args": ["serve"]}
    (project / ".mcp.json").write_text(json.dumps({"mcpServers": {"mcp-tools": entry}}))
    (project / ".cursor").mkdir()
    (project / ".cursor/mcp.json").write_text(json.dumps({"mcpServers": {"mcp-tools": entry}}))
    (project / ".vscode").mkdir()
    (project / ".vscode/mcp.json").write_text(json.dumps({"servers": {"mcp-tools": entry}}))
    said = no_python(cwd=project)
    found = [finding["found"] for finding in said.findings("clients")]
    assert len(found) == 3
    assert all("not tried" in text for text in found)
    assert not marker.exists()
    put(environ, entry)
    assert "starts (made-up 9)" in str(no_python(cwd=project).findings("clients"))
    assert marker.exists(), "the user's own file is another matter"


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "sh", "args": ["-c", "touch MARKER; exec mcp-tools serve"]},
        {"command": "PROGRAM", "args": ["call", "write_file"]},
        {"command": "PROGRAM", "args": ["serve", "--transport", "http"]},
        {"command": "PROGRAM", "args": ["serve", "--root", "${workspaceFolder}"]},
    ],
)
def test_what_is_more_than_a_server_on_stdio_is_not_started(
    entry: dict[str, Any], no_python: Doctor, environ: dict[str, str], tmp_path: Path
) -> None:
    marker = tmp_path / "it-ran"
    path = program(tmp_path, f"touch {marker}")
    text = json.dumps({"mcpServers": {"mcp-tools": entry}})
    put(environ, text.replace("MARKER", str(marker)).replace("PROGRAM", str(path)))
    found = no_python().findings("clients")
    assert all(finding["state"] in ("unknown", "ok", "warning") for finding in found)
    assert not marker.exists()


def test_comments_and_spare_commas_are_fine_in_vs_code_and_not_in_claude_desktop(
    no_python: Doctor, environ: dict[str, str]
) -> None:
    text = (
        '{\n// mine\n"%s": {"mcp-tools": {"command": "/nowhere//mcp-tools", /* x */ "args": ["serve",],},},}'
    )
    put(environ, text % "servers", ".config/Code/User/mcp.json")
    put(environ, text % "mcpServers")
    found = {finding["name"].split()[0]: finding for finding in no_python().findings("clients")}
    assert "/nowhere//mcp-tools does not exist" in found["VS"]["found"]
    assert "is not valid JSON (line 2, column 1)" in found["Claude"]["found"]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"mcpServers": []}', '{"mcpServers": {"a": 1}}', "\xff", "[" * 9999]
)
def test_odd_files_are_findings(text: str, no_python: Doctor, environ: dict[str, str]) -> None:
    file = put(environ, "")
    file.write_bytes(text.encode("latin-1"))
    said = no_python()
    assert said.code == 0
    assert "could not be looked at" not in said.out
    assert said.findings("clients")


def test_without_any_client_the_words_to_add_are_shown(no_python: Doctor) -> None:
    finding = no_python().one("clients")
    assert finding["state"] == "warning"
    assert '"args": ["serve", "--root"' in finding["remedy"]


def test_claude_codes_entries_for_this_project_count(
    no_python: Doctor, environ: dict[str, str], tmp_path: Path
) -> None:
    entry = {"command": "/nowhere/mcp-tools", "args": ["serve"]}
    projects = {str(tmp_path): {"mcpServers": {"mine": entry}}, "/other": {"mcpServers": {"other": entry}}}
    put(environ, json.dumps({"projects": projects}), ".claude.json")
    finding = no_python().one("clients")
    assert "Claude Code: mine" in finding["name"]
    assert finding["state"] == "problem"


# --- Starting ---------------------------------------------------------------------------------


def test_what_a_server_leaves_behind_is_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"sleep 300 > /dev/null 2>&1 < /dev/null & echo $! > {pids}; read line; echo '{HELLO}'"
    began_s = time.monotonic()
    assert start(str(program(tmp_path, body)), [], {}, {"PATH": os.environ["PATH"]}, str(tmp_path))
    while is_running(int(pids.read_text())):
        assert time.monotonic() - began_s < 10


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("echo hello", "no answer of an MCP server"),
        ("echo it broke >&2; exit 7", "exit code 7 and said: it broke"),
        ("head -c 3000000 /dev/zero", "no answer of an MCP server"),
        ("head -c 3000000 /dev/zero >&2", "exit code"),
        ("echo '{\"result\": []}'", "no answer of an MCP server"),
    ],
)
def test_what_is_no_server_is_refused(body: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(NotStarted, match=word):
        start(str(program(tmp_path, body)), [], {}, {"PATH": os.environ["PATH"]}, str(tmp_path))


def test_a_server_that_says_nothing_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "HELLO_S", 0.5)
    pids = tmp_path / "pids"
    body = f"trap '' TERM HUP; sleep 300 & echo $! $$ > {pids}; wait"
    began_s = time.monotonic()
    with pytest.raises(NotStarted, match=r"no answer within 0\.5 s"):
        start(str(program(tmp_path, body)), [], {}, {"PATH": os.environ["PATH"]}, str(tmp_path))
    assert time.monotonic() - began_s < 10
    while any(is_running(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() - began_s < 10


def is_running(pid: int) -> bool:
    """Whether it runs; what is dead and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_only_what_a_client_hands_on_is_inherited(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    body = f"env > {seen}; read line; echo '{HELLO}'"
    inherited = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SECRET": "x", "MCP_TOOLS_ROOTS": "/"}
    assert start(str(program(tmp_path, body)), [], {"MINE": "1"}, inherited, str(tmp_path)) == "made-up 9"
    names = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    assert {"PATH", "HOME", "MINE"} <= names
    assert not names & {"SECRET", "MCP_TOOLS_ROOTS"}

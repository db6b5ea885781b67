"""`mcp-tools serve`: from flags to a server that answers, in whatever surroundings it is started."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Run, command
from tests.cli.wire import WAIT_S, Wire

Start = Callable[..., Wire]


@pytest.fixture
def start(environ: dict[str, str]) -> Iterator[Start]:
    """Start servers, each with pipes; whatever is left of them at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(*arguments: str, through: str = "", **options: Any) -> Wire:
        options = {"stderr": subprocess.PIPE, "env": environ, "cwd": ROOT} | options
        process = subprocess.Popen(
            command("serve", *arguments, through=through),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            **options,
        )
        started.append(process)
        return Wire(process)

    yield start_one
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def said(wire: Wire) -> str:
    assert wire.process.stderr is not None
    return wire.process.stderr.read().decode()


# --- Settings reach the server ----------------------------------------------------------------


def test_a_file_in_an_allowed_folder_is_read_and_the_end_of_stdin_ends_it(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "note.txt").write_text("hello")
    wire = start("--stdio", "--root", str(tmp_path))
    assert wire.start()["serverInfo"]["name"] == "mcp-tools"
    assert wire.call("read_file", path="note.txt") == (False, "hello")
    assert wire.end() == (0, b"")


def test_without_a_root_it_starts_and_says_how_to_allow_one(start: Start) -> None:
    wire = start()
    wire.start()
    is_error, text = wire.call("read_file", path="note.txt")
    assert is_error
    assert "--root" in text
    wire.end()
    assert "no folder is allowed" in said(wire)


def test_rules_from_flags_hold_over_the_wire(start: Start, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    wire = start("--root", str(tmp_path), "--deny", "read_file(*.txt)", "--deny", "write_file")
    wire.start()
    is_error, text = wire.call("read_file", path="note.txt")
    assert is_error
    assert "deny rule" in text
    names = [tool["name"] for tool in wire.request("tools/list")["result"]["tools"]]
    assert "write_file" not in names
    assert "read_file" in names


def test_a_rule_that_matches_no_tool_is_pointed_out(start: Start, tmp_path: Path) -> None:
    wire = start("--root", str(tmp_path), "--deny", "writ_file")
    wire.start()
    wire.end()
    assert "deny rule 'writ_file' matches no tool" in said(wire)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--root", __file__], "test_serve.py"),
        (["--transport", "http", "--port", "0", "--host", "0.0.0.0"], "--token-file"),
        (["--transport", "http", "--port", "70000"], "--port is '70000'; use a whole number"),
        (["--transport", "http", "--port", "0", "--token-file", "/nowhere"], "/nowhere"),
        (["--transport", "websocket"], "invalid choice"),
    ],
)
def test_what_cannot_be_served_is_refused_at_start_by_name(
    arguments: list[str], message: str, run_apart: Run
) -> None:
    done = run_apart("serve", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


# --- More tools -------------------------------------------------------------------------------


def test_what_tools_print_while_they_load_does_not_reach_the_protocol(
    start: Start, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "noisy.py").write_text(
        "import os\nfrom mcp_tools import ToolRegistry\n"
        "print('printed'); os.write(1, b'written\\n'); os.system('echo from a child')\n"
        "registry = ToolRegistry()\n"
        "@registry.register\ndef hello() -> str:\n    'Say hello.'\n    return 'hello'\n"
    )
    # The attack works: without care the same module writes to stdout.
    bare = subprocess.run(
        [sys.executable, "-c", "import noisy"], cwd=tmp_path, env=environ, capture_output=True, check=True
    )
    assert b"printed" in bare.stdout
    assert b"written" in bare.stdout
    wire = start("--tools", "noisy:registry", cwd=tmp_path)
    wire.start()
    assert wire.call("hello") == (False, "hello")
    assert wire.end() == (0, b"")
    err = said(wire)
    assert "printed" in err
    assert "from a child" in err


def test_nothing_in_the_current_folder_takes_the_place_of_a_package(
    start: Start, environ: dict[str, str], tmp_path: Path
) -> None:
    for name in ("anyio", "pydantic", "tomllib", "mcp"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken over')")
    bare = subprocess.run(
        [sys.executable, "-c", "import anyio"], cwd=tmp_path, env=environ, capture_output=True, check=False
    )
    assert bare.stderr == b"taken over\n"  # the attack works on a plain `python -c` and `-m`
    environ.pop("PYTHONPATH")
    (tmp_path / "more.py").write_text("def add(registry): pass")
    installed = [str(Path(sys.executable).with_name("mcp-tools")), "serve", "--tools", "more:add"]
    done = subprocess.run(
        installed, cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"taken over" not in done.stderr


@pytest.fixture
def package(environ: dict[str, str], tmp_path: Path) -> Callable[[str], None]:
    """Install a made-up package whose entry point registers a tool of a given name."""

    def install(tool: str) -> None:
        (tmp_path / "weather_tools.py").write_text(
            f"def add(registry):\n    @registry.register(name={tool!r})\n"
            "    def sunny() -> str:\n        'Say what the weather is.'\n        return 'sunny'\n"
        )
        info = tmp_path / "weather_tools-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weather-tools\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[mcp_tools.tools]\nweather = weather_tools:add\n")
        environ["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"

    return install


def test_the_tools_of_an_installed_package_are_found_and_named_in_the_log(
    package: Callable[[str], None], start: Start
) -> None:
    package("weather")
    wire = start()
    wire.start()
    assert wire.call("weather") == (False, "sunny")
    wire.end()
    assert "loaded the tools of weather-tools: weather" in said(wire)


def test_a_package_whose_tool_has_a_taken_name_is_refused_by_name(
    package: Callable[[str], None], run_apart: Run
) -> None:
    package("read_file")
    done = run_apart("serve")
    assert done.code == 2
    assert "weather-tools" in done.err
    assert "read_file" in done.err
    assert "Traceback" not in done.err


# --- B-32: odd surroundings -------------------------------------------------------------------


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LANG": "nowhere.latin"}])
def test_it_serves_in_any_locale(
    locale: dict[str, str], start: Start, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "größe 大.txt").write_text("Größe 大")
    environ = {"PATH": environ["PATH"], "PYTHONPATH": str(ROOT)}
    wire = start("--root", str(tmp_path), "--no-audit", env=environ | locale)
    wire.start()
    assert wire.call("read_file", path="größe 大.txt") == (False, "Größe 大")
    assert wire.end()[0] == 0


def test_where_names_cannot_be_utf_8_it_says_so(
    start: Start, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "plain.txt").write_text("Größe 大")
    wire = start("--root", str(tmp_path), env=environ | {"PYTHONUTF8": "0", "LC_ALL": "C"})
    wire.start()
    assert wire.call("read_file", path="plain.txt") == (False, "Größe 大")
    wire.end()
    assert "PYTHONUTF8=1" in said(wire)


def test_it_serves_with_stderr_closed(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hello")
    wire = start("--root", str(tmp_path), "--log-level", "debug", through='exec "$@" 2>&-')
    wire.start()
    assert wire.call("read_file", path="a") == (False, "hello")
    assert wire.call("read_file", path="b")[0]  # refused, which is logged
    assert wire.end() == (0, b"")


def test_it_serves_when_nobody_reads_stderr_and_the_pipe_is_full(start: Start, tmp_path: Path) -> None:
    wire = start("--root", str(tmp_path), "--log-level", "debug")
    wire.start()
    name = "x" * 200
    for _ in range(600):  # some 100 bytes of log each; a pipe holds 64 KiB
        assert wire.call("read_file", path=name)[0]
    assert wire.end()[0] == 0


def test_it_serves_from_a_deleted_folder(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    (tmp_path / "a").write_text("hello")
    wire = start("--root", str(tmp_path), through=f'cd {folder} && rmdir {folder} && exec "$@"')
    wire.start()
    assert wire.call("read_file", path="a") == (False, "hello")
    assert wire.end()[0] == 0


def test_a_relative_root_from_a_deleted_folder_says_why_not(run_apart: Run, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    done = run_apart("serve", "--root", "docs", through=f'cd {folder} && rmdir {folder} && exec "$@"')
    assert done.code == 2
    assert "the current folder no longer exists" in done.err


@pytest.mark.parametrize(("closed", "name"), [("<&-", "stdin"), (">&-", "stdout")])
def test_without_stdin_or_stdout_it_says_why_it_cannot_serve(closed: str, name: str, run_apart: Run) -> None:
    done = run_apart("serve", through=f'exec "$@" {closed}')
    assert (done.code, done.out) == (2, "")
    assert f"{name} is closed" in done.err


def test_started_by_a_person_at_a_terminal_it_says_what_it_is(environ: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mcp_tools", "serve"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        cwd=ROOT,
    )
    os.close(theirs)
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline().decode() for _ in range(2)]
        assert any("for a client to start" in line for line in lines)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=WAIT_S)
        assert (process.returncode, out) == (130, b"")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_two_servers_on_the_same_folder_do_not_mind_each_other(start: Start, tmp_path: Path) -> None:
    """B-34: clients start a second one before the first is gone."""
    (tmp_path / "a").write_text("hello")
    one, two = start("--root", str(tmp_path)), start("--root", str(tmp_path))
    for wire in (one, two):
        wire.start()
    for wire in (one, two):
        assert wire.call("read_file", path="a") == (False, "hello")
        assert wire.end()[0] == 0


# --- What is loaded ---------------------------------------------------------------------------


def test_serving_over_stdio_loads_nothing_it_does_not_need(environ: dict[str, str], tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import json, os, sys
        from mcp_tools.cli.main import main
        report = os.dup(1)
        main(["serve", "--root", sys.argv[1]])
        os.write(report, json.dumps(sorted(sys.modules)).encode())
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environ,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    loaded = set(json.loads(done.stdout))
    # The SDK itself brings starlette, uvicorn and jsonschema.
    unneeded = {"docker", "requests", "sandbox", "trio", "tomllib", "rich", "mcp_tools.server.http"}
    assert loaded & unneeded == set()
    assert "mcp_tools.server.stdio" in loaded


# --- HTTP -------------------------------------------------------------------------------------


def listening(wire: Wire) -> str:
    """The first URL that the server announces."""
    assert wire.process.stderr is not None
    while line := wire.process.stderr.readline().decode():
        if "listening on" in line:
            return line.split("listening on ")[1].split()[0]
    raise AssertionError("it never listened")


def ping(url: str, token: str | None) -> int:
    """Ask the server what it is, as the 2026-07-28 protocol does; return the HTTP status."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": meta}}
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "server/discover",
    }
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_http_asks_for_the_token_of_the_file_and_of_the_variable(
    start: Start, environ: dict[str, str], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("ana:the-token-of-ana-1234\n")
    tokens.chmod(0o600)
    environ["MCP_TOOLS_TOKEN"] = "the-token-in-the-variable"
    wire = start("--transport", "http", "--port", "0", "--token-file", str(tokens))
    url = listening(wire)
    assert url.endswith("/mcp")
    assert ping(url, "the-token-of-ana-1234") == 200
    assert ping(url, "the-token-in-the-variable") == 200
    assert ping(url, None) == 401
    assert ping(url, "the-token-of-nobody-12") == 401
    wire.process.send_signal(signal.SIGTERM)
    assert wire.process.wait(WAIT_S) == 0


def test_a_port_in_use_is_refused_by_number(run_apart: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_apart("serve", "--transport", "http", "--port", str(port))
    assert done.code == 2
    assert str(port) in done.err
    assert "Traceback" not in done.err

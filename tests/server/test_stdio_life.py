"""How a stdio server ends, and what it can be started with (B-09, B-31, B-32). Always within two seconds."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.peers import FIXTURE_SERVER, environment
from tests.server.wire import END_S, HANDSHAKE, WAIT_S, Wire

INITIALIZE = (
    json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HANDSHAKE}).encode() + b"\n"
)
ECHO = (
    b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n'
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"x"}}}\n'
)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until_gone(pid: int, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while is_running(pid):
        assert time.monotonic() < deadline, f"{pid} is still running"
        time.sleep(0.01)


def stop(wire: Wire, how: str) -> None:
    """Tell the server to end."""
    if how == "EOF":
        assert wire.process.stdin is not None
        wire.process.stdin.close()
    else:
        wire.process.send_signal(signal.Signals[how])


@pytest.mark.parametrize(("how", "code"), [("EOF", 0), ("SIGTERM", 0), ("SIGINT", 130), ("SIGHUP", 0)])
def test_the_server_ends_at_once_and_records_what_it_cancelled(tmp_path: Path, how: str, code: int) -> None:
    with Wire(tmp_path) as wire:
        wire.initialize(elicitation={})
        wire.call(1, "blocks", marker="a")
        with_thread = how in ("EOF", "SIGTERM")  # it costs the whole grace
        if with_thread:
            wire.call(2, "blocks_a_thread", marker="thread")
        wire.call(3, "needs_yes", line="never")
        wire.message(lambda m: m.get("method") == "elicitation/create")
        wire.call(4, "spawns", marker="b")
        for marker in ["a", "b"] + ["thread"] * with_thread:
            wire.until(f"begun {marker}", wire.effects)
        [child] = [int(line.split()[1]) for line in wire.effects() if line.startswith("child ")]
        assert is_running(child)
        begun = time.monotonic()
        stop(wire, how)
        assert wire.process.wait(WAIT_S) == code
        assert time.monotonic() - begun < END_S
        until_gone(child, 1)
        assert "cancelled a" in wire.effects()
        assert not any(line.startswith("wrote") for line in wire.effects())
        assert sorted(line for line in wire.calls() if "confirmation_required" not in line) == [
            "blocks cancelled cancelled",
            *["blocks_a_thread cancelled cancelled"] * with_thread,
            "needs_yes cancelled cancelled",
            "spawns cancelled cancelled",
        ]


@pytest.mark.parametrize("how", ["EOF", "SIGTERM"])
def test_a_tool_that_blocks_the_event_loop_cannot_keep_the_server_alive(tmp_path: Path, how: str) -> None:
    with Wire(tmp_path) as wire:
        wire.initialize()
        wire.call(1, "blocks_the_loop", marker="x")
        wire.until("begun x", wire.effects)
        begun = time.monotonic()
        stop(wire, how)
        assert wire.process.wait(WAIT_S) == 0
        assert time.monotonic() - begun < END_S


_PARENT = """
    import os, subprocess, sys, threading, time
    held = int(sys.argv[1])   # the other end of the server's stdin: it stays open when this process dies
    def start():
        server = subprocess.Popen(sys.argv[2:], stdin=held, stdout=subprocess.DEVNULL)
        print(server.pid, flush=True)
    thread = threading.Thread(target=start)
    thread.start(); thread.join()   # the thread that started the server ends; this process does not
    time.sleep(100)
"""


def test_the_server_ends_with_its_parent_but_not_with_the_thread_that_started_it(tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-c", textwrap.dedent(_PARENT), str(read_fd)]
    command += [sys.executable, FIXTURE_SERVER]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, pass_fds=[read_fd], env=environment(tmp_path), start_new_session=True
    )
    try:
        os.close(read_fd)
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        os.write(write_fd, INITIALIZE + ECHO.replace(b"echo", b"blocks").replace(b"text", b"marker"))
        deadline = time.monotonic() + WAIT_S
        while not (tmp_path / "effects").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        assert is_running(server)
        parent.kill()
        parent.wait(WAIT_S)
        until_gone(server, END_S)
        assert "blocks cancelled cancelled" in (tmp_path / "calls").read_text()
    finally:
        parent.kill()
        parent.wait(WAIT_S)
        parent.stdout.close()
        os.close(write_fd)


_SLOW_START = """
    import os, sys, time
    parent = os.getppid()
    print(os.getpid(), flush=True)
    while os.getppid() == parent:   # what loading the SDK takes, as long as it takes the parent to die
        time.sleep(0.01)
    from mcp_tools import ToolRegistry
    from mcp_tools.server import run
    sys.exit(run(ToolRegistry(), parent=parent))
"""


def test_a_parent_that_dies_while_the_server_starts_ends_it_too(tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    start = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
    command = [sys.executable, "-c", start, sys.executable, "-c", textwrap.dedent(_SLOW_START)]
    parent = subprocess.Popen(command, stdin=read_fd, stdout=subprocess.PIPE, env=environment(tmp_path))
    try:
        os.close(read_fd)
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        assert is_running(server)
        parent.kill()
        parent.wait(WAIT_S)
        until_gone(server, END_S + 10)  # with the time that loading takes on a busy machine
    finally:
        parent.kill()
        parent.wait(WAIT_S)
        parent.stdout.close()
        os.close(write_fd)


def test_a_client_that_closes_its_end_of_stdout_ends_the_server(tmp_path: Path) -> None:
    with Wire(tmp_path, reads=False) as wire:
        wire.write(INITIALIZE)
        assert wire.process.stdout is not None
        wire.process.stdout.readline()
        wire.process.stdout.close()
        wire.write(ECHO)
        assert wire.process.wait(WAIT_S) == 0


def serve_once(folder: Path, data: bytes, **popen: Any) -> tuple[int, list[dict[str, Any]]]:
    """Run a server on this input to its end; return the exit code and what it said."""
    process = subprocess.Popen(
        **{
            "args": [sys.executable, FIXTURE_SERVER],
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        | {"env": environment(folder)}
        | popen,
    )
    out, _ = process.communicate(data if process.stdin is not None else None, timeout=WAIT_S)
    return process.returncode, [json.loads(line) for line in (out or b"").splitlines()]


def assert_served(code: int, messages: list[dict[str, Any]]) -> None:
    assert code == 0
    assert [message["id"] for message in messages] == [0, 1]
    assert messages[1]["result"]["content"] == [{"type": "text", "text": "x"}]


def test_calls_piped_in_are_answered_before_the_end(tmp_path: Path) -> None:
    assert_served(*serve_once(tmp_path, INITIALIZE + ECHO))


def test_stdin_and_stdout_can_be_files(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(INITIALIZE + ECHO)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        code, _ = serve_once(tmp_path, b"", stdin=source, stdout=sink)
    assert_served(code, [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()])


def test_stdin_can_be_empty(tmp_path: Path) -> None:
    assert serve_once(tmp_path, b"", stdin=subprocess.DEVNULL) == (0, [])


def test_stdin_and_stdout_can_be_one_socket(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, FIXTURE_SERVER], stdin=theirs, stdout=theirs, env=environment(tmp_path)
        )
        theirs.close()
        ours.settimeout(WAIT_S)
        call = ECHO.replace(b'"x"', b'"' + b"y" * 900_000 + b'"')
        ours.sendall(INITIALIZE + call)
        with ours.makefile("rb") as lines:
            assert json.loads(lines.readline())["id"] == 0
            time.sleep(0.2)  # the answer fills the socket
            assert len(json.loads(lines.readline())["result"]["content"][0]["text"]) == 900_000
        ours.shutdown(socket.SHUT_WR)
        assert process.wait(WAIT_S) == 0


def test_stdin_can_be_a_terminal(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, FIXTURE_SERVER],
            stdin=terminal,
            stdout=subprocess.PIPE,
            env=environment(tmp_path),
        )
        os.close(terminal)
        assert process.stdout is not None
        with process.stdout:
            os.write(controller, INITIALIZE)
            assert json.loads(process.stdout.readline())["id"] == 0
            os.write(controller, b"\x04")  # what Ctrl-D sends
            assert process.wait(WAIT_S) == 0
    finally:
        os.close(controller)


@pytest.mark.parametrize(
    "redirect", ["2>&-", "2>/dev/full"], ids=["closed stderr", "stderr that cannot be written"]
)
def test_stderr_is_not_needed(tmp_path: Path, redirect: str) -> None:
    noisy = ECHO.replace(b'"echo"', b'"noisy"').replace(b'{"text":"x"}', b"{}")
    code, messages = serve_once(
        tmp_path,
        INITIALIZE + noisy + ECHO.splitlines()[1].replace(b'"id":1', b'"id":2') + b"\n",
        args=["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, FIXTURE_SERVER],
    )
    assert code == 0
    assert {message["id"] for message in messages} == {0, 1, 2}
    [echo] = [message for message in messages if message["id"] == 2]
    assert echo["result"]["content"] == [{"type": "text", "text": "x"}]


@pytest.mark.parametrize("redirect", ["<&-", ">&-"])
def test_without_stdin_or_stdout_it_says_so(tmp_path: Path, redirect: str) -> None:
    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, FIXTURE_SERVER]
    done = subprocess.run(
        command, capture_output=True, env=environment(tmp_path), timeout=WAIT_S, check=False
    )
    assert done.returncode != 0
    assert b"is closed" in done.stderr


def test_locale_and_folder_do_not_matter(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    text = "grüße ☃"
    call = ECHO.replace(b'"x"', json.dumps(text, ensure_ascii=False).encode())
    command = 'cd "$0" && rmdir "$0" && exec "$@"'
    code, messages = serve_once(
        tmp_path,
        INITIALIZE + call,
        args=["sh", "-c", command, str(gone), sys.executable, FIXTURE_SERVER],
        env=environment(tmp_path)
        | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    )
    assert code == 0
    assert messages[1]["result"]["content"][0]["text"] == text


def test_the_pipes_stay_blocking_for_whoever_shares_them(tmp_path: Path) -> None:
    with Wire(tmp_path, reads=False) as wire:
        wire.write(INITIALIZE)
        assert wire.process.stdout is not None
        wire.process.stdout.readline()
        for fd in (3, 4, 5, 6):
            flags = Path(f"/proc/{wire.process.pid}/fdinfo/{fd}")
            target = Path(f"/proc/{wire.process.pid}/fd/{fd}")
            if target.exists() and os.readlink(target).startswith("pipe:"):
                assert not int(flags.read_text().split("flags:")[1].split()[0], 8) & os.O_NONBLOCK
        assert not fcntl.fcntl(wire.process.stdout, fcntl.F_GETFL) & os.O_NONBLOCK


_LIBRARY = """
    import asyncio, sys
    from mcp_tools import ToolRegistry, serve
    registry = ToolRegistry()
    @registry.register
    def hello() -> str:
        "Say hello."
        return "hello"
    asyncio.run(serve(registry))
    print("the program goes on", file=sys.stderr)
"""


@pytest.mark.parametrize(("how", "code"), [("EOF", 0), ("SIGTERM", -signal.SIGTERM)])
def test_a_program_that_serves_goes_on_after_eof_and_ends_by_its_signal(how: str, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_LIBRARY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(INITIALIZE)
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["id"] == 0
    if how == "EOF":
        process.stdin.close()
        process.stdin = None
    else:
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == code
    assert (b"the program goes on" in errors) == (how == "EOF")


async def test_a_second_server_on_the_same_streams_is_refused() -> None:
    from mcp_tools import ToolRegistry, serve
    from mcp_tools.server.stdio import standard_streams

    with standard_streams(), pytest.raises(RuntimeError, match="being served already"):
        await serve(ToolRegistry())
    with pytest.raises(ValueError, match="stdio, sse, http"):
        await serve(ToolRegistry(), "carrier pigeon")  # type: ignore[arg-type]

"""The tool as clients and the terminal see it, and what is left when the server ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.cli.conftest import ROOT, command
from tests.cli.wire import Wire
from tests.output.pictures import png
from tests.server.peers import text_of


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}


def starting(*arguments: str, environ: dict[str, str]) -> StdioServerParameters:
    program, *rest = command("serve", *arguments)
    return StdioServerParameters(command=program, args=rest, env=environ)


@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
async def test_a_client_gets_text_data_and_pictures(era: Any, environ: dict[str, str]) -> None:
    """The SDK's client checks the data against the published schema."""
    code = f"open('/tmp/out/a.png', 'wb').write({png()!r})\nprint('done')\n{{'a': 1}}"
    with anyio.fail_after(30):
        async with Client(starting(environ=environ), mode=era) as client:
            (tool,) = [t for t in (await client.list_tools()).tools if t.name == "execute_python"]
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint
            assert "standard library" in (tool.description or "")
            result = await client.call_tool("execute_python", {"code": code})
            failed = await client.call_tool("execute_python", {"code": "1/0", "session": "s"})
            refused = await client.call_tool("execute_python", {"code": "1", "timeout_seconds": 31})
    assert not result.is_error
    assert "done\n" in text_of(result)
    (picture,) = [block for block in result.content if isinstance(block, types.ImageContent)]
    assert picture.mime_type == "image/png"
    assert result.structured_content is not None
    assert result.structured_content["value"] == "{'a': 1}"
    assert not failed.is_error
    assert failed.structured_content is not None
    assert failed.structured_content["exception"] == "ZeroDivisionError"
    assert text_of(failed).startswith("[failed: ")
    assert refused.is_error
    assert "30" in text_of(refused)


def test_at_the_terminal_code_can_be_called(environ: dict[str, str]) -> None:
    done = subprocess.run(
        command("call", "execute_python", "--arg", "code=print(6 * 7)", "--arg", 'files={"a": "x"}'),
        env=environ,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[ok]\n[stdout]\n42\n", "")


# --- Sessions over HTTP -----------------------------------------------------------------------


@asynccontextmanager
async def http_server(environ: dict[str, str], *arguments: str) -> AsyncIterator[str]:
    process = await anyio.open_process(
        command("serve", "--transport", "http", "--port", "0", *arguments), env=environ, stdout=None, cwd=ROOT
    )
    try:
        assert process.stderr is not None
        said = b""
        while b"/mcp" not in said:
            said += await process.stderr.receive()
        yield said.decode().split("listening on ")[1].split()[0]
    finally:
        process.terminate()
        with anyio.fail_after(10, shield=True):
            await process.aclose()


async def test_connections_of_one_principal_do_not_share_sessions_where_there_are_connections(
    environ: dict[str, str],
) -> None:
    """From 2026-07-28 on HTTP knows none; the document says what that means."""
    seen = {}
    with anyio.fail_after(40):
        async with http_server(environ) as url:
            for era in ("legacy", "2026-07-28"):
                async with (
                    Client(streamable_http_client(url), mode=era) as one,
                    Client(streamable_http_client(url), mode=era) as two,
                ):
                    call = {"code": "x = 1", "session": "main"}
                    await one.call_tool("execute_python", call)
                    call["code"] = "'x' in globals()"
                    seen[era] = [
                        (await client.call_tool("execute_python", call)).structured_content
                        for client in (one, two)
                    ]
    values = {era: [data["value"] for data in both if data is not None] for era, both in seen.items()}
    assert values == {"legacy": ["True", "False"], "2026-07-28": ["True", "True"]}


def test_code_with_a_network_beside_a_listener_without_tokens_stops_the_start(
    environ: dict[str, str],
) -> None:
    """And with a token, or where a rule takes the tool away, it starts."""

    def start(*arguments: str, **more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command("serve", "--transport", "http", "--port", "0", *arguments),
            env=environ | more,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    refused = start("--python-network")
    served = [
        start("--python-network", MCP_TOOLS_TOKEN="a-token-of-some-length"),
        start("--python-network", "--deny", "execute_python"),
    ]
    _, said = refused.communicate(timeout=60)
    assert refused.returncode == 2
    for told in (b"execute_python", b"python_network", b"--token-file", b"MCP_TOOLS_TOKEN"):
        assert told in said
    for process in served:
        assert process.stderr is not None
        with process:
            try:
                assert any(b"listening on" in line for line in process.stderr)
            finally:
                process.terminate()
        assert process.returncode == 0


# --- The end of the server --------------------------------------------------------------------


def below(pid: int) -> list[int]:
    """The processes that descend from this one."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *below(child)]
    return found


def until_gone(pids: list[int], within_s: float) -> list[int]:
    end = time.monotonic() + within_s
    while pids and time.monotonic() < end:
        pids = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        time.sleep(0.02)
    return pids


@pytest.mark.parametrize("how", ["end of stdin", "SIGTERM", "SIGTERM in a call"])
def test_the_sandbox_ends_with_the_server(how: str, environ: dict[str, str]) -> None:
    process = subprocess.Popen(
        command("serve"),
        env=environ,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    with process:
        try:
            wire = Wire(process)
            wire.start()
            assert below(process.pid) == []  # it starts with the first call
            is_error, said = wire.call("execute_python", code="x = 1", session="s")
            assert (is_error, said.split("\n")[0]) == (False, "[ok]")
            left = below(process.pid)
            assert left
            started = time.monotonic()
            if how == "end of stdin":
                assert wire.end() == (0, b"")
            else:
                if how.endswith("call"):
                    params = {"name": "execute_python", "arguments": {"code": "while True: pass"}}
                    wire.send({"jsonrpc": "2.0", "id": 99, "method": "tools/call", "params": params})
                    wire.request("ping")  # answered after the call was taken up
                    left += below(process.pid)
                started = time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == 0
            assert time.monotonic() - started < 2.5
        finally:
            process.kill()
    assert until_gone(left, 1.0) == []


def test_describing_the_tool_loads_no_sandbox(environ: dict[str, str]) -> None:
    """The server's start stays what it was; the first call pays."""
    script = (
        "import sys\nfrom mcp_tools import ToolSystem\nsystem = ToolSystem.with_builtins()\n"
        "system.get_tools_for_api()\nsystem.close()\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'sandbox'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"

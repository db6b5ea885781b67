"""The command with everything on: records, limits, metrics, large results and deadlines reach a client."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("--tools", "tests.production.tools:registry", "--no-python")
ACCOUNT = "mcp-tools/account"
HANDSHAKE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    },
}
TOKEN = "a-token-of-enough-characters"


def environ(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT)}


def log_of(folder: Path) -> Path:
    return folder / ".local" / "state" / "mcp_tools" / "audit" / "audit.jsonl"


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log_of(folder).read_text().splitlines()]
    return [each for each in found if each["kind"] == kind]


def mcp_tools(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mcp_tools", *arguments],
        cwd=ROOT,
        env=environ(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@asynccontextmanager
async def client(folder: Path, *flags: str) -> AsyncIterator[Client]:
    arguments = ["-m", "mcp_tools", "serve", *TOOLS, *flags]
    server = StdioServerParameters(command=sys.executable, args=arguments, env=environ(folder), cwd=str(ROOT))
    with anyio.fail_after(60):
        async with Client(server) as connected:
            yield connected


def text_of(result: types.CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, types.TextContent))


def account(result: types.CallToolResult) -> dict[str, Any]:
    found: dict[str, Any] = (result.meta or {})[ACCOUNT]
    return found


async def test_calls_that_are_malformed_are_recorded_too(tmp_path: Path) -> None:
    """G-11."""
    meta = {"mcp-tools/idempotencyKey": ""}
    bad: list[Any] = [
        {},
        {"name": 5},
        {"name": "echo", "arguments": [1]},
        {"name": "echo", "arguments": {"text": "x"}, "_meta": meta},
        "nothing",
        None,
    ]
    lines = [HANDSHAKE, {"jsonrpc": "2.0", "method": "notifications/initialized"}]
    for number, params in enumerate(bad, 2):
        lines.append({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})
    command = [sys.executable, "-m", "mcp_tools", "serve", *TOOLS]
    server = await anyio.to_thread.run_sync(
        partial(
            subprocess.run,
            command,
            input="".join(f"{json.dumps(line)}\n" for line in lines).encode(),
            cwd=ROOT,
            env=environ(tmp_path),
            capture_output=True,
            timeout=60,
            check=False,
        )
    )
    answers = [json.loads(line) for line in server.stdout.splitlines()]
    codes = {answer["id"]: answer["error"]["code"] for answer in answers if "error" in answer}
    assert codes == dict.fromkeys(range(2, 2 + len(bad)), -32602)
    found = records(tmp_path, "call.outcome")
    assert sorted(record["tool"] for record in found) == ["", "", "", "5", "echo", "echo"]
    assert {record["error_code"] for record in found} == {"invalid_arguments"}
    assert records(tmp_path, "call.intent") == []


async def test_each_call_is_recorded_before_and_after_and_the_log_is_whole(tmp_path: Path) -> None:
    async with client(tmp_path, "--audit-redact", "Text") as connected:
        await connected.call_tool("echo", {"text": "a private thing"})
        refused = await connected.call_tool("echo", {"text": 5})
        assert refused.is_error
    (intent,) = records(tmp_path, "call.intent")
    ran, not_run = records(tmp_path, "call.outcome")
    assert intent["call_id"] == ran["call_id"]
    assert (ran["status"], not_run["error_code"]) == ("success", "invalid_arguments")
    assert "a private thing" not in log_of(tmp_path).read_text()
    assert log_of(tmp_path).stat().st_mode & 0o777 == 0o600
    verified = mcp_tools(tmp_path, "audit", "verify")
    assert verified.returncode == 0, verified.stdout
    lines = log_of(tmp_path).read_text().splitlines(keepends=True)
    log_of(tmp_path).write_text("".join([*lines[:1], *lines[2:]]))
    assert mcp_tools(tmp_path, "audit", "verify").returncode == 1


async def test_calls_in_flight_at_a_kill_are_in_the_log(tmp_path: Path) -> None:
    async with client(tmp_path, "--allow", "*") as connected:
        await connected.call_tool("echo", {"text": "before"})
        (started,) = records(tmp_path, "server.started")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connected.call_tool, "late", {"path": str(tmp_path / "effect")})
            while len(records(tmp_path, "call.intent")) < 2:  # noqa: ASYNC110 - another process writes it
                await anyio.sleep(0.01)
            os.kill(started["pid"], signal.SIGKILL)
            tasks.cancel_scope.cancel()
    verified = mcp_tools(tmp_path, "audit", "verify", "--json")
    assert verified.returncode == 0
    assert len(json.loads(verified.stdout)["unfinished"]) == 1
    await anyio.sleep(3.2)  # as long as the function would have taken
    assert not (tmp_path / "effect").exists()


def test_a_log_that_cannot_be_written_refuses_the_start(tmp_path: Path) -> None:
    said = mcp_tools(tmp_path, "serve", *TOOLS, "--audit-log", "/dev/full")
    assert said.returncode == 2
    assert "no plain file" in said.stderr


async def test_a_limit_holds_for_the_next_server_too(tmp_path: Path) -> None:
    limit = ("--limit", "echo: 2 calls / hour")
    async with client(tmp_path, *limit) as connected:
        first = await connected.call_tool("echo", {"text": "1"})
        assert [*account(first)["left"].values()] == [1]
    async with client(tmp_path, *limit) as connected:
        assert not (await connected.call_tool("echo", {"text": "2"})).is_error
        refused = await connected.call_tool("echo", {"text": "3"})
        assert refused.is_error
        assert "try again in" in text_of(refused)
        assert account(refused)["retryAfterSeconds"] > 1000
        assert not (await connected.call_tool("large", {"lines": 1})).is_error
    assert records(tmp_path, "call.outcome")[-2]["error_code"] == "rate_limited"


async def test_a_budget_of_money_holds_and_is_added_up(tmp_path: Path) -> None:
    async with client(tmp_path, "--limit", "*: 1.6 usd / day") as connected:
        for _ in range(2):
            result = await connected.call_tool("paid", {})
            assert account(result)["costUsd"] == 0.75
        assert (await connected.call_tool("paid", {})).is_error
    (line,) = [line for line in mcp_tools(tmp_path, "usage").stdout.splitlines() if "paid" in line]
    assert re.search(r"\b2\b.*1\.50", line)


async def test_a_large_result_fits_and_every_line_of_it_can_be_read(tmp_path: Path) -> None:
    async with client(tmp_path, "--output-max-chars", "5000") as connected:
        result = await connected.call_tool("large", {"lines": 5000})
        assert len(text_of(result)) <= 5000
        output_id = account(result)["outputId"]
        pieces, offset = [], 0
        while offset is not None:
            page = await connected.call_tool("read_output", {"output_id": output_id, "offset": offset})
            assert page.structured_content is not None
            pieces.append(page.structured_content["text"])
            offset = page.structured_content["next_offset"]
        (link,) = [block for block in result.content if isinstance(block, types.ResourceLink)]
        (whole,) = (await connected.read_resource(link.uri)).contents
        assert isinstance(whole, types.TextResourceContents)
        assert whole.text == "".join(pieces)
        with pytest.raises(MCPError, match="no resource"):
            await connected.read_resource(str(link.uri)[:-1] + "x")
        assert (await connected.list_resources()).resources == []
        assert "".join(pieces) == "\n".join(f"line {number}" for number in range(5000))


async def test_a_deadline_ends_the_work(tmp_path: Path) -> None:
    effect = tmp_path / "effect"
    async with client(tmp_path) as connected:
        result = await connected.call_tool("late", {"path": str(effect)})
        assert "was stopped after 0.5 s" in text_of(result)
        await anyio.sleep(3.2)  # as long as the function would have taken
    assert not effect.exists()


@contextmanager
def http_server(folder: Path, *flags: str) -> Iterator[str]:
    argv = [sys.executable, "-m", "mcp_tools", "serve", "--transport", "http", "--port", "0", *TOOLS, *flags]
    with subprocess.Popen(argv, cwd=ROOT, env=environ(folder), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if (found := re.search(r"(http://127\.0\.0\.1:\d+)/mcp", line)) is not None:
                    yield found[1]
                    break
        finally:
            process.terminate()
            process.wait(20)


def get(url: str, token: str | None = None) -> tuple[int, str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_are_beside_http_behind_the_same_door(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ana:{TOKEN}\n")
    tokens.chmod(0o600)
    with http_server(tmp_path, "--metrics", "--token-file", str(tokens)) as url:
        assert get(f"{url}/metrics")[0] == 401
        status, page = get(f"{url}/metrics", TOKEN)
        assert status == 200
        assert "mcp_tools_build_info" in page
        assert "ana" not in page
    with http_server(tmp_path) as url:
        assert get(f"{url}/metrics")[0] == 404


@pytest.mark.parametrize("flags", [(), ("--no-audit",)], ids=["recorded", "not recorded"])
def test_metrics_have_a_port_of_their_own_beside_stdio(tmp_path: Path, flags: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", "mcp_tools", "serve", *TOOLS, "--metrics-port", "0", *flags]
    with subprocess.Popen(
        argv, cwd=ROOT, env=environ(tmp_path), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        found = next(filter(None, (re.search(r"http://\S+/metrics", line) for line in process.stderr)))
        began = time.monotonic()
        assert "mcp_tools_inflight" in get(found[0])[1]
        process.stdin.close()
        assert process.wait(20) == 0
        assert time.monotonic() - began < 20
    assert log_of(tmp_path).exists() is (flags == ())


async def test_an_address_that_carries_something_away_waits_for_a_person_and_is_recorded(
    tmp_path: Path,
) -> None:
    """F-09: what a page asked for goes nowhere without a yes, where tools can read files."""
    root = tmp_path / "root"
    root.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        url = f"http://{place}/?q=just-read"
        audit_log = tmp_path / "audit" / "audit.jsonl"
        flags = ("--root", str(root), "--audit-log", str(audit_log), "--web-host", place)
        async with client(tmp_path, *flags) as connected:
            refused = await connected.call_tool("fetch_url", {"url": url})
            assert refused.is_error
        with pytest.raises(BlockingIOError):
            listener.accept()
        written = [json.loads(line) for line in audit_log.read_text().splitlines()]
        asked, denied = [each for each in written if each["kind"] == "call.outcome"]
        assert url in asked["arguments"]["values"]["url"]
        assert (asked["error_code"], denied["error_code"]) == ("confirmation_required", "denied")
        # The same call goes out where a rule allows it.
        async with (
            client(tmp_path, *flags, "--ignore-robots", "--allow", f"fetch_url({place})") as connected,
            anyio.create_task_group() as group,
        ):
            group.start_soon(connected.call_tool, "fetch_url", {"url": url})
            listener.settimeout(20)
            connection, _ = await anyio.to_thread.run_sync(listener.accept)
            with connection:
                assert b"/?q=just-read" in await anyio.to_thread.run_sync(connection.recv, 4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

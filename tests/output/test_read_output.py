"""`read_output`, clients that are known, masking on the way out, and outputs of a hundred megabytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_tools import (
    CallContext,
    ResourceLink,
    TextContent,
    ToolError,
    ToolExecutor,
    ToolOutput,
    ToolRegistry,
)
from mcp_tools.builtin.output import register_output_tool
from mcp_tools.output.budget import OutputBudget
from mcp_tools.output.masking import MASK
from mcp_tools.output.room import KNOWN_CLIENTS, Room, room_for
from mcp_tools.output.store import OutputStore
from mcp_tools.types import Usage

LINES = "".join(f"line {n}: {'ERROR' if n % 1_000 == 7 else 'fine'}\r\n" for n in range(30_000))
KEY = "sk-" + "a1B2" * 8


class Server:
    """An executor with one tool that returns what it is told to, and `read_output`."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.store = OutputStore(parent=str(folder))
        self.budget = OutputBudget(store=self.store, **settings)
        self.registry = ToolRegistry()
        register_output_tool(self.registry, self.store, self.budget)
        self.executor = ToolExecutor(self.registry, fitter=self.budget)

    async def make(self, value: Any, context: CallContext | None = None, schema: Any = None) -> Any:
        name = f"make_{len(self.registry)}"
        self.registry.register(name=name, output_schema=schema)(lambda: value)
        return await self.executor.execute(name, {}, context)

    async def read(self, context: CallContext | None = None, **arguments: Any) -> Any:
        return await self.executor.execute("read_output", arguments, context)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.store.close()


async def test_a_shortened_text_says_what_is_missing_and_how_to_read_it(server: Server) -> None:
    result = await server.make(LINES)
    assert isinstance(result.result, str)
    assert result.result.startswith("line 0: fine\r\n")
    assert "line 29999: fine\r\n" in result.result
    assert "characters are missing here …]" in result.result
    assert f'read_output(output_id="{result.output_id}", offset=0)' in result.result
    assert result.usage.output_tokens == pytest.approx(25_000, rel=0.2)


async def test_over_mcp_there_is_a_link_to_the_whole(server: Server) -> None:
    result = await server.make(LINES, CallContext(transport="http"))
    text, note, link = result.result.content
    assert isinstance(text, TextContent) and note.text.startswith("[shortened: ")
    assert isinstance(link, ResourceLink)
    assert link.uri == f"mcp-tools://output/{result.output_id}"


async def test_what_fits_is_the_same_object(server: Server) -> None:
    for value in ("text", {"a": [1]}, ["x"], 5, None, ToolOutput(content=[TextContent(text="x")])):
        result = await server.make(value)
        assert result.result is value
        assert result.output_id is None


async def test_matching_lines_come_with_their_offsets(server: Server) -> None:
    result = await server.make(LINES)
    expected = [(LINES.index(f"line {n}: ERROR"), f"line {n}: ERROR") for n in range(7, 30_000, 1_000)]
    for arguments in (
        {"pattern": "ERROR"},
        {"pattern": r"E[R]+OR$", "regex": True},
        {"pattern": "error", "ignoreCase": True},
    ):
        page = await server.read(output_id=result.output_id, **arguments)
        assert page.is_success, page.error
        assert page.structured["text"].split("\n") == [f"{offset}: {line}" for offset, line in expected]
        assert page.structured["next_offset"] is None and page.structured["lines_found"] == 30
    part = await server.read(output_id=result.output_id, pattern="ERROR", limit=4)
    assert part.structured["lines_found"] == 4
    following = await server.read(
        output_id=result.output_id, pattern="ERROR", offset=part.structured["next_offset"]
    )
    assert following.structured["text"].startswith(f"{expected[4][0]}: line 4007")


async def test_a_pattern_that_never_ends_is_stopped(server: Server) -> None:
    result = await server.make("a" * 200_000)
    answer = await server.read(output_id=result.output_id, pattern="(a+)+$b", regex=True)
    assert "takes too long" in answer.error
    answer = await server.read(output_id=result.output_id, pattern="(", regex=True)
    assert "not a valid regular expression" in answer.error


async def test_pages_go_on_where_the_last_one_ended(server: Server) -> None:
    result = await server.make(LINES)
    page = await server.read(output_id=result.output_id, offset=10, limit=7)
    assert page.structured == {
        "text": LINES[10:17],
        "offset": 10,
        "next_offset": 17,
        "total_chars": len(LINES),
        "lines_found": None,
    }
    end = await server.read(output_id=result.output_id, offset=len(LINES))
    assert end.structured["text"] == "" and end.structured["next_offset"] is None
    beyond = await server.read(output_id=result.output_id, offset=len(LINES) + 1)
    assert "beyond the end" in beyond.error


async def test_another_principal_has_no_such_output(server: Server) -> None:
    result = await server.make(LINES, CallContext(principal="alice"))
    answer = await server.read(CallContext(principal="bob"), output_id=result.output_id)
    made_up = await server.read(CallContext(principal="bob"), output_id="0" * 32)
    assert answer.error.replace(result.output_id, "ID") == made_up.error.replace("0" * 32, "ID")
    assert "there is no output" in answer.error
    assert (await server.read(CallContext(principal="alice"), output_id=result.output_id)).is_success


def test_known_clients_only_get_less() -> None:
    own = Room(max_chars=50_000, max_tokens=10_000)
    code = room_for("claude-code 2.1.209", own, KNOWN_CLIENTS)
    assert (code.max_chars, code.max_tokens) == (48_000, 10_000)
    assert room_for("Codex 1.0", own, KNOWN_CLIENTS).max_chars == 9_500
    assert room_for("codex-mcp-client", own, KNOWN_CLIENTS).max_chars == 9_500
    assert room_for(None, own, KNOWN_CLIENTS) == room_for("other", own, KNOWN_CLIENTS) == own
    for chars, tokens in ((999, 300), (1_000, 299)):
        with pytest.raises(ValueError, match="at least"):
            Room(max_chars=chars, max_tokens=tokens)


async def test_each_client_gets_what_it_can_take(server: Server) -> None:
    context = CallContext(client="cline 3.9", transport="stdio")
    result = await server.make(LINES, context)
    assert 6_000 < len(result.to_observation()) <= 7_600
    page = await server.read(context, output_id=result.output_id)
    assert page.output_id is None and len(page.to_observation()) <= 7_600


async def test_secrets_reach_neither_the_model_nor_the_kept_whole(tmp_path: Path) -> None:
    server = Server(tmp_path, mask_secrets=True)
    text = f"password = hunter22\nkey {KEY}\n" + LINES + f"tail {KEY}\n"
    result = await server.make(text)
    assert KEY not in result.result and "hunter22" not in result.result and MASK in result.result
    assert "[3 secrets were removed, by their looks]" in result.result
    assert KEY not in server.store.read(result.output_id, "local")
    little = await server.make({"api_key": KEY, "n": 1})
    assert little.result["api_key"] == MASK and "1 secret was removed" in little.result["_notice"]
    plain = await Server(tmp_path / "..").make({"api_key": KEY, "n": 1})
    assert plain.result == {"api_key": KEY, "n": 1}  # it is off unless switched on
    server.store.close()


async def test_masked_data_fits_its_schema(tmp_path: Path) -> None:
    server = Server(tmp_path, mask_secrets=True)
    schema = {
        "type": "object",
        "properties": {"token": {"type": "string", "pattern": "^sk-[A-Za-z0-9]{32}$"}},
        "additionalProperties": False,
    }
    result = await server.make({"token": KEY}, CallContext(transport="stdio"), schema)
    assert result.structured == {"token": "sk-" + "x0X0" * 8}
    assert KEY not in result.to_observation() and "1 secret was removed" in result.to_observation()
    refused = await server.make(
        {"token": KEY}, None, {"type": "object", "properties": {"token": {"const": KEY}}}
    )
    assert not refused.is_success and KEY not in refused.to_observation()
    server.store.close()


async def test_a_full_disk_costs_the_rest_and_says_so(tmp_path: Path) -> None:
    server = Server(tmp_path / "missing")
    result = await server.make(LINES)
    assert result.is_success and result.output_id is None
    assert "could not be kept (No such file or directory)" in result.result


async def test_a_long_error_fits_when_it_is_given_to_the_budget(server: Server) -> None:
    def fail() -> str:
        raise ToolError("no " * 100_000)

    server.registry.register(name="fail")(fail)
    failed = await ToolExecutor(server.registry).execute("fail")
    tool = server.registry.get("fail")
    assert tool is not None
    context = CallContext()
    fitted = await server.budget.fit(failed, tool, context)
    assert len(fitted.to_observation()) < 10_000
    assert server.store.read(fitted.output_id or "", "local") == failed.error
    assert context.meter.total == Usage(output_tokens=context.meter.total.output_tokens)
    assert context.meter.total.output_tokens > 1_000


HUGE = """
import asyncio, json, resource, sys, time
from mcp_tools import CallContext, ExecutionResult, ExecutionStatus, Tool
from mcp_tools.output.budget import OutputBudget
from mcp_tools.output.store import OutputStore

text = sys.argv[2] * (100_000_000 // len(sys.argv[2]))
store = OutputStore(parent=sys.argv[1])
budget = OutputBudget(store=store)
tool = Tool("t", "", {}, print)

async def main():
    await budget.fit(ExecutionResult(ExecutionStatus.SUCCESS, "x" * 200_000), tool, CallContext())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, began = time.process_time(), time.monotonic()
    result = await budget.fit(ExecutionResult(ExecutionStatus.SUCCESS, text), tool, CallContext())
    spent = {"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - cpu}
    more_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert store.page(result.output_id, "local", 50_000_000, 100) == text[50_000_000:50_000_100]
    print(json.dumps({**spent, "more_kb": more_kb}))

asyncio.run(main())
"""


@pytest.mark.parametrize("line", ["a line of a log, with a number: 12345\n", "x", "una línea más\n"])
def test_a_hundred_megabytes_take_little_memory_and_less_than_a_second(tmp_path: Path, line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HUGE, str(tmp_path), line],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    spent = json.loads(done.stdout)
    assert spent["more_kb"] * 1024 < 32 * 1024**2 or sys.platform == "darwin"  # bytes there, not KiB
    # Processor time: what others do on this machine says nothing about us.
    assert spent["cpu_s"] < 1, spent

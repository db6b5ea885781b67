"""The mission's own usage, as an embedding program would write it."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

import mcp_tools
from mcp_tools import (
    AsyncToolExecutor,
    ExecutionResult,
    ExecutionStatus,
    StreamingToolExecutor,
    ToolCall,
    ToolExecutor,
    ToolRegistry,
    ToolSystem,
)


class SearchParameters(BaseModel):
    query: str = Field(description="What to look for")
    max_results: int = Field(default=10, ge=1, le=50)


@pytest.fixture
def registry(tmp_path: Path) -> ToolRegistry:
    made = ToolRegistry()

    @made.register(
        name="read_note",
        description="Read a note.",
        parameters={
            "type": "object",
            "properties": {"name": {"type": "string", "description": "Its name"}},
            "required": ["name"],
        },
        tags=["notes"],
    )
    async def read_note(name: str) -> str:
        return (tmp_path / name).read_text()

    @made.register(description="Search.", parameters=SearchParameters, timeout=15.0)
    async def search(query: str, max_results: int) -> list[str]:
        return [query] * max_results

    for name in "abc":
        (tmp_path / name).write_text(f"note {name}")
    return made


async def test_decorated_tools_execute(registry: ToolRegistry) -> None:
    executor = ToolExecutor(registry)
    read = await executor.execute("read_note", {"name": "a"})
    found = await executor.execute("search", {"query": "q", "max_results": 2})
    assert (read.status, read.result, read.tool_name, read.parameters) == (
        ExecutionStatus.SUCCESS,
        "note a",
        "read_note",
        {"name": "a"},
    )
    assert read.duration_ms > 0
    assert found.to_observation() == '[\n  "q",\n  "q"\n]'


async def test_three_reads_in_parallel(registry: ToolRegistry) -> None:
    calls = [ToolCall(f"call_{name}", "read_note", {"name": name}) for name in "abc"]
    results = await AsyncToolExecutor(ToolExecutor(registry), max_concurrent=10).execute_calls(calls)
    assert {call_id: result.result for call_id, result in results.items()} == {
        "call_a": "note a",
        "call_b": "note b",
        "call_c": "note c",
    }


async def test_streaming(registry: ToolRegistry) -> None:
    started: list[str] = []
    completed: list[tuple[str, ExecutionStatus]] = []

    def on_start(call: ToolCall) -> None:
        started.append(call.name)

    def on_complete(call: ToolCall, result: ExecutionResult) -> None:
        completed.append((call.id, result.status))

    streaming = StreamingToolExecutor(ToolExecutor(registry))
    await streaming.execute_with_streaming([ToolCall("1", "search", {"query": "q"})], on_start, on_complete)
    assert (started, completed) == (["search"], [("1", ExecutionStatus.SUCCESS)])


async def test_the_system_serves_both_providers(registry: ToolRegistry) -> None:
    system = ToolSystem(registry)
    anthropic: list[dict[str, Any]] = system.get_tools_for_api("anthropic")
    openai = system.get_tools_for_api("openai")
    assert [tool["name"] for tool in anthropic] == ["read_note", "search"]
    assert anthropic[1]["input_schema"]["properties"]["max_results"] == {
        "type": "integer",
        "default": 10,
        "minimum": 1,
        "maximum": 50,
    }
    assert [tool["function"]["name"] for tool in openai] == ["read_note", "search"]
    with pytest.raises(ValueError, match="unknown provider"):
        system.get_tools_for_api("gemini")

    results = await system.execute_calls(
        [ToolCall("t1", "read_note", {"name": "a"}), ToolCall("t2", "nothing", {})]
    )
    assert system.format_results_for_llm(results) == [
        {"type": "tool_result", "tool_use_id": "t1", "content": "note a", "is_error": False},
        {
            "type": "tool_result",
            "tool_use_id": "t2",
            "content": results["t2"].to_observation(),
            "is_error": True,
        },
    ]
    assert system.format_results_for_llm(results, "openai")[0] == {
        "role": "tool",
        "tool_call_id": "t1",
        "content": "note a",
    }
    with pytest.raises(ValueError, match="unknown provider"):
        system.format_results_for_llm(results, "gemini")  # type: ignore[arg-type]


async def test_an_empty_system_registers_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mcp_tools.calls")
    system = ToolSystem()
    assert system.registry.list_tools() == []

    @system.register
    def add(a: int, b: int = 1) -> int:
        """Add."""
        return a + b

    assert (await system.execute("add", {"a": 1})).result == 2
    assert add(1, 2) == 3
    assert "add success in" in caplog.text


async def test_the_builtins_read_and_write_after_a_yes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    system = ToolSystem.with_builtins(roots=[tmp_path])
    assert (await system.execute("read_file", {"path": "a.txt"})).result == "hello"
    refused = await system.execute("write_file", {"path": "b.txt", "content": "x"})
    assert refused.confirmation is not None
    assert not (tmp_path / "b.txt").exists()
    done = await system.execute("write_file", {"path": "b.txt", "content": "x"}, {"confirmed": True})
    assert done.is_success
    assert (tmp_path / "b.txt").read_text() == "x"


async def test_roots_are_let_go_of_with_the_tools(tmp_path: Path) -> None:
    def open_folders() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(os.path.exists(link) and os.readlink(link) == str(tmp_path) for link in links)

    (tmp_path / "a").write_text("x")
    executor = ToolSystem.with_builtins(roots=[tmp_path]).executor
    gc.collect()
    assert (await executor.execute("read_file", {"path": "a"})).result == "x"
    assert open_folders() == 1
    del executor
    gc.collect()
    assert open_folders() == 0
    with ToolSystem.with_builtins(roots=[tmp_path]) as system:
        assert open_folders() == 1
    assert open_folders() == 0
    assert "closed" in ((await system.execute("read_file", {"path": "a"})).error or "")


def test_every_public_name_exists() -> None:
    assert [name for name in mcp_tools.__all__ if not hasattr(mcp_tools, name)] == []
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = mcp_tools.nothing_like_it

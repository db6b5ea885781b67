"""What a type checker must make of the public names; read by mypy, never run."""

from __future__ import annotations

from typing import Any, assert_type

from pydantic import BaseModel

from mcp_tools import (
    AsyncToolExecutor,
    CallContext,
    Confirmation,
    ExecutionResult,
    StreamingToolExecutor,
    Tool,
    ToolCall,
    ToolExecutor,
    ToolRegistry,
    ToolSystem,
)

registry = ToolRegistry()


class Query(BaseModel):
    text: str


@registry.register
def bare(a: int) -> int:
    return a


@registry.register(
    "named", "Described.", {"type": "object"}, requires_confirmation=True, timeout=3, tags=["x"]
)
async def named(context: CallContext) -> str:
    return context.principal


@registry.register(parameters=Query)
def with_model(text: str) -> str:
    return text


# Decorated functions stay what they were.
assert_type(bare(1), int)
assert_type(with_model("x"), str)
assert_type(registry.get("bare"), Tool | None)
assert_type(registry.list_tools(tag="x"), list[Tool])
assert_type(registry.to_api_format("openai"), list[dict[str, Any]])


async def confirm(question: Confirmation) -> bool:
    return question.tool_name == "named"


async def use() -> None:
    executor = ToolExecutor(registry, hooks=[print])
    assert_type(await named(CallContext()), str)
    assert_type(await executor.execute("bare", {"a": 1}), ExecutionResult)
    assert_type(await executor.execute("bare", {"a": 1}, {"confirmed": True}), ExecutionResult)
    batch = AsyncToolExecutor(executor, max_concurrent=3, confirm=confirm)
    calls = [ToolCall(id="1", name="bare", arguments={"a": 1})]
    assert_type(await batch.execute_calls(calls), dict[str, ExecutionResult])
    async with StreamingToolExecutor(executor).stream(calls) as events:
        async for event in events:
            assert_type(event.result, ExecutionResult | None)
    system = ToolSystem(registry)
    assert_type(system.format_results_for_llm(await system.execute_calls(calls)), list[dict[str, Any]])

    @system.register
    def inner() -> None: ...

"""What a type checker must make of the public names; read by mypy, never run."""

from __future__ import annotations

from typing import Any, assert_type

from pydantic import BaseModel

from mcp_tools import (
    AgentRun,
    AnthropicMessages,
    AsyncToolExecutor,
    CallContext,
    Confirm,
    Confirmation,
    ExecutionResult,
    Message,
    Model,
    OnProgress,
    OnResult,
    OnText,
    OpenAIChat,
    OpenAIResponses,
    StreamingToolExecutor,
    Tool,
    ToolCall,
    ToolExecutor,
    ToolRegistry,
    ToolSystem,
    Turn,
    run_agent,
    run_agent_step,
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


async def talk(client: Any, system: ToolSystem, on_text: OnText, on_result: OnResult) -> None:
    models: list[Model] = [AnthropicMessages(client), OpenAIResponses(client), OpenAIChat(client)]
    asking: Confirm = confirm
    run = await run_agent("Go.", system, client=models[0], confirm=asking, on_result=on_result)
    assert_type(run, AgentRun)
    assert_type(run.messages, list[Message])
    assert_type(await run_agent_step(run.messages, system, on_text=on_text), tuple[str, list[Message]])


def progress(call: ToolCall, done: float, total: float | None, message: str | None) -> None: ...


on_progress: OnProgress = progress


def results(model: Model, turn: Turn, found: dict[str, ExecutionResult]) -> tuple[Message, ...]:
    return model.results(turn, found)

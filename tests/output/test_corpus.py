"""Each of two hundred large and odd outputs: within budget, every character reachable, schema still valid."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from mcp_tools import (
    CallContext,
    ExecutionResult,
    MediaContent,
    TextContent,
    Tool,
    ToolExecutor,
    ToolOutput,
    ToolRegistry,
)
from mcp_tools.builtin.output import register_output_tool
from mcp_tools.output.budget import OutputBudget
from mcp_tools.output.plain import encodable, to_plain
from mcp_tools.output.shrink import as_json
from mcp_tools.output.store import OutputStore
from mcp_tools.output.tokens import estimate_tokens
from mcp_tools.server.content import wire_result
from tests.output.corpus import Case, all_cases

LONG = "MCP_TOOLS_LONG" in os.environ
CASES = all_cases()
ROOMS = {"default": (100_000, 25_000), "small": (1_000, 300)}
MUST_FAIL = {"schema: all or nothing", "schema: impossible pattern", "schema: contains its last"}
MAY_FAIL_SMALL = {
    "schema: at least 500", "schema: long enough", "schema: pattern", "schema: const", "schema: if then",
    "schema: many required", "schema: a map with enough", "schema: unique", "schema: enum of long ones",
}  # fmt: skip


def test_there_are_two_hundred() -> None:
    names = [case.name for case in CASES]
    assert len(names) >= 200
    assert len(set(names)) == len(names)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutputStore]:
    store = OutputStore(parent=str(tmp_path_factory.mktemp("kept")))
    yield store
    store.close()


class Watched(OutputBudget):
    """A budget that remembers what it was given."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: list[ExecutionResult] = []

    async def fit(self, result: ExecutionResult, tool: Tool, context: CallContext) -> ExecutionResult:
        self.seen.append(result)
        return await super().fit(result, tool, context)


@pytest.mark.parametrize("case", CASES if LONG else CASES[::3], ids=lambda case: case.name)
async def test_it_fits_the_default_room(case: Case, store: OutputStore) -> None:
    await it_fits_and_nothing_is_lost(case, "default", "stdio", store)


@pytest.mark.parametrize(
    "case",
    CASES if LONG else [case for number, case in enumerate(CASES) if number % 3],
    ids=lambda case: case.name,
)
async def test_it_fits_the_smallest_room(case: Case, store: OutputStore) -> None:
    await it_fits_and_nothing_is_lost(case, "small", "library", store)


async def it_fits_and_nothing_is_lost(case: Case, room: str, transport: str, store: OutputStore) -> None:
    max_chars, max_tokens = ROOMS[room]
    budget = Watched(max_chars=max_chars, max_tokens=max_tokens, store=store)
    registry = ToolRegistry()
    register_output_tool(registry, store, budget)
    value = case.make()
    registry.register(name="make", output_schema=case.schema)(lambda: value)
    context = CallContext(transport=transport)
    executor = ToolExecutor(registry, fitter=budget)
    began = time.monotonic()
    result = await executor.execute("make", {}, context)
    assert time.monotonic() - began < 10

    whole = budget.seen[0]
    check_size(result, max_chars, max_tokens, case.schema)
    if not result.is_success:
        assert case.name in MUST_FAIL or (room == "small" and case.name in MAY_FAIL_SMALL), result.error
        assert result.output_id is not None and result.output_id in (result.error or "")
    else:
        assert case.name not in MUST_FAIL
        if case.schema is not None:
            cls = validator_for(case.schema, default=Draft202012Validator)
            cls(case.schema).validate(result.structured)
        json.loads(json.dumps(result.structured, allow_nan=False))
    if result.output_id is None:
        assert result.result is value
        return
    read = await read_all(executor, result.output_id, context, max_chars, max_tokens)
    for part in expected_parts(whole, value):
        assert part in read
    if isinstance(value, str):
        assert read == encodable(value)


def check_size(
    result: ExecutionResult, max_chars: int, max_tokens: int, schema: dict[str, Any] | None
) -> None:
    observation = result.to_observation()
    observation.encode()
    assert len(observation) <= max_chars
    assert estimate_tokens(observation) <= max_tokens
    wire = wire_result(result, schema)
    texts = [block.text for block in wire.content if block.type == "text"]
    assert sum(map(len, texts)) <= max_chars
    assert sum(map(estimate_tokens, texts)) <= max_tokens
    assert len(wire.content) <= 1_002
    if wire.structured_content is not None:
        text = as_json(wire.structured_content)
        assert len(text) <= max_chars
        assert estimate_tokens(text) <= max_tokens
    wire.model_dump_json()


async def read_all(
    executor: ToolExecutor, output_id: str, context: CallContext, max_chars: int, max_tokens: int
) -> str:
    """Read page after page; of long outputs most of it at once, behind the tool's back."""
    pages: list[str] = []
    offset: int | None = 0
    jumped = False
    while offset is not None:
        page = await executor.execute("read_output", {"output_id": output_id, "offset": offset}, context)
        assert page.is_success, page.error
        assert page.output_id is None
        check_size(page, max_chars, max_tokens, None)
        answer = page.structured
        assert answer["offset"] == offset
        total = answer["total_chars"]
        pages.append(answer["text"])
        offset = answer["next_offset"]
        if offset is not None:
            assert offset == answer["offset"] + len(answer["text"]) > answer["offset"]
            if not jumped and total - offset > 2 * max_chars:
                jumped = True
                budget: Any = executor._fitter
                rest = budget._store.page(
                    output_id, context.principal, offset, total - offset - 2 * max_chars
                )
                pages.append(rest)
                offset += len(rest)
    read = "".join(pages)
    assert len(read) == total
    return read


def expected_parts(whole: ExecutionResult, value: Any) -> Iterator[str]:
    """What must be found in the whole, in full."""
    if isinstance(value, ToolOutput):
        for piece in value.content:
            if isinstance(piece, TextContent):
                yield encodable(piece.text)
            elif isinstance(piece, MediaContent) and len(piece.data) > 16 * 1024**2:
                yield base64.b64encode(piece.data).decode()
        if value.structured is not None:
            yield as_json(to_plain(value.structured))
    elif isinstance(value, str):
        yield encodable(value)
    else:
        yield as_json(whole.structured if whole.structured is not None else to_plain(value))


def test_parts_are_what_the_corpus_holds() -> None:
    """A check that cannot fail is none: a whole that lost a character does not pass."""
    whole = ExecutionResult(status="success", result="abc")  # type: ignore[arg-type]
    (part,) = expected_parts(whole, "abc")
    assert part not in "ab"

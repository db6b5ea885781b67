"""Results as they go out: whatever a tool returns, what leaves is JSON, encodable, bounded and complete."""

from __future__ import annotations

import base64
import json
from typing import Any

import mcp_types as types
from hypothesis import given
from hypothesis import strategies as st

from mcp_tools import ExecutionResult, ExecutionStatus, MediaContent, ResourceLink, TextContent, ToolOutput
from mcp_tools.server.content import MAX_BLOCKS, MAX_MEDIA_BYTES, MAX_TEXT_CHARS, wire_result
from tests.server.peers import text_of

RESULT_SCHEMA = {"type": "object", "properties": {"result": {}}, "required": ["result"]}


def rendered(value: Any, output_schema: dict[str, Any] | None = None) -> types.CallToolResult:
    return wire_result(ExecutionResult(ExecutionStatus.SUCCESS, value), output_schema)


def test_each_kind_of_value_has_its_shape() -> None:
    for value, text, structured in [
        ("plain", "plain", None),
        ("", "", None),
        ({"a": 1}, '{\n  "a": 1\n}', {"a": 1}),
        ([1, 2], "[\n  1,\n  2\n]", None),
        (5, "5", None),
        (None, "null", None),
        (True, "true", None),
    ]:
        result = rendered(value)
        assert (text_of(result), result.structured_content) == (text, structured)


def test_a_value_is_wrapped_only_where_the_schema_says_result() -> None:
    assert rendered([1], RESULT_SCHEMA).structured_content == {"result": [1]}
    assert rendered(5, {"type": "object", "properties": {"n": {}}}).structured_content is None
    assert rendered({"result": 1}, RESULT_SCHEMA).structured_content == {"result": 1}


def test_what_the_executor_shaped_for_the_schema_is_what_goes_out() -> None:
    shaped = {"when": "2026-11-22", "n": 1}
    schema = {"type": "object", "properties": {"when": {"type": "string"}, "n": {"type": "integer"}}}
    for value in ({"when": object(), "n": 1}, ToolOutput(structured={"when": b"x"})):
        result = wire_result(ExecutionResult(ExecutionStatus.SUCCESS, value, structured=shaped), schema)
        assert result.structured_content == shaped
        assert json.loads(text_of(result)) == shaped


def test_pieces_keep_their_order_and_a_missing_text_is_made_from_the_data() -> None:
    png = MediaContent(data=b"\x89PNG", media_type="image/png")
    link = ResourceLink(uri="file:///a\udc80", name="n", description="d")
    result = rendered(ToolOutput(content=[TextContent(text="one"), png, link], structured={"k": 1}))
    assert [block.type for block in result.content] == ["text", "image", "resource_link"]
    assert result.structured_content == {"k": 1}
    made = rendered(ToolOutput(content=[png], structured={"k": 1}))
    assert [block.type for block in made.content] == ["text", "image"]
    assert text_of(made) == '{\n  "k": 1\n}'
    assert rendered(ToolOutput()).content == []


def test_pieces_are_bounded_in_size_and_number() -> None:
    huge = MediaContent(data=b"x" * (MAX_MEDIA_BYTES + 1), media_type="image/png")
    [block] = rendered(ToolOutput(content=[huge])).content
    assert isinstance(block, types.TextContent)
    assert "image/png of 16,777,217 bytes left out" in block.text
    many = rendered(ToolOutput(content=[TextContent(text="t")] * (MAX_BLOCKS + 5)))
    assert len(many.content) == MAX_BLOCKS + 1
    assert "5 more pieces" in text_of(many)


def test_long_data_keeps_its_shape_and_says_what_was_cut() -> None:
    result = rendered({"rows": [{"text": "x" * 300_000, "n": index} for index in range(10)]})
    assert result.structured_content is not None
    assert [row["n"] for row in result.structured_content["rows"]] == list(range(10))
    assert result.structured_content["rows"][0]["text"].endswith(
        "[shortened: the whole was 300,000 characters]"
    )
    text = text_of(result)
    assert len(text) <= MAX_TEXT_CHARS
    assert json.loads(text.rpartition("\n")[0]) == result.structured_content
    assert "[shortened: the whole was 3,00" in text


def test_data_that_cannot_be_shortened_is_cut_as_text_or_refused() -> None:
    rows = {"rows": list(range(300_000))}
    cut = rendered(rows)
    assert cut.structured_content is None
    assert "ask for less at a time" in text_of(cut)
    refused = rendered(rows, {"type": "object", "properties": {"rows": {"type": "array"}}})
    assert refused.is_error
    assert "the tool ran" in text_of(refused)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary(max_size=20)
    | st.sampled_from(["\ud800", "a\udc80b", object(), ValueError("x"), float]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()) | st.integers(), inner)
    ),
    max_leaves=12,
)


@given(_values, st.sampled_from([None, RESULT_SCHEMA]))
def test_any_value_leaves_as_valid_json(value: Any, output_schema: dict[str, Any] | None) -> None:
    result = rendered(value, output_schema)
    sent = json.loads(result.model_dump_json(by_alias=True))
    assert not sent["isError"]
    if not isinstance(value, str):
        assert json.loads(text_of(result)) is not None or value is None or value != value
    if output_schema is not None and not isinstance(value, str):
        assert sent["structuredContent"] is not None


@given(
    st.binary(max_size=50), st.sampled_from(["image/png", "audio/wav", "application/pdf", "", "im\udc80/x"])
)
def test_bytes_arrive_whole(data: bytes, media_type: str) -> None:
    [block] = rendered(ToolOutput(content=[MediaContent(data=data, media_type=media_type)])).content
    sent = json.loads(block.model_dump_json(by_alias=True))
    encoded = sent["data"] if "data" in sent else sent["resource"]["blob"]
    assert base64.b64decode(encoded) == data

"""Where a tool's input schema comes from, and what is refused at registration."""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, RootModel
from typing_extensions import TypedDict

from mcp_tools import CallContext, RegistrationError, Tool, ToolRegistry
from mcp_tools.errors import DuplicateTool, InvalidSchema, InvalidToolName, SignatureMismatch
from mcp_tools.schema import describe_arguments, summary


class Address(BaseModel):
    street: str
    number: int = Field(ge=1, description="House number")


class Person(BaseModel):
    name: str
    addresses: list[Address] = []


def test_signature_and_docstring_give_the_schema() -> None:
    registry = ToolRegistry()

    @registry.register
    async def scale(
        values: list[float],
        factor: Annotated[float, Field(gt=0)] = 2.0,
        mode: Literal["up", "down"] = "up",
        *,
        context: CallContext,
    ) -> list[float]:
        """Multiply every value.

        Only finite numbers.

        Args:
            values: What is scaled,
                in order.
            factor (float): By how much.

        Returns:
            As many values.
        """
        return [value * factor for value in values]

    tool = registry.get("scale")
    assert tool is not None
    assert tool.description == "Multiply every value.\n\nOnly finite numbers."
    assert tool.parameters == {
        "type": "object",
        "additionalProperties": False,
        "required": ["values"],
        "properties": {
            "values": {
                "type": "array",
                "items": {"type": "number"},
                "description": "What is scaled, in order.",
            },
            "factor": {
                "type": "number",
                "exclusiveMinimum": 0,
                "default": 2.0,
                "description": "By how much.",
            },
            "mode": {"type": "string", "enum": ["up", "down"], "default": "up"},
        },
    }


def test_nested_models_keep_their_defs() -> None:
    registry = ToolRegistry()

    @registry.register(parameters=Person)
    def greet(name: str, addresses: list[Address]) -> str:
        return name

    schema = registry.list_tools()[0].parameters
    assert schema["properties"]["addresses"]["items"] == {"$ref": "#/$defs/Address"}
    assert schema["$defs"]["Address"]["properties"]["number"] == {
        "type": "integer",
        "minimum": 1,
        "description": "House number",
    }


def test_models_local_to_a_function_are_found() -> None:
    class Local(BaseModel):
        x: int

    registry = ToolRegistry()

    @registry.register
    def take(item: Local) -> int:
        return item.x

    assert "Local" in registry.list_tools()[0].parameters["$defs"]


@pytest.mark.parametrize("name", ["json", "copy", "model_config", "_hidden", "self_", "schema"])
def test_any_parameter_name_works(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def tool({name}: int) -> int:\n    return {name}", scope)
    registry = ToolRegistry()
    registry.register(scope["tool"])
    validate = registry.get_validator("tool")
    assert validate is not None
    assert validate({name: 3}) == {name: 3}


def test_a_dict_schema_is_published_as_given_and_copied() -> None:
    registry = ToolRegistry()
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}

    @registry.register("copy_me", "Copies.", schema)
    def copy_me(a: str) -> str:
        return a

    published = registry.list_tools()[0].parameters
    assert published == schema
    schema["properties"] = {}
    assert published["properties"] == {"a": {"type": "string"}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string"},
        {"properties": {}},
        {"type": "object", "properties": {"a": {"type": "strin"}}},
        {"type": "object", "properties": {"a": {"$ref": "https://example.invalid/s.json"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/Nowhere"}}},
        {"type": "object", "properties": {"a": {"default": math.nan}}},
        {"type": "object", "properties": {"a": {"default": object()}}},
    ],
    ids=["empty", "not-object", "no-type", "bad-type", "remote-ref", "dangling-ref", "nan", "not-json"],
)
def test_unusable_schemas_are_refused(schema: dict[str, Any]) -> None:
    registry = ToolRegistry()
    with pytest.raises(InvalidSchema):
        registry.register("t", "d", schema)(lambda **_: None)
    assert len(registry) == 0


class Numbers(RootModel[dict[str, int]]):
    pass


@pytest.mark.parametrize(
    "parameters",
    [Numbers, {"type": "object", "allOf": [{"properties": {"a": {}}}]}],
    ids=["root-model", "all-of"],
)
def test_schemas_without_named_fields_of_their_own_are_refused(parameters: Any) -> None:
    with pytest.raises(InvalidSchema):
        ToolRegistry().register("t", parameters=parameters)(lambda **_: None)


def test_what_no_client_can_be_sent_is_refused() -> None:
    """ACCEPTANCE B-29: one such tool would make every client's list of tools fail."""

    def not_a_number(x: float = math.nan) -> None: ...

    def surrogate(x: Annotated[int, Field(description="\ud800")]) -> None: ...

    for register in (
        lambda registry: registry.register("t", description="\ud800")(takes_nothing),
        lambda registry: registry.register("t", title="\ud800")(takes_nothing),
        lambda registry: registry.register(not_a_number),
        lambda registry: registry.register(surrogate),
        lambda registry: registry.register("t", "d", {**OBJECT_A, "title": "\ud800"})(lambda a=1: None),
    ):
        registry = ToolRegistry()
        with pytest.raises(InvalidSchema):
            register(registry)
        assert len(registry) == 0


def test_what_is_handed_out_is_a_copy() -> None:
    registry = ToolRegistry()
    registry.register("t", "d", OBJECT_AB)(takes_a_and_b)
    registry.to_api_format()[0]["input_schema"]["properties"].clear()
    assert registry.to_api_format("openai")[0]["function"]["parameters"] == OBJECT_AB


def test_a_class_that_is_no_model_is_refused() -> None:
    with pytest.raises(InvalidSchema, match="no Pydantic model"):
        ToolRegistry().register("t", parameters=int)(lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 65, "a/b", "a.b", "tool\n", "p\u0430th"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidToolName):
        ToolRegistry().add(Tool(name, "d", {"type": "object"}, lambda: None))


def test_duplicates_are_refused_also_in_other_case() -> None:
    """ACCEPTANCE B-26: names are unique after case folding."""
    registry = ToolRegistry()
    registry.register("read")(lambda: 1)
    with pytest.raises(DuplicateTool, match="taken by 'read'"):
        registry.register("READ")(lambda: 2)
    registry.remove("read")
    registry.register("READ")(lambda: 2)


@pytest.mark.parametrize("timeout", [0, -1, math.nan, "3", True, None])
def test_bad_timeouts_are_refused(timeout: Any) -> None:
    with pytest.raises(RegistrationError, match="timeout"):
        ToolRegistry().register("t", timeout=timeout)(lambda: None)


def takes_nothing() -> None: ...


def takes_a_and_b(a: int, b: int) -> None: ...


def takes_positional(a: int, /) -> None: ...


def takes_many(*a: int) -> None: ...


async def yields() -> AsyncIterator[int]:
    yield 1


OBJECT_AB = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
OBJECT_A = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (takes_nothing, OBJECT_A),
        (takes_a_and_b, OBJECT_A),
        (takes_a_and_b, {**OBJECT_A, "required": ["a"]}),
        (takes_nothing, Address),
        (takes_a_and_b, {**OBJECT_AB, "additionalProperties": True}),
        (takes_a_and_b, {**OBJECT_AB, "patternProperties": {"^x": {}}}),
        (takes_positional, None),
        (takes_many, None),
        (yields, None),
        (3, None),
    ],
    ids=[
        "no-parameter",
        "needs-more",
        "needs-b",
        "model",
        "extra",
        "pattern",
        "positional",
        "variadic",
        "generator",
        "no-function",
    ],
)
def test_a_function_that_cannot_take_its_fields_is_refused(function: Any, parameters: Any) -> None:
    registry = ToolRegistry()
    with pytest.raises((SignatureMismatch, InvalidToolName)):
        registry.register("t", parameters=parameters)(function)
    assert len(registry) == 0


def test_an_unresolvable_annotation_is_refused_with_its_name() -> None:
    def tool(a: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(SignatureMismatch, match="Missing"):
        ToolRegistry().register(tool)


def test_helpers_must_take_the_tools_fields() -> None:
    with pytest.raises(SignatureMismatch, match="preview"):
        ToolRegistry().register("t", preview=lambda other: None)(takes_a_and_b)


def test_every_form_of_callable_registers() -> None:
    class Adder:
        def method(self, a: int) -> int:
            return a

        async def __call__(self, a: int) -> int:
            return a

    registry = ToolRegistry()
    registry.register("method")(Adder().method)
    registry.register("object")(Adder())
    registry.register("partial")(functools.partial(takes_a_and_b, b=2))
    assert [sorted(tool.parameters["properties"]) for tool in registry.list_tools()] == [
        ["a"],
        ["a"],
        ["a", "b"],
    ]


class Report(TypedDict):
    lines: int


@dataclass
class Point:
    x: int


def test_output_schema_is_derived_from_structured_annotations_only() -> None:
    registry = ToolRegistry()

    @registry.register
    def typed() -> Report:
        return {"lines": 1}

    @registry.register
    def point() -> Point:
        return Point(1)

    @registry.register
    def text() -> str:
        return ""

    @registry.register(output_schema={"type": "object", "required": ["n"]})
    def declared() -> dict[str, int]:
        return {"n": 1}

    outputs = [tool.output_schema for tool in registry.list_tools()]
    assert outputs[0] == {
        "title": "Report",
        "type": "object",
        "properties": {"lines": {"type": "integer"}},
        "required": ["lines"],
    }
    assert outputs[1] is not None
    assert outputs[2] is None
    assert outputs[3] == {"type": "object", "required": ["n"]}


def test_docstring_sections_are_read() -> None:
    text = """Do it.

    Args:
        a: First
            and more.
        *rest (int): Others.

    Returns:
        b: not an argument
    """
    assert describe_arguments(text) == {"a": "First and more.", "rest": "Others."}
    assert summary(text) == "Do it."
    assert describe_arguments("No sections.") == {}


def test_api_formats() -> None:
    registry = ToolRegistry()
    registry.register("t", "Does.")(takes_nothing)
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    assert registry.to_api_format() == [{"name": "t", "description": "Does.", "input_schema": schema}]
    assert registry.to_api_format("openai") == [
        {"type": "function", "function": {"name": "t", "description": "Does.", "parameters": schema}}
    ]
    with pytest.raises(ValueError, match="unknown provider 'x'"):
        registry.to_api_format("x")
    with pytest.raises(ValueError, match="unknown provider"):
        registry.list_tools()[0].to_api_format("x")


def test_listing_by_tag_keeps_the_order_and_changes_are_told() -> None:
    registry = ToolRegistry()
    told: list[int] = []
    unsubscribe = registry.on_change(lambda: told.append(len(registry)))
    registry.register("b", tags=["x"])(takes_nothing)
    registry.register("a", tags=["x", "y"])(takes_nothing)
    registry.register("c")(takes_nothing)
    assert [tool.name for tool in registry.list_tools("x")] == ["b", "a"]
    registry.remove("a")
    unsubscribe()
    registry.remove("b")
    assert told == [1, 2, 3, 2]


def test_including_a_registry_is_all_or_nothing() -> None:
    first, second = ToolRegistry(), ToolRegistry()
    first.register("a")(takes_nothing)
    second.register("b")(takes_nothing)
    second.register("A")(takes_nothing)
    with pytest.raises(DuplicateTool):
        first.include(second)
    assert [tool.name for tool in first.list_tools()] == ["a"]

"""What the model sent is validated once, and the validated values are what runs."""

from __future__ import annotations

import datetime
import enum
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from mcp_tools import ToolRegistry
from mcp_tools.errors import InvalidArguments


class Colour(enum.Enum):
    RED = "red"


class Inner(BaseModel):
    n: int


def typed(
    text: str = "",
    count: int = 1,
    ratio: float = 0.5,
    flag: bool = False,
    when: datetime.date | None = None,
    colour: Colour = Colour.RED,
    where: Path = Path(),
    inner: Inner | None = None,
    pair: tuple[int, int] = (0, 0),
    anything: Any = None,
) -> None: ...


DICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 5},
        "count": {"type": "integer", "minimum": 1, "default": 1},
        "ratio": {"type": "number"},
        "flag": {"type": "boolean"},
        "colour": {"enum": ["red", "blue"]},
        "options": {"type": "object", "properties": {"deep": {"type": "integer", "default": 7}}},
        "many": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
    },
}


def by_dict(
    count: int,
    text: str = "",
    ratio: float = 0.5,
    flag: bool = False,
    colour: str = "red",
    options: Any = None,
    many: Any = (),
) -> None: ...


@pytest.fixture(scope="module")
def registry() -> ToolRegistry:
    made = ToolRegistry()
    made.register(typed)
    made.register("by_dict", parameters=DICT_SCHEMA)(by_dict)
    return made


def validated(registry: ToolRegistry, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    validate = registry.get_validator(tool)
    assert validate is not None
    return validate(arguments)


def test_defaults_are_filled_in(registry: ToolRegistry) -> None:
    assert validated(registry, "by_dict", {"options": {}}) == {"count": 1, "options": {"deep": 7}}
    assert validated(registry, "typed", {})["count"] == 1


def test_json_forms_become_values(registry: ToolRegistry) -> None:
    values = validated(
        registry,
        "typed",
        {
            "when": "2026-11-22",
            "colour": "red",
            "where": "a/b",
            "inner": {"n": 2},
            "pair": [1, 2],
            "count": 5.0,
        },
    )
    assert values["when"] == datetime.date(2026, 11, 22)
    assert values["colour"] is Colour.RED
    assert values["where"] == Path("a/b")
    assert values["inner"] == Inner(n=2)
    assert values["pair"] == (1, 2)
    assert (values["count"], type(values["count"])) == (5, int)


def test_python_values_pass_for_embedding_programs(registry: ToolRegistry) -> None:
    values = validated(registry, "typed", {"where": Path("x"), "inner": Inner(n=1)})
    assert (values["where"], values["inner"]) == (Path("x"), Inner(n=1))


@pytest.mark.parametrize("tool", ["typed", "by_dict"])
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"count": "5"}, "count"),
        ({"count": True}, "count"),
        ({"count": 1.5}, "count"),
        ({"count": None}, "count"),
        ({"ratio": "0.5"}, "ratio"),
        ({"ratio": math.nan}, "ratio"),
        ({"ratio": math.inf}, "ratio"),
        ({"ratio": True}, "ratio"),
        ({"flag": 1}, "flag"),
        ({"flag": "true"}, "flag"),
        ({"text": 1}, "text"),
        ({"text": ["a"]}, "text"),
        ({"text": b"a"}, "text"),
        ({"text": "\ud800"}, "text"),
        ({"colour": "green"}, "colour"),
    ],
    ids=repr,
)
def test_wrong_types_are_refused_by_name(
    registry: ToolRegistry, tool: str, arguments: dict[str, Any], field: str
) -> None:
    """ACCEPTANCE B-07."""
    with pytest.raises(InvalidArguments) as caught:
        validated(registry, tool, arguments)
    assert [error.path for error in caught.value.errors] == [field]


@pytest.mark.parametrize("tool", ["typed", "by_dict"])
def test_unknown_names_get_a_suggestion(registry: ToolRegistry, tool: str) -> None:
    with pytest.raises(InvalidArguments, match=r"cuont: unknown argument; did you mean 'count'\?"):
        validated(registry, tool, {"cuont": 1})
    with pytest.raises(InvalidArguments, match="zzz: unknown argument; allowed: "):
        validated(registry, tool, {"zzz": 1})


def test_errors_say_what_is_allowed(registry: ToolRegistry) -> None:
    with pytest.raises(InvalidArguments) as caught:
        validated(registry, "by_dict", {"count": 0, "text": "too long", "many": [1, "x", 3]})
    assert str(caught.value) == (
        "invalid arguments for by_dict: count: must be at least 1, got 0; "
        "many: must have at most 2 items; many.1: must be of type integer, got 'x'; "
        "text: must have at most 5 characters"
    )


def test_hidden_poison_is_found_anywhere(registry: ToolRegistry) -> None:
    for poison in ({"k": ["\udc80"]}, {"\ud800": 1}, [[math.inf]]):
        with pytest.raises(InvalidArguments, match="anything"):
            validated(registry, "typed", {"anything": poison})


def test_deep_nesting_is_refused_not_crashed_on(registry: ToolRegistry) -> None:
    deep: Any = 1
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(InvalidArguments, match="levels deep"):
        validated(registry, "typed", {"anything": deep})


def test_messages_stay_short(registry: ToolRegistry) -> None:
    with pytest.raises(InvalidArguments) as caught:
        validated(registry, "typed", {"count": "9" * 100_000} | {"x" * 5_000 + str(i): 1 for i in range(500)})
    assert len(str(caught.value)) < 10_000
    with pytest.raises(InvalidArguments) as caught:
        validated(registry, "by_dict", {"count": "9" * 100_000})
    assert len(str(caught.value)) < 1_000


def test_a_models_own_choices_hold() -> None:
    class Loose(BaseModel):
        model_config = ConfigDict(extra="allow", strict=False)
        count: int
        renamed: str = Field(default="d", alias="reNamed")

    registry = ToolRegistry()

    @registry.register(parameters=Loose)
    def tool(count: int, renamed: str, **more: Any) -> None: ...

    assert validated(registry, "tool", {"count": "5", "reNamed": "x", "more": 1}) == {
        "count": 5,
        "renamed": "x",
        "more": 1,
    }
    assert list(registry.list_tools()[0].parameters["properties"]) == ["count", "reNamed"]


def test_camel_case_on_the_wire_snake_case_in_the_function() -> None:
    from typing import Annotated

    registry = ToolRegistry()

    @registry.register
    def tool(old_text: Annotated[str, Field(alias="oldText")]) -> None: ...

    assert validated(registry, "tool", {"oldText": "x"}) == {"old_text": "x"}
    with pytest.raises(InvalidArguments, match="did you mean 'oldText'"):
        validated(registry, "tool", {"old_text": "x"})


def test_additional_properties_of_a_dict_schema_are_kept() -> None:
    registry = ToolRegistry()
    schema = {"type": "object", "properties": {}, "additionalProperties": {"type": "integer"}}

    @registry.register("t", parameters=schema)
    def tool(**more: int) -> None: ...

    assert validated(registry, "t", {"n": 1}) == {"n": 1}
    with pytest.raises(InvalidArguments, match="n: must be of type integer"):
        validated(registry, "t", {"n": "1"})


class Edit(BaseModel):
    model_config = ConfigDict(extra="forbid")
    oldText: str  # noqa: N815


def test_a_misspelt_field_of_a_nested_object_gets_a_suggestion() -> None:
    registry = ToolRegistry()

    @registry.register
    def edit(edits: list[Edit]) -> None: ...

    with pytest.raises(
        InvalidArguments, match=r"edits\.0\.old_string: unknown argument; did you mean 'oldText'\?"
    ):
        validated(registry, "edit", {"edits": [{"old_string": "x"}]})


@pytest.mark.parametrize("count", [40_000, 1_000_000])
def test_a_flood_of_mistakes_is_refused_without_collecting_them(count: int) -> None:
    registry = ToolRegistry()
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}}

    @registry.register
    def typed(a: list[Edit]) -> None: ...

    registry.register("by_schema", parameters=schema)(lambda a=(): None)
    for tool, item in (("typed", {}), ("by_schema", 1)):
        with pytest.raises(InvalidArguments) as caught:
            validated(registry, tool, {"a": [item] * count})
        assert 1 <= len(caught.value.errors) <= 10

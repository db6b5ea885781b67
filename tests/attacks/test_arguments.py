"""ACCEPTANCE B-07: what a tool's published schema forbids never reaches its body, and the rest does.

The judge is an independent validator over the very schema that clients are shown, so the test fails
both where we are laxer than we say and where we are stricter.
"""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_tools import ErrorCode, InvalidArguments, ToolSystem

system = ToolSystem.with_builtins()
TOOLS = system.registry.list_tools()
EXAMPLES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def fitting(schema: Any, root: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that mostly fit a schema, of the kinds that our tools use; the judge has the last word."""
    if "$ref" in schema:
        return fitting(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return st.one_of([fitting(option, root) for option in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        case "string":
            return st.text(min_size=schema.get("minLength", 0), max_size=schema.get("maxLength"))
        case "integer":
            low = schema.get("minimum", schema.get("exclusiveMinimum", -10))
            return st.integers(low, schema.get("maximum", low + 10_000))
        case "number":
            return st.floats(schema.get("minimum", 0), schema.get("maximum", 1e6))
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            least = schema.get("minItems", 0)
            return st.lists(fitting(schema.get("items", {}), root), min_size=least, max_size=least + 3)
        case "object" if "properties" not in schema:
            return st.dictionaries(st.text(), fitting(schema["additionalProperties"], root), max_size=3)
        case "object":
            fields = {name: fitting(field, root) for name, field in schema["properties"].items()}
            required = {name: fields.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(required, optional=fields)
    return anything


def accepts(name: str, arguments: dict[str, Any]) -> bool:
    validate = system.registry.get_validator(name)
    assert validate is not None
    try:
        validate(arguments)
    except InvalidArguments as error:
        assert error.errors
        str(error).encode()
        return False
    return True


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_the_published_schema_is_what_is_enforced(tool: Any) -> None:
    judge = jsonschema.Draft202012Validator(tool.parameters)
    fields = list(tool.parameters["properties"])

    @EXAMPLES
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        arguments = dict(data.draw(fitting(tool.parameters, tool.parameters), label="arguments"))
        assert accepts(tool.name, arguments) is judge.is_valid(arguments)
        if fields:
            field = data.draw(st.sampled_from(fields), label="field")
            arguments[field] = data.draw(anything, label="anything")
            assert accepts(tool.name, arguments) is judge.is_valid(arguments), arguments
        name = data.draw(st.text(min_size=1).filter(lambda text: text not in fields), label="unknown name")
        assert not accepts(tool.name, {**arguments, name: 1})

    check()


POISON = ["\ud800", math.nan, math.inf, -math.inf, b"bytes", object(), {"\udc80": 1}, [[math.nan]]]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
async def test_poison_is_refused_by_name_and_nothing_runs(tool: Any) -> None:
    for field in tool.parameters["properties"]:
        for poison in POISON:
            result = await system.execute(tool.name, {field: poison})
            assert result.error_code is ErrorCode.INVALID_ARGUMENTS
            assert field in (result.error or "")
            json.dumps(result.error).encode()

"""F-15: whatever a tool's schema points to, nobody asks the network for it."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_tools.errors import InvalidSchema
from mcp_tools.executor import ToolExecutor
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import ExecutionStatus
from mcp_tools.validation import json_schema_errors, json_schema_validator
from tests.web.listener import Listener, listening, says

SCHEMA = says(b'{"type": "integer"}', Content_Type="application/json")


def pointing(listener: Listener) -> dict[str, dict[str, Any]]:
    far = listener.url("/s.json")
    return {
        "$ref": {"$ref": far},
        "$dynamicRef": {"$dynamicRef": far},
        "$id and a relative $ref": {"$id": listener.url("/base/"), "$ref": "s.json"},
        "in an array": {"type": "array", "items": {"anyOf": [{"$ref": far}]}},
        "in a condition": {"if": {"$ref": far}, "then": {"type": "integer"}},
    }


def an_object(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": of}, **more}


async def test_tools_whose_schemas_lie_elsewhere_are_refused_and_nobody_asks_there() -> None:
    with listening(SCHEMA) as listener:
        for name, schema in pointing(listener).items():
            for schemas in (
                {"parameters": an_object(schema)},
                {"parameters": an_object({}, **{"$defs": {"b": schema}})},
                {"parameters": {"type": "object"}, "output_schema": an_object(schema)},
            ):
                registry = ToolRegistry()
                with pytest.raises(InvalidSchema):
                    registry.register("t", "d", **schemas)(lambda **_: {"a": 1})
                assert not len(registry), name
        assert listener.connections == 0


async def test_the_dialect_that_a_schema_names_is_not_fetched() -> None:
    with listening(SCHEMA) as listener:
        registry = ToolRegistry()
        named = an_object({"type": "integer"}, required=["a"], **{"$schema": listener.url("/s.json")})
        registry.register("t", "d", named, output_schema=named)(lambda a: {"a": a})
        result = await ToolExecutor(registry).execute("t", {"a": 1})
        assert result.status is ExecutionStatus.SUCCESS, result
        assert (await ToolExecutor(registry).execute("t", {"a": "x"})).status is not ExecutionStatus.SUCCESS
        assert listener.connections == 0


def test_a_validator_follows_nothing_by_itself() -> None:
    """For what reaches it all the same; the library would fetch it unless told not to."""
    from jsonschema import Draft202012Validator
    from referencing.exceptions import Unresolvable

    with listening(SCHEMA) as listener:
        far = {"$ref": listener.url("/s.json")}
        with pytest.warns(DeprecationWarning, match="remote references"):
            assert not Draft202012Validator(far).is_valid("x")
        assert listener.connections == 1
        with pytest.raises(Unresolvable):
            json_schema_errors(json_schema_validator(far), "x")
        assert listener.connections == 1

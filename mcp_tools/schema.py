"""A function's signature or a Pydantic model → JSON Schema and the validator that enforces it.

Three ways in (a dict, a model, a signature), one way out: `Parameters`, which the registry keeps.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp_tools.errors import InvalidSchema, SignatureMismatch
from mcp_tools.output.plain import to_plain
from mcp_tools.types import CallContext, ToolOutput
from mcp_tools.validation import (
    JsonSchemaArguments,
    ModelValidator,
    Validator,
    json_schema_errors,
    json_schema_validator,
    pydantic_errors,
)

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.json_schema import GenerateJsonSchema


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a callable takes, as far as a tool call is concerned.

    `names` are its keyword parameters without the context's; `required` those without a default.
    `context` is the parameter that wants the `CallContext`, or None.
    """

    names: Mapping[str, inspect.Parameter]
    required: frozenset[str]
    takes_extra: bool
    context: str | None
    returns: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """A tool's input: the schema that is published and the validator that enforces it."""

    schema: dict[str, Any]
    validate: Validator


OutputShape = Callable[[Any], tuple[Any, str | None]]
"""Returns a result as JSON data that fits the output schema, and what is wrong with it, or None."""


def read_signature(
    tool_name: str, function: Callable[..., Any], local_names: Mapping[str, Any] | None = None
) -> Signature:
    """Read what `function` takes.

    Args:
        tool_name: For error messages.
        function: Any callable: a function, method, partial, or object with `__call__`.
        local_names: Where annotations written as text may also be found (the registering scope).
    Raises:
        SignatureMismatch: It cannot be called by keyword, or an annotation cannot be resolved.
    """
    if not callable(function):
        raise SignatureMismatch(tool_name, f"{function!r} is not callable")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise SignatureMismatch(
            tool_name, "the function is a generator; return one result and report progress instead"
        )
    try:
        signature = inspect.signature(function, eval_str=True, locals=dict(local_names or {}))
    except NameError as error:
        raise SignatureMismatch(
            tool_name, f"an annotation cannot be resolved ({error}); define that name at module level"
        ) from error
    except (ValueError, TypeError, SyntaxError) as error:
        raise SignatureMismatch(tool_name, f"the function has no readable signature ({error})") from error

    names: dict[str, inspect.Parameter] = {}
    takes_extra, context = False, None
    for parameter in signature.parameters.values():
        match parameter.kind:
            case inspect.Parameter.VAR_KEYWORD:
                takes_extra = True
            case inspect.Parameter.VAR_POSITIONAL | inspect.Parameter.POSITIONAL_ONLY:
                raise SignatureMismatch(
                    tool_name, f"parameter {parameter.name!r} cannot be passed by name; arguments have names"
                )
            case _ if _is_context(parameter.annotation):
                context = parameter.name
            case _:
                names[parameter.name] = parameter
    required = frozenset(name for name, p in names.items() if p.default is inspect.Parameter.empty)
    return Signature(
        names=names,
        required=required,
        takes_extra=takes_extra,
        context=context,
        returns=signature.return_annotation,
    )


def parameters_from_signature(tool_name: str, signature: Signature, docstring: str) -> Parameters:
    """Build the input from annotations, defaults and the docstring's `Args:` section."""
    from pydantic import ConfigDict, create_model

    # Fields get neutral names and their real ones as aliases, so that a parameter may be called
    # `json` or `_x`, which a model's own attributes would not allow.
    real_names = {f"field_{i}": name for i, name in enumerate(signature.names)}
    fields: dict[str, Any] = {}
    for field, name in real_names.items():
        parameter = signature.names[name]
        annotation = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
        fields[field] = (annotation, ... if name in signature.required else parameter.default)
    config = ConfigDict(
        extra="allow" if signature.takes_extra else "forbid",
        allow_inf_nan=False,
        arbitrary_types_allowed=False,
        alias_generator=lambda field: real_names.get(field, field),
    )
    try:
        model = create_model(f"{tool_name}_arguments", __config__=config, **fields)
        schema = _model_schema(tool_name, model)
    except InvalidSchema:
        raise
    except Exception as error:
        raise SignatureMismatch(
            tool_name, f"an annotation has no JSON Schema: {_first_line(error)}"
        ) from error
    schema.pop("title", None)
    schema.pop("description", None)
    described = describe_arguments(docstring)
    for wire_name, subschema in schema.get("properties", {}).items():
        if wire_name in described and "description" not in subschema:
            subschema["description"] = described[wire_name]
    return Parameters(schema=schema, validate=ModelValidator(tool_name, model, real_names))


def parameters_from_model(tool_name: str, model: type[BaseModel], signature: Signature) -> Parameters:
    """Build the input from a Pydantic model whose fields the function takes by name."""
    if model.__pydantic_root_model__:
        raise InvalidSchema(tool_name, f"{model.__name__} is a root model; arguments need named fields")
    names = list(model.model_fields)
    takes_extra = model.model_config.get("extra") == "allow"
    _check_takes(tool_name, signature, names, always_given=names, extra=takes_extra)
    schema = _model_schema(tool_name, model)
    validate = ModelValidator(tool_name, model, {name: name for name in names})
    if not takes_extra:
        schema.setdefault("additionalProperties", False)
    return Parameters(schema=schema, validate=validate)


def parameters_from_json_schema(
    tool_name: str, schema: Mapping[str, Any], signature: Signature
) -> Parameters:
    """Take a JSON Schema as it is, and check that it can be enforced and that the function fits it."""
    own = checked_object_schema(tool_name, schema)
    properties: dict[str, Any] = own.get("properties", {})
    hidden = sorted(_names_declared_elsewhere(own) - set(properties))
    if hidden:
        names = ", ".join(map(repr, hidden))
        raise InvalidSchema(tool_name, f'declare {names} under the top level\'s "properties" as well')
    open_ended = bool(own.get("additionalProperties")) or "patternProperties" in own
    if open_ended and not signature.takes_extra:
        raise SignatureMismatch(
            tool_name,
            "the schema allows properties that it does not list, so the function must take **kwargs",
        )
    given = [n for n, s in properties.items() if isinstance(s, dict) and "default" in s]
    given += own.get("required", [])
    _check_takes(tool_name, signature, [*properties, *own.get("required", [])], always_given=given)
    validate = JsonSchemaArguments(tool_name, own, takes_extra=signature.takes_extra)
    return Parameters(schema=own, validate=validate)


def checked_object_schema(tool_name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a schema that is safe to publish.

    Raises:
        InvalidSchema: Not a mapping, not `type: object`, not JSON, not valid JSON Schema, or with a
            `$ref` that leaves the document (nothing is ever fetched).
    """
    if not isinstance(schema, Mapping):
        raise InvalidSchema(tool_name, f"the schema is a {type(schema).__name__}, not a JSON Schema dict")
    if schema.get("type") != "object":
        raise InvalidSchema(tool_name, 'the schema\'s top level must say "type": "object"')
    try:
        own: dict[str, Any] = json.loads(json.dumps(schema, allow_nan=False))
        json.dumps(own, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSchema(tool_name, f"the schema is not JSON: {_first_line(error)}") from error
    for reference in _references(own):
        if not reference.startswith("#"):
            raise InvalidSchema(tool_name, f"$ref {reference!r} leaves the schema; put it under $defs")
    from jsonschema import SchemaError

    try:
        json_schema_validator(own)
    except SchemaError as error:
        where = ".".join(map(str, error.absolute_path)) or "top level"
        raise InvalidSchema(tool_name, f"not a valid JSON Schema at {where}: {_first_line(error)}") from error
    for reference in _references(own):
        if not _resolves(own, reference):
            raise InvalidSchema(tool_name, f"$ref {reference!r} points to nothing in the schema")
    return own


def output_from_annotation(returns: Any) -> tuple[dict[str, Any], OutputShape] | None:
    """Derive an output schema from a return annotation that names a model, dataclass or TypedDict."""
    marks = ("model_json_schema", "__dataclass_fields__", "__total__")  # model, dataclass, TypedDict
    if not isinstance(returns, type) or returns is ToolOutput or not any(hasattr(returns, m) for m in marks):
        return None
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    try:
        adapter = TypeAdapter(returns)
        schema = adapter.json_schema(mode="serialization", schema_generator=_plain_generator())
    except (PydanticUserError, NameError) as error:
        # Derived, never promised, so no reason to refuse the tool. Before Python 3.12, Pydantic
        # wants TypedDict from typing_extensions, and says so.
        logger.warning("no output schema from %s: %s", returns.__name__, _first_line(error))
        return None
    if schema.get("type") != "object":
        return None

    def shape(value: Any) -> tuple[Any, str | None]:
        try:
            fitting = adapter.validator.validate_python(value)
            return to_plain(adapter.dump_python(fitting, mode="json", by_alias=True)), None
        except ValidationError as error:
            return None, "; ".join(f"{e.path or 'result'}: {e.problem}" for e in pydantic_errors(error))
        except ValueError as error:  # such as bytes that are no text
            return None, _first_line(error)

    return schema, shape


def output_from_declaration(
    tool_name: str, declared: Mapping[str, Any] | type[BaseModel]
) -> tuple[dict[str, Any], OutputShape]:
    """Take a declared output schema: a dict, or a Pydantic model class."""
    if isinstance(declared, type):
        derived = output_from_annotation(declared)
        if derived is None:
            raise InvalidSchema(tool_name, "output_schema must be a JSON Schema dict or a Pydantic model")
        return derived
    schema = checked_object_schema(tool_name, declared)
    validator = json_schema_validator(schema)

    def shape(value: Any) -> tuple[Any, str | None]:
        plain = to_plain(value)
        if not isinstance(plain, dict) and "result" in schema.get("properties", {}):
            plain = {"result": plain}  # a list or a scalar, under the name that its schema gives it
        errors = json_schema_errors(validator, plain)
        return plain, "; ".join(f"{e.path or 'result'}: {e.problem}" for e in errors) or None

    return schema, shape


def check_same_fields(tool_name: str, role: str, helper: Signature, fields: Mapping[str, Any]) -> None:
    """Refuse a preview, must_ask or subjects function that cannot take the tool's fields."""
    try:
        _check_takes(tool_name, helper, list(fields), always_given=list(fields))
    except SignatureMismatch as error:
        raise SignatureMismatch(tool_name, f"its {role} function does not fit: {error}") from None


_ARGS_HEADING = re.compile(r"^\s*(Args|Arguments|Parameters):\s*$")
_ARG_LINE = re.compile(r"^(\s+)\*{0,2}(\w+)(?:\s*\([^)]*\))?\s*:\s*(.*)$")


def describe_arguments(docstring: str) -> dict[str, str]:
    """Read the `Args:` section of a Google-style docstring: name → description in one line."""
    described: dict[str, str] = {}
    lines = iter(inspect.cleandoc(docstring).splitlines())
    if not any(_ARGS_HEADING.match(line) for line in lines):
        return described
    indent, current = None, None
    for line in lines:
        if line.strip() and not line[0].isspace():
            break  # the next section
        match = _ARG_LINE.match(line)
        if match and (indent is None or len(match[1]) == indent):
            indent, current = len(match[1]), match[2]
            described[current] = match[3].strip()
        elif current and line.strip():
            described[current] = f"{described[current]} {line.strip()}".strip()
    return described


def summary(docstring: str) -> str:
    """Return a docstring without its sections: what a model is told a tool does."""
    text = inspect.cleandoc(docstring)
    heading = r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?|Source):\s*$"
    return re.split(heading, text, maxsplit=1, flags=re.M)[0].strip()


def _check_takes(
    tool_name: str,
    signature: Signature,
    fields: list[str],
    *,
    always_given: list[str],
    extra: bool = False,
) -> None:
    if signature.takes_extra:
        extra, untaken = False, []
    else:
        untaken = [name for name in fields if name not in signature.names]
    if untaken:
        raise SignatureMismatch(
            tool_name, f"the function has no parameter for {', '.join(map(repr, untaken))} of its schema"
        )
    if extra:
        raise SignatureMismatch(
            tool_name, "the model allows extra fields, so the function must take **kwargs"
        )
    unfilled = sorted(signature.required - set(always_given))
    if unfilled:
        raise SignatureMismatch(
            tool_name,
            f"the function needs {', '.join(map(repr, unfilled))}, which its schema neither requires "
            "nor gives a default",
        )


def _model_schema(tool_name: str, model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True, schema_generator=_plain_generator())
    if schema.get("type") != "object":
        raise InvalidSchema(tool_name, f"{model.__name__} does not describe an object")
    try:
        json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:  # a default of NaN, a lone surrogate in a description
        raise InvalidSchema(tool_name, f"the schema is not JSON: {_first_line(error)}") from error
    return schema


@functools.cache
def _plain_generator() -> type[GenerateJsonSchema]:
    from pydantic.json_schema import GenerateJsonSchema

    class PlainJsonSchema(GenerateJsonSchema):
        """Without titles that only repeat a field's name: they cost a model tokens in every request."""

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

        def encode_default(self, dft: Any) -> Any:
            # Pydantic builds a type adapter for each default, a third of what a schema costs at start.
            return dft if dft is None or type(dft) in (bool, int, str) else super().encode_default(dft)

    return PlainJsonSchema


def _is_context(annotation: Any) -> bool:
    return annotation is CallContext or CallContext in typing.get_args(annotation)


def _names_declared_elsewhere(schema: dict[str, Any]) -> set[str]:
    """Return the properties that only an applicator such as `allOf` declares at the top level."""
    names: set[str] = set()
    parts = [part for key in ("allOf", "anyOf", "oneOf") for part in schema.get(key, ())]
    parts += [schema[key] for key in ("if", "then", "else") if key in schema]
    for part in parts:
        if isinstance(part, dict):
            names |= set(part.get("properties", ())) | _names_declared_elsewhere(part)
    return names


def _references(schema: Any) -> list[str]:
    found: list[str] = []
    if isinstance(schema, dict):
        for key in ("$ref", "$dynamicRef"):
            if isinstance(schema.get(key), str):
                found.append(schema[key])
        for value in schema.values():
            found += _references(value)
    elif isinstance(schema, list):
        for value in schema:
            found += _references(value)
    return found


def _resolves(schema: dict[str, Any], reference: str) -> bool:
    if not reference.startswith("#/"):
        return True  # "#" is the whole; an anchor is left to the validator
    node: Any = schema
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            return False
    return True


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__

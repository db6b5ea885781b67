"""Arguments → validated values, or errors that name the field, what is allowed and a close name.

A validator is built once, at registration. It enforces what is published: a string is no integer
here, because the schema says so; what JSON cannot say (dates, paths, enums, nested models) is built
from its JSON form.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from mcp_tools.errors import FieldError, InvalidArguments

if TYPE_CHECKING:
    from jsonschema.protocols import Validator as JsonSchemaValidator
    from pydantic import BaseModel, ValidationError

Validator = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Takes what was sent; returns keyword arguments for the function. Raises `InvalidArguments`."""

MAX_ERRORS_SHOWN: Final = 10
MAX_VALUE_CHARS: Final = 80
MAX_DEPTH: Final = 60
"""Of nesting in arguments: less than `to_plain` shows, so that nobody approves what was not shown."""
MAX_VALUES: Final = 50_000
"""In one call's arguments, all levels together: finding what is wrong with a million takes minutes."""
_TOO_MANY: Final = f"the arguments hold more than {MAX_VALUES:,} values; send less at a time"
_LARGEST_EXACT_FLOAT: Final = 2**53
_MAX_NAME_CHARS: Final = 100


class ModelValidator:
    """Validates with a Pydantic model and hands its fields on, nested models as instances.

    Args:
        tool_name: For error messages.
        model: Validated strictly, unless its own `model_config` says `strict` or not.
        keywords: Field name in the model → keyword of the function.
    """

    def __init__(self, tool_name: str, model: type[BaseModel], keywords: Mapping[str, str]) -> None:
        self._tool_name = tool_name
        self._validator = model.__pydantic_validator__
        self._keywords = tuple(keywords.items())
        # Pydantic's default would take "5" for 5, which the published schema does not allow.
        self._strict = None if "strict" in model.model_config else True
        self._wire_names = wire_names(model)
        self._takes_extra = model.model_config.get("extra") == "allow"

    def __call__(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        errors = check_plain_data(arguments)
        if not self._takes_extra:
            errors += unknown_names(arguments, self._wire_names)
        if errors:
            raise InvalidArguments(self._tool_name, errors)
        instance = self._validate(dict(arguments))
        values = {keyword: getattr(instance, field) for field, keyword in self._keywords}
        if self._takes_extra:
            values.update(instance.__pydantic_extra__ or {})
        return values

    def _validate(self, arguments: dict[str, Any]) -> BaseModel:
        from pydantic import ValidationError

        try:
            # Python objects first: twice as fast as JSON, and an embedding program may pass a Path.
            return self._validator.validate_python(arguments, strict=self._strict)  # type: ignore[no-any-return]
        except ValidationError as error:
            python_error = error
        try:
            # Then the JSON forms: a string for a date or an enum, a list for a set or a tuple.
            text = json.dumps(arguments)
        except (TypeError, ValueError):
            raise InvalidArguments(self._tool_name, pydantic_errors(python_error)) from None
        try:
            return self._validator.validate_json(text, strict=self._strict)  # type: ignore[no-any-return]
        except ValidationError as error:
            json_error = error
        try:
            # 5.0 is an integer in JSON Schema; Pydantic's strict mode thinks otherwise.
            text = json.dumps(_integral_floats_as_ints(arguments))
            return self._validator.validate_json(text, strict=self._strict)  # type: ignore[no-any-return]
        except ValidationError:
            raise InvalidArguments(self._tool_name, pydantic_errors(json_error)) from None


class JsonSchemaArguments:
    """Enforces a JSON Schema given as a dict, and fills in its defaults.

    Names that the schema does not list are refused unless it says `additionalProperties` itself or
    the function takes `**kwargs`: the call would fail anyway, with a worse message.
    """

    def __init__(self, tool_name: str, schema: dict[str, Any], *, takes_extra: bool) -> None:
        self._tool_name = tool_name
        self._schema = schema
        self._names = set(schema.get("properties", {}))
        self._takes_extra = takes_extra or "additionalProperties" in schema or "patternProperties" in schema
        self._validator = json_schema_validator(schema)

    def __call__(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        errors = check_plain_data(arguments)
        if not self._takes_extra:
            errors += unknown_names(arguments, self._names)
        if errors:
            raise InvalidArguments(self._tool_name, errors)
        values: dict[str, Any] = with_defaults(self._schema, dict(arguments))
        errors = json_schema_errors(self._validator, values)
        if errors:
            raise InvalidArguments(self._tool_name, errors)
        return values


def wire_names(model: type[BaseModel]) -> frozenset[str]:
    """Return every name under which a model accepts a field from outside."""
    names: set[str] = set()
    by_name = model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
    for field, info in model.model_fields.items():
        alias = info.validation_alias if info.validation_alias is not None else info.alias
        choices = getattr(alias, "choices", [alias])  # AliasChoices holds several
        named = {choice for choice in choices if isinstance(choice, str)}
        named |= {str(choice.path[0]) for choice in choices if hasattr(choice, "path")}
        names |= named or {field}
        if by_name:
            names.add(field)
    return frozenset(names)


def json_schema_validator(schema: dict[str, Any]) -> JsonSchemaValidator:
    """Return a validator that never fetches anything: a remote `$ref` fails, it is not followed.

    Raises:
        jsonschema.SchemaError: It is not a valid JSON Schema (2020-12 unless it names another draft).
    """
    # Imported on use: 90 ms that a server with typed tools only never needs.
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry

    cls = validator_for(schema, default=Draft202012Validator)
    cls.check_schema(schema)
    return cls(schema, registry=Registry())


def json_schema_errors(validator: JsonSchemaValidator, value: Any) -> list[FieldError]:
    """Return what is wrong with `value`, at most 10 things; empty if it fits."""
    try:
        # Only as many as are shown: a long array can have an error in every item.
        found = list(itertools.islice(validator.iter_errors(value), MAX_ERRORS_SHOWN))
    except RecursionError:
        return [FieldError("", f"nested more than {MAX_DEPTH} levels deep")]
    found.sort(key=lambda error: list(map(str, error.absolute_path)))
    return [
        FieldError(".".join(map(str, error.absolute_path)), _json_schema_sentence(error)) for error in found
    ]


def check_plain_data(arguments: Mapping[str, Any]) -> list[FieldError]:
    """Find what no schema rules out but nothing downstream can carry.

    NaN and infinities, lone surrogates, nesting over 60 levels, and more than 50,000 values.
    """
    errors: list[FieldError] = []
    values_left = MAX_VALUES
    for name, value in arguments.items():
        # The flat scalar is by far the most frequent argument: it costs no call.
        kind = type(value)
        if kind is int or kind is bool or value is None:
            continue
        problem, values_left = _unusable(value, values_left)
        if problem is not None:
            errors.append(FieldError(_shown_name(name), problem))
        if len(errors) == MAX_ERRORS_SHOWN or values_left <= 0:
            break
    return errors


def unknown_names(arguments: Mapping[str, Any], known: Iterable[str]) -> list[FieldError]:
    """Name every argument that the tool does not have, with the closest one that it has."""
    known = set(known)
    unknown = [name for name in arguments if name not in known]
    if not unknown:
        return []
    missing = sorted(known - set(arguments))
    return [
        FieldError(_shown_name(name), f"unknown argument; {_suggestion(name, missing, known)}")
        for name in unknown[:MAX_ERRORS_SHOWN]
    ]


def closest_name(name: object, known: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """Return the known name that `name` is most likely a slip of, or None."""
    import difflib

    text = str(name)[:_MAX_NAME_CHARS]
    folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(text.casefold(), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def with_defaults(schema: Any, value: Any) -> Any:
    """Return `value` with the defaults of its schema's properties filled in, nested objects too."""
    if not isinstance(schema, dict) or not isinstance(value, dict):
        return value
    filled = dict(value)
    for name, subschema in schema.get("properties", {}).items():
        if name in filled:
            filled[name] = with_defaults(subschema, filled[name])
        elif isinstance(subschema, dict) and "default" in subschema:
            filled[name] = copy.deepcopy(subschema["default"])
    return filled


def _unusable(value: Any, values_left: int) -> tuple[str | None, int]:
    """Return what is wrong, or None, and how many more values the other arguments may hold."""
    pending = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        values_left -= 1
        if values_left <= 0:
            return _TOO_MANY, 0
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError as error:
                problem = f"has a lone surrogate at character {error.start}; send valid Unicode text"
                return problem, values_left
        elif isinstance(item, float):
            if not math.isfinite(item):
                return f"must be a finite number, not {item}", values_left
        elif isinstance(item, dict | list | tuple):
            if depth > MAX_DEPTH:
                return f"nested more than {MAX_DEPTH} levels deep", values_left
            if len(item) >= values_left:
                return _TOO_MANY, 0
            if isinstance(item, dict):
                pending += [(key, depth) for key in item]
                pending += [(part, depth + 1) for part in item.values()]
            else:
                pending += [(part, depth + 1) for part in item]
    return None, values_left


def _integral_floats_as_ints(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) <= _LARGEST_EXACT_FLOAT:
            return int(value)
        case dict():
            return {key: _integral_floats_as_ints(item) for key, item in value.items()}
        case list() | tuple():
            return [_integral_floats_as_ints(item) for item in value]
    return value


def _suggestion(name: object, missing: list[str], known: set[str]) -> str:
    close = closest_name(name, missing) or closest_name(name, known)
    if close is not None:
        return f"did you mean {close!r}?"
    if not known:
        return "this tool takes no arguments"
    return "allowed: " + ", ".join(sorted(known))


def _shown_name(name: object) -> str:
    from mcp_tools.output.plain import safe_str

    text = safe_str(name)
    return text if len(text) <= _MAX_NAME_CHARS else text[:_MAX_NAME_CHARS] + "…"


def _shown(value: Any) -> str:
    from mcp_tools.output.plain import encodable

    text = encodable(repr(value))
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}… ({len(text)} chars)"


def pydantic_errors(error: ValidationError) -> list[FieldError]:
    """Return what Pydantic found wrong, at most 10 things."""
    details = error.errors(include_url=False, include_context=False)
    missing = [item["loc"] for item in details if item["type"] == "missing"]
    return [
        FieldError(".".join(map(str, item["loc"])), _pydantic_sentence(item, missing))
        for item in details[:MAX_ERRORS_SHOWN]
    ]


def _pydantic_sentence(item: Any, missing: list[tuple[int | str, ...]]) -> str:
    match item["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            # Beside it, a required field is missing: most likely under this name.
            siblings = [str(loc[-1]) for loc in missing if loc[:-1] == item["loc"][:-1]]
            close = closest_name(item["loc"][-1], siblings, cutoff=0.4)
            return "unknown argument" + (f"; did you mean {close!r}?" if close is not None else "")
    text = str(item["msg"]).replace("Input should be", "must be")
    return f"{text}, got {_shown(item['input'])}"


def _json_schema_sentence(error: Any) -> str:
    limit, got = error.validator_value, _shown(error.instance)
    match error.validator:
        case "type":
            allowed = " or ".join(limit) if isinstance(limit, list) else limit
            return f"must be of type {allowed}, got {got}"
        case "enum":
            return f"must be one of {_shown(limit)}, got {got}"
        case "required":
            missing = [name for name in limit if name not in error.instance]
            return f"is missing {', '.join(map(repr, missing))}"
        case "minimum" | "exclusiveMinimum":
            return f"must be {'at least' if error.validator == 'minimum' else 'over'} {limit}, got {got}"
        case "maximum" | "exclusiveMaximum":
            return f"must be {'at most' if error.validator == 'maximum' else 'under'} {limit}, got {got}"
        case "minLength" | "minItems":
            return f"must have at least {limit} {'characters' if error.validator == 'minLength' else 'items'}"
        case "maxLength" | "maxItems":
            return f"must have at most {limit} {'characters' if error.validator == 'maxLength' else 'items'}"
    message = str(error.message)
    return message if len(message) <= 4 * MAX_VALUE_CHARS else message[: 4 * MAX_VALUE_CHARS] + "…"

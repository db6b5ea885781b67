"""`mcp-tools call`: one call through the same door, rules and questions as a model's."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import anyio

from mcp_tools.app import App
from mcp_tools.cli import exits, terminal
from mcp_tools.cli.prepare import prepared, read_settings
from mcp_tools.confirmation.terminal import CHANNEL, ask, can_ask
from mcp_tools.errors import ConfigError
from mcp_tools.output.plain import to_json
from mcp_tools.types import (
    Approval,
    CallContext,
    ErrorCode,
    ExecutionResult,
    ExecutionStatus,
    Tool,
    new_call_id,
)

MAX_QUESTIONS: Final = 3
"""A question is put again when what it showed has changed meanwhile; not for ever."""

_EXIT_CODES: Final[Mapping[ExecutionStatus, int]] = {
    ExecutionStatus.SUCCESS: exits.OK,
    ExecutionStatus.VALIDATION_ERROR: exits.USAGE,
    ExecutionStatus.PERMISSION_DENIED: exits.DENIED,
}

HOW_TO_CONFIRM: Final = (
    "This call needs a person's yes ({reason}), and there is no terminal to ask at. Run it in a terminal, or "
    "add --yes"
)


def call(arguments: argparse.Namespace) -> int:
    """Make the call and print what became of it."""
    settings = read_settings(arguments)
    # Who calls sees the result itself: a log line for each call would only be in the way.
    with prepared(settings, log_level=None if arguments.log_level else "error") as app:
        sent = read_arguments(app.registry.get(arguments.tool), arguments.json, arguments.arguments)
        result = _run(app, arguments.tool, sent, yes=arguments.yes)
        is_hidden = result.error_code is ErrorCode.UNKNOWN_TOOL and arguments.tool in app.registry
    text = to_json(result, indent=2) if arguments.output == "json" else result.to_observation()
    if sys.stdout.isatty():
        text = terminal.for_display(text)
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    if result.confirmation is not None:
        how = HOW_TO_CONFIRM.format(reason=result.confirmation.reason)
        rule = f", or allow it by a rule such as --allow {result.tool_name}"
        print(f"mcp-tools: {how}{rule if result.confirmation.can_be_allowed else ''}.", file=sys.stderr)
    if is_hidden:
        print(f"mcp-tools: a deny rule of yours forbids every call of {arguments.tool}.", file=sys.stderr)
        return exits.DENIED
    if result.error_code is ErrorCode.UNKNOWN_TOOL:
        return exits.USAGE
    return _EXIT_CODES.get(result.status, exits.FAILED)


def _run(app: App, tool_name: str, sent: dict[str, Any], *, yes: bool) -> ExecutionResult:
    context = CallContext(transport="cli", on_progress=_show_progress if sys.stderr.isatty() else None)
    result = anyio.run(app.executor.execute, tool_name, sent, context)
    for _ in range(MAX_QUESTIONS):
        if result.confirmation is None or not (yes or can_ask()):
            return result
        channel = "--yes" if yes else CHANNEL
        if not yes:
            answer = ask(result.confirmation, asked_by="mcp-tools call")
            if not answer.is_yes:
                return anyio.run(_refused, app, result, answer.message)
        approval = Approval(confirmation_id=result.confirmation.id, channel=channel)
        context = replace(context, approval=approval, call_id=new_call_id())
        result = anyio.run(app.executor.execute, tool_name, sent, context)
    return result


async def _refused(app: App, result: ExecutionResult, message: str) -> ExecutionResult:
    return await app.executor.record_refusal(
        result, code=ErrorCode.DECLINED, message=message, channel=CHANNEL
    )


async def _show_progress(progress: float, total: float | None = None, message: str | None = None) -> None:
    print(terminal.progress(progress, total, message), file=sys.stderr)


# --- Arguments --------------------------------------------------------------------------------


def read_arguments(tool: Tool | None, as_json: str | None, pairs: list[str]) -> dict[str, Any]:
    """Put together what `--json` and `--arg` give; the latter win.

    A value stays text where the tool's schema takes text, and is read as JSON where it does not.

    Raises:
        ConfigError: Not a JSON object, not `name=value`, or not JSON where it must be.
    """
    arguments = _read_object(as_json) if as_json is not None else {}
    properties = tool.parameters.get("properties", {}) if tool is not None else {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--arg {pair!r} is not of the form name=value")
        schema = properties.get(name, {})
        if tool is None or takes_text(schema, tool.parameters):
            arguments[name] = value
            continue
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            kinds = [option.get("type") for option in (schema, *schema.get("anyOf", ())) if "type" in option]
            kind = " or ".join(map(str, kinds)) or "another kind of value"
            raise ConfigError(f"--arg {name}: {value!r} is not JSON; the tool takes {kind}") from None
    return arguments


def _read_object(text: str) -> dict[str, Any]:
    if text == "-":
        text = sys.stdin.read()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--json is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError("--json is not an object; use '{\"name\": value, ...}'")
    return found


def takes_text(schema: Any, whole: Mapping[str, Any], depth: int = 8) -> bool:
    """Whether a value of this schema may be a string; local `$ref`s are followed."""
    if not isinstance(schema, Mapping) or depth == 0:
        return True
    if "$ref" in schema:
        found: Any = whole
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found.get(part) if isinstance(found, Mapping) else None
        return takes_text(found, whole, depth - 1)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return any(takes_text(option, whole, depth - 1) for option in schema[choice])
    if "enum" in schema:
        return any(isinstance(value, str) for value in schema["enum"])
    kinds = schema.get("type", "string")
    return "string" in (kinds if isinstance(kinds, list) else [kinds])

"""`mcp-tools list`: the tools, for people and for programs."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from mcp_tools.cli import exits, terminal
from mcp_tools.cli.prepare import prepared, read_settings
from mcp_tools.output.plain import to_json
from mcp_tools.production import IN_MEMORY
from mcp_tools.types import Tool

MIN_TEXT_CHARS = 30


def list_tools(arguments: argparse.Namespace) -> int:
    """Print the tools that may be called."""
    # Nothing is called, so nothing is recorded, counted or measured.
    settings = replace(
        read_settings(arguments),
        audit_enabled=False,
        limits=(),
        limits_store=IN_MEMORY,
        metrics_enabled=False,
        metrics_port=None,
    )
    with prepared(settings, log_level=None if arguments.log_level else "error") as app:
        tools = app.executor.visible_tools()
    known = sorted({tag for tool in tools for tag in tool.tags})
    if arguments.tag is not None:
        tools = [tool for tool in tools if arguments.tag in tool.tags]
    match arguments.format:
        case "table":
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
            print(table(tools, width))
        case "json":
            print(to_json([_described(tool) for tool in tools], indent=2))
        case provider:
            print(to_json([tool.to_api_format(provider) for tool in tools], indent=2))
    if not tools:
        hint = f"; tags are: {', '.join(known)}" if arguments.tag is not None else ""
        print(f"mcp-tools: no tool to show{hint}", file=sys.stderr)
    return exits.OK


def table(tools: Sequence[Tool], width: int) -> str:
    """One tool a line: name, whether it asks first, what it does; cut to `width` columns."""
    names = max((len(tool.name) for tool in tools), default=0)
    room = max(MIN_TEXT_CHARS, width - names - 8)
    lines = []
    for tool in tools:
        first = terminal.for_display(tool.description.split("\n\n")[0])
        what = textwrap.shorten(first, room, placeholder=" …")
        lines.append(
            f"{tool.name:<{names}}  {'asks' if tool.requires_confirmation else '':<4}  {what}".rstrip()
        )
    return "\n".join(lines)


def _described(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "title": tool.title,
        "description": tool.description,
        "tags": tool.tags,
        "requires_confirmation": tool.requires_confirmation,
        "timeout_seconds": tool.timeout_seconds,
        "parameters": tool.parameters,
        "output_schema": tool.output_schema,
        "annotations": asdict(tool.annotations),
        "source": tool.source,
    }

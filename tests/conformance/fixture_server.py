"""The tools that the official conformance suite calls by name, served by our own server.

Run it with a file to write its URL to: `python fixture_server.py FILE`.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import anyio

from mcp_tools import (
    CallContext,
    MediaContent,
    TextContent,
    ToolError,
    ToolOutput,
    ToolRegistry,
)
from mcp_tools.server import run

registry = ToolRegistry()

_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_WAV = base64.b64decode("UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA=")


@registry.register
def test_simple_text() -> str:
    """Return a text."""
    return "This is a simple text response for testing."


@registry.register
def test_image_content() -> ToolOutput:
    """Return an image."""
    return ToolOutput(content=[MediaContent(data=_PNG, media_type="image/png")])


@registry.register
def test_audio_content() -> ToolOutput:
    """Return audio."""
    return ToolOutput(content=[MediaContent(data=_WAV, media_type="audio/wav")])


@registry.register
def test_embedded_resource() -> ToolOutput:
    """Return a resource that travels with the result."""
    return ToolOutput(content=[MediaContent(data=b"embedded", media_type="application/octet-stream")])


@registry.register
def test_multiple_content_types() -> ToolOutput:
    """Return several pieces."""
    return ToolOutput(
        content=[
            TextContent(text="Multiple content types test:"),
            MediaContent(data=_PNG, media_type="image/png"),
            MediaContent(data=b'{"test":"data"}', media_type="application/json"),
        ]
    )


@registry.register
def test_error_handling() -> str:
    """Fail."""
    raise ToolError("This tool intentionally returns an error for testing")


@registry.register
async def test_tool_with_progress(context: CallContext) -> str:
    """Report progress three times."""
    for progress in (0, 50, 100):
        await context.report_progress(progress, 100, f"Completed step {progress} of {100}")
        await anyio.sleep(0.06)
    return "done"


@registry.register(requires_confirmation=True)
def test_elicitation(message: str = "") -> str:
    """Run after a person's yes."""
    return f"confirmed {message}"


@registry.register(requires_confirmation=True)
def test_input_required_result_elicitation() -> str:
    """Run after a person's yes."""
    return "confirmed"


@registry.register(requires_confirmation=True)
def test_input_required_result_request_state() -> str:
    """Run after a person's yes, given with its state."""
    return "state-ok"


@registry.register(requires_confirmation=True)
def test_input_required_result_tampered_state() -> str:
    """Run after a person's yes, given with an untouched state."""
    return "confirmed"


@registry.register(requires_confirmation=True)
def test_input_required_result_capabilities() -> str:
    """Ask only what the client can answer."""
    return "confirmed"


@registry.register(requires_confirmation=True)
def test_streaming_elicitation() -> str:
    """Run after a person's yes; the question must not travel as a request of its own."""
    return "confirmed"


@registry.register
def test_trigger_tool_change() -> str:
    """Change the list of tools while it is watched."""
    if registry.get("test_came_later") is None:
        registry.register(name="test_came_later", description="Came later.")(lambda: "late")
    else:
        registry.remove("test_came_later")
    return "changed"


@registry.register(
    parameters={
        "type": "object",
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "priority": {"type": "integer", "x-mcp-header": "Priority"},
            "query": {"type": "string"},
        },
        "required": ["region"],
        "additionalProperties": False,
    }
)
def test_custom_headers(region: str, priority: int = 0, query: str = "") -> str:
    """Take arguments that a proxy can read in headers."""
    return f"{region} {priority} {query}"


@registry.register(
    parameters={
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    }
)
def json_schema_2020_12_tool(**arguments: object) -> str:
    """Have a schema with everything in it."""
    return str(sorted(arguments))


def main() -> int:
    """Serve until told to stop."""
    where = Path(sys.argv[1])
    return run(
        registry,
        "http",
        host="localhost",
        port=0,
        on_listening=lambda listening: where.write_text(f"http://localhost:{listening.port}/mcp"),
    )


if __name__ == "__main__":
    sys.exit(main())

"""`execute_python` with what clients and the executor are told about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from mcp_tools.builtin.python.describe import description
from mcp_tools.builtin.python.options import EXTRA_S, PythonOptions, check_folders, is_closed
from mcp_tools.builtin.python.result import PythonResult
from mcp_tools.builtin.python.tool import FileBytes, PythonTool
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import REACHES_LOOPBACK, CallContext, ToolAnnotations, ToolOutput

if TYPE_CHECKING:
    from sandbox import SandboxConfig

TAG: Final = "execution"
MAX_CODE_CHARS: Final = 1024**2


def register_python_tool(
    registry: ToolRegistry, limits: PythonOptions | SandboxConfig, *, always_confirm: bool = False
) -> PythonTool:
    """Register `execute_python` under these limits. Starts nothing.

    It asks first where code can reach the network or change a folder of the host; where it cannot, there
    is nothing that a yes could be about.

    Args:
        limits: What a call may use.
        always_confirm: It asks before each call, and no rule can allow it beforehand.
    Returns:
        The tool; close it at the end.
    Raises:
        ConfigError: A folder that `limits` name does not exist.
        RegistrationError: The name is taken.
    """
    check_folders(limits)
    tool = PythonTool(limits, always_confirm=always_confirm)
    most_s = limits.timeout_seconds
    told = f"Stop it after so many seconds; {most_s:g} unless given."

    async def execute_python(
        code: Annotated[str, Field(min_length=1, max_length=MAX_CODE_CHARS)],
        session: Annotated[str | None, Field(min_length=1, max_length=64)] = None,
        files: dict[str, str | FileBytes] | None = None,
        timeout_seconds: Annotated[float | None, Field(gt=0, le=most_s, description=told)] = None,
        *,
        context: CallContext,
    ) -> ToolOutput:
        """Run the code.

        Args:
            code: Python source. The value of a last line that is an expression comes back, as in a notebook.
            session: Continue this session, or begin it. Any name; choose one of your own.
            files: Put into the working folder first: relative path to text, or to {"base64": "..."} for
                what is no text. At most 16 MiB together.
        """
        return await tool.run(code, session, files, timeout_seconds, context)

    closed = is_closed(limits)
    more: dict[str, Any] = {"tags": [TAG, *([REACHES_LOOPBACK] if limits.allow_network else [])]}
    registry.register(
        description=description(limits),
        title="Run Python",
        timeout=most_s + EXTRA_S,
        requires_confirmation=always_confirm or not closed,
        output_schema=PythonResult,
        preview=tool.preview,
        must_ask=tool.must_ask if always_confirm else None,
        annotations=ToolAnnotations(
            read_only_hint=closed,
            destructive_hint=not closed,
            # A session goes on, and so do clocks and random numbers.
            idempotent_hint=False,
            open_world_hint=limits.allow_network,
        ),
        **more,
    )(execute_python)
    return tool

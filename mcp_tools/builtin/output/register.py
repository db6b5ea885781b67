"""`read_output` with what clients and the executor are told about it."""

from __future__ import annotations

from typing import Final

from mcp_tools.builtin.output.tool import PAGE_SCHEMA, OutputReader
from mcp_tools.output.budget import OutputBudget
from mcp_tools.output.store import OutputStore
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import ToolAnnotations

TAG: Final = "output"


def register_output_tool(
    registry: ToolRegistry, store: OutputStore, budget: OutputBudget | None = None
) -> None:
    """Register `read_output` over `store`.

    Args:
        budget: Its pages are no larger than this allows for whoever calls. None: the default one.
    Raises:
        RegistrationError: The name is taken.
    """
    reader = OutputReader(store, (budget or OutputBudget()).room)
    registry.register(
        title="Read kept output",
        annotations=ToolAnnotations(
            read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
        tags=[TAG],
        output_schema=PAGE_SCHEMA,
    )(reader.read_output)

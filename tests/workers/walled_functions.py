"""Functions for a sandbox, in a module that registers some of its own as such modules do."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mcp_tools import ToolError, ToolOutput, ToolSystem
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import TextContent
from tests.workers.walled_helper import GREETING

if TYPE_CHECKING:
    import pytest  # noqa: F401

registry = ToolRegistry()
tools = ToolSystem()
state: list[int] = []


@registry.register(tags=["polite"])
def greet(name: str, times: int = 1, how: Literal["loud"] | None = None) -> dict[str, Any]:
    """Greet somebody."""
    print("greeting")
    text = f"{GREETING} {name}" * times
    return {"text": text.upper() if how == "loud" else text}


@tools.register
def remember(value: int) -> list[int]:
    """Remember something."""
    state.append(value)
    return state


async def later(value: float) -> float:
    import asyncio

    await asyncio.sleep(0.01)
    return value


def odd(what: str) -> Any:
    match what:
        case "output":
            return ToolOutput(content=[TextContent(text="t")], structured={"a": 1})
        case "tool error":
            raise ToolError("not now", is_passing=True, retry_after_s=1.5)
        case "value error":
            raise ValueError("bad")
        case "exit":
            os._exit(3)
        case "set":
            return {1, 2}
        case "memory":
            return len(bytearray(4 * 1024**3))
        case "import":
            import numpy  # noqa: F401
    return what


def reach(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=2).close()


def read(path: str) -> str:
    return Path(path).read_text()


def write_late(path: str, seconds: float) -> None:
    time.sleep(seconds)
    Path(path).touch()

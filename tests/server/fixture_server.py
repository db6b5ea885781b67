"""The server that the tests of this folder talk to: `python fixture_server.py TRANSPORT [JSON options]`.

Small tools, each with one habit. What they do to the world is one line in the file that
`MCP_TOOLS_TEST_EFFECTS` names, so that a test sees what really ran; every finished call is one line in
the file that `MCP_TOOLS_TEST_CALLS` names.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import anyio

from mcp_tools import (
    CallContext,
    ExecutionResult,
    MediaContent,
    Preview,
    ResourceLink,
    TextContent,
    ToolAnnotations,
    ToolError,
    ToolExecutor,
    ToolOutput,
    ToolRegistry,
)
from mcp_tools.confirmation.ledger import ConfirmationLedger

registry = ToolRegistry()

STATE = {"version": 1}


@dataclass
class Sum:
    """What `add` returns."""

    total: int


@registry.register(title="Echo", annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
def echo(text: str) -> str:
    """Return the text."""
    return text


@registry.register
def add(a: int, b: int) -> Sum:
    """Add two numbers."""
    return Sum(total=a + b)


@registry.register(timeout=60.0)
async def slow(steps: int, context: CallContext, step_s: float = 0.0) -> str:
    """Report progress at each step."""
    for step in range(steps):
        await context.report_progress(step + 1, steps, f"step {step + 1}")
        await anyio.sleep(step_s)
    return "done"


@registry.register(timeout=120.0)
async def blocks(marker: str) -> str:
    """Wait until withdrawn, and write down that it was."""
    effect(f"begun {marker}")
    try:
        await anyio.sleep(100)
    except anyio.get_cancelled_exc_class():
        effect(f"cancelled {marker}")
        raise
    return "never"


@registry.register(timeout=120.0)
def blocks_a_thread(marker: str) -> str:
    """Sleep in a thread, where nothing can wake it."""
    effect(f"begun {marker}")
    time.sleep(100)
    return "never"


@registry.register(timeout=120.0)
async def blocks_the_loop(marker: str) -> str:
    """Do what a tool must not do."""
    effect(f"begun {marker}")
    time.sleep(100)  # noqa: ASYNC251
    return "never"


@registry.register(timeout=120.0)
async def spawns(marker: str) -> str:
    """Start a child that outlives its call."""
    child = subprocess.Popen(["sleep", "100"])  # noqa: ASYNC220
    effect(f"child {child.pid}")
    effect(f"begun {marker}")
    await anyio.sleep(100)
    return "never"


def _what(line: str) -> Preview:
    return Preview(text=f"+ {line}", state=str(STATE["version"]))


@registry.register(requires_confirmation=True, preview=_what, title="Append a line")
def needs_yes(line: str, context: CallContext) -> dict[str, Any]:
    """Append a line to the file of effects."""
    effect(f"wrote {line} asked={context.asked} state={context.approved_state}")
    return {"line": line, "by": context.principal}


@registry.register
def change_state() -> str:
    """Change what the preview of `needs_yes` was made from."""
    STATE["version"] += 1
    return str(STATE["version"])


class Unprintable(Exception):
    """Raises once more when it is printed."""

    def __str__(self) -> str:
        raise RuntimeError("no")


_FAILURES: dict[str, BaseException] = {
    "tool_error": ToolError("the moon is in the wrong phase; try again tomorrow"),
    "value": ValueError("bad value"),
    "system_exit": SystemExit(3),
    "keyboard_interrupt": KeyboardInterrupt(),
    "generator_exit": GeneratorExit(),
    "cancelled": asyncio.CancelledError(),
    "memory": MemoryError(),
    "group": BaseExceptionGroup("two", [ValueError("x"), SystemExit(1)]),
    "unprintable": Unprintable(),
    "stop_iteration": StopIteration(5),
    "timeout": TimeoutError("its own"),
}


@registry.register
async def fails(how: str) -> str:
    """Raise."""
    if how == "recursion":
        return await fails(how)
    raise _FAILURES[how]


@registry.register
def fails_in_thread(how: str) -> str:
    """Raise, in a worker thread."""
    raise _FAILURES[how]


class Odd:
    """Something no format knows."""

    def __repr__(self) -> str:
        return "<odd \udc80>"


_ODD_RESULTS: dict[str, Any] = {
    "surrogate": "a\udc80b",
    "nan": {"x": float("nan"), "y": [float("inf")]},
    "bytes": b"\x00\xff",
    "object": Odd(),
    "big_int": {"n": 10**5000},
    "keys": {1: "a", ("t", 2): "b", "\udcff": "c"},
    "none": None,
    "list": [1, "two", {"three": 3}],
    "surrogate_in_dict": {"k\udc80": ["\ud800"]},
}


@registry.register
def odd(which: str) -> Any:
    """Return something hard to send."""
    return _ODD_RESULTS[which]


@registry.register
def big(characters: int, in_dict: bool = False) -> Any:
    """Return a lot."""
    text = "x" * characters
    return {"text": text, "n": 1} if in_dict else text


@registry.register
def pieces() -> ToolOutput:
    """Return every kind of content."""
    return ToolOutput(
        content=[
            TextContent(text="a picture:"),
            MediaContent(data=b"\x89PNG", media_type="image/png"),
            MediaContent(data=b"RIFF", media_type="audio/wav"),
            MediaContent(data=b"%PDF", media_type="application/pdf"),
            ResourceLink(uri="file:///a.txt", name="a.txt", media_type="text/plain", size_bytes=3),
        ],
        structured={"count": 4},
    )


@registry.register
def structured_only() -> ToolOutput:
    """Return structured content without text."""
    return ToolOutput(structured={"answer": 42})


@registry.register
def noisy() -> str:
    """Print in every way there is."""
    print("print pollutes", flush=True)
    sys.stdout.write("write pollutes\n")
    os.write(1, b"fd pollutes\n")
    subprocess.run(["echo", "child pollutes"], check=True)
    logging.getLogger("pollution").warning("logging pollutes")
    return "clean"


@registry.register
def reads_stdin() -> str:
    """Read what a prompt would."""
    return repr(sys.stdin.readline())


@registry.register
def change_list() -> str:
    """Add a tool, or take it away again."""
    if registry.get("extra") is None:
        registry.register(name="extra", description="Came later.")(lambda: "extra")
        return "added"
    registry.remove("extra")
    return "removed"


@registry.register
def who(context: CallContext) -> dict[str, Any]:
    """Say who calls."""
    return {
        "principal": context.principal,
        "session_id": context.session_id,
        "client": context.client,
        "transport": context.transport,
    }


def effect(line: str) -> None:
    """Write a line to the file of effects."""
    _append("MCP_TOOLS_TEST_EFFECTS", line)


def record(result: ExecutionResult) -> None:
    """Write down a finished call; a hook."""
    _append("MCP_TOOLS_TEST_CALLS", f"{result.tool_name} {result.status.value} {result.error_code or '-'}")


def _append(variable: str, line: str) -> None:
    path = os.environ.get(variable)
    if path:
        with open(path, "a") as file:
            file.write(line + "\n")


def main() -> int:
    """Serve until told to stop."""
    from mcp_tools.server import run

    transport = sys.argv[1] if len(sys.argv) > 1 else "stdio"
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    ledger = ConfirmationLedger(ttl_s=options.pop("ttl_s", 120.0))
    executor = ToolExecutor(registry, confirmations=ledger)
    executor.add_hook(record)
    if transport != "stdio":
        options = {"port": 0} | options
        options["on_listening"] = lambda listening: _append("MCP_TOOLS_TEST_URLS", "\n".join(listening.urls))
    return run(executor, transport, **options)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())

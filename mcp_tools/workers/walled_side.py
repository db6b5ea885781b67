"""The sandbox's side of a call: import the function from what came along, call it, write what came of it.

A script of its own there, written into the working folder with the sources it needs. Whatever costs time to
import is imported only where a call needs it.
"""

from __future__ import annotations

import importlib
import json
import sys

TYPE_CHECKING = False  # typing itself is not loaded: a sandbox imports this for each call
if TYPE_CHECKING:
    from typing import Any


def main(folder: str, request: str, result: str) -> None:
    """Make the call that the file `request` asks for, and write the file `result`.

    Args:
        folder: Where the sources are.
    """
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    with open(request, encoding="utf-8") as file:
        wanted: dict[str, Any] = json.load(file)
    report = _failed(wanted) or _outcome(wanted)
    with open(result, "w", encoding="utf-8") as file:
        file.write(report)


_found: list[Any] = []


def _failed(wanted: dict[str, Any]) -> str | None:
    """Import the function; returns what went wrong."""
    try:
        from mcp_tools_lookup import found_in  # type: ignore[import-not-found]

        module = importlib.import_module(wanted["module"])
        _found.append(found_in(module, wanted["qualname"], wanted["first_line"]))
    except BaseException as error:
        return json.dumps({"kind": "failed", "type": type(error).__name__, "text": str(error)})
    return None


def _outcome(wanted: dict[str, Any]) -> str:
    try:
        value = _found[0](**wanted["arguments"])
        if hasattr(value, "__await__"):
            value = _awaited(value)
        return _returned(value)
    except BaseException as error:
        from mcp_tools.workers.report import raised

        return json.dumps(raised(error))


def _returned(value: Any) -> str:
    try:
        return json.dumps({"kind": "returned", "value": value}, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # not plain data
        from mcp_tools.workers.report import returned

        return json.dumps(returned(value), allow_nan=False)


def _awaited(value: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())

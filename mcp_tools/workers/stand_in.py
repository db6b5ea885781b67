"""What `mcp_tools` is inside the sandbox: enough for a module that registers its own functions to load.

The words (`ToolError`, `ToolOutput`, `CallContext`, …) are the real ones. Everything else, registries above
all, is an object that takes every call and does nothing; as a decorator it returns the function unchanged.
The package's own `__init__.py` there; nothing imports it here.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

TYPE_CHECKING = False  # typing itself is not loaded: a sandbox imports this for each call
if TYPE_CHECKING:
    from typing import Any


class Inert:
    """Takes everything and does nothing."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        is_decorating = len(args) == 1 and not keywords and callable(args[0])
        return args[0] if is_decorating else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class InertModules:
    """Finds each module of the package that did not come along, and finds it empty."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        is_ours = name.startswith("mcp_tools.")
        return ModuleSpec(name, self, is_package=True) if is_ours else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = _attribute


def _attribute(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Inert()


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    errors = import_module("mcp_tools.errors")
    if hasattr(errors, name):
        return getattr(errors, name)
    return getattr(import_module("mcp_tools.types"), name) if name in WORDS else Inert()


WORDS: frozenset[str] = frozenset()
"""Names in `mcp_tools.types`, which costs too much to load for nothing. Filled in when this is sent."""

if __name__ == "mcp_tools":
    sys.meta_path.append(InertModules())

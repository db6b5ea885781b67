"""The sources a function needs in a sandbox: its module, and what of ours and its owner's that imports.

Read from the import statements, never by running anything. The standard library is there already; other
packages only where the sandbox was given some.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

from mcp_tools import types as words
from mcp_tools.errors import RegistrationError
from mcp_tools.workers.target import Target

MAX_BUNDLE_BYTES: Final = 4 * 1024 * 1024

MAIN: Final = "__mp_main__"
"""What a script is called there, so that what it does as a script is left out."""

SCRIPT: Final = "mcp_tools_call"
"""The module in there that makes the call."""

_PACKAGE: Final = Path(__file__).parents[1]
_ALONG: Final = {
    "mcp_tools/__init__.py": "workers/stand_in.py",
    f"{SCRIPT}.py": "workers/walled_side.py",
    "mcp_tools_lookup.py": "workers/lookup.py",
    **{
        f"mcp_tools/{name}": name
        for name in (
            *("errors.py", "types.py", "output/__init__.py", "output/plain.py"),
            *("workers/__init__.py", "workers/report.py"),
        )
    },
}
_INSTALLED: Final = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What goes into the sandbox.

    Args:
        files: Sources by their paths, relative, with `/`.
        module: Which one to import.
        preload: Modules of the standard library that these import at their top.
    """

    files: dict[str, str]
    module: str
    preload: tuple[str, ...]


def bundle_of(target: Target, name: str, *, has_packages: bool) -> Bundle:
    """Gather what `target` needs.

    Args:
        name: The tool's, for messages.
        has_packages: Whether other packages than the standard library are there.
    Raises:
        RegistrationError: It cannot run in a sandbox, and why.
    """

    module = target.module if target.module != "__main__" else target.main_name or MAIN
    if module.partition(".")[0] == "mcp_tools":
        raise _refusal(name, "functions of mcp_tools itself do not")
    files = {path: (_PACKAGE / source).read_text(encoding="utf-8") for path, source in _ALONG.items()}
    known = [name for name in vars(words) if not name.startswith("_")]
    files["mcp_tools/__init__.py"] += f"\nWORDS = frozenset({sorted(known)})\n"
    preload: set[str] = set()
    seen: set[str] = set()
    waiting = deque([module])
    while waiting:
        current = waiting.popleft()
        if current in seen:
            continue
        seen.add(current)
        path, source = _source(current, target)
        if source is None:
            if current == module:
                raise _refusal(name, f"the module {module} has no source to send there")
            continue
        files[path] = source
        if sum(map(len, files.values())) > MAX_BUNDLE_BYTES:
            size = f"{MAX_BUNDLE_BYTES:,} characters"
            raise _refusal(name, f"what its module imports is more than {size} of source")
        waiting.extend(_parents(current))
        for found in _imports(source, current, is_package=path.endswith("/__init__.py")):
            own, installed, standard = _sorted(found)
            if installed and not has_packages:
                raise _refusal(
                    name,
                    f"{current} imports {installed!r}, and the sandbox has the standard library only; move "
                    "the function to a module that does without, or give the sandbox its packages",
                )
            waiting.extend(own)
            preload.update(standard)
    return Bundle(files=files, module=module, preload=tuple(sorted(preload)))


def _refusal(name: str, what: str) -> RegistrationError:
    return RegistrationError(f"tool {name!r} cannot run with isolation='sandbox': {what}")


def _sorted(found: _Import) -> tuple[list[str], str | None, list[str]]:
    """The owner's modules, an installed one that is needed for sure, and standard ones worth preloading."""
    own: list[str] = []
    installed: str | None = None
    standard: list[str] = []
    for candidate in found.names:
        top = candidate.partition(".")[0]
        if top in sys.stdlib_module_names:
            if found.at_top and candidate in sys.modules:
                standard.append(candidate)
        elif top != "mcp_tools" and _is_own(top):
            own.extend((candidate, *_parents(candidate)))
        elif top != "mcp_tools" and found.at_top:
            installed = top
    return own, installed, standard


@dataclass(frozen=True, slots=True)
class _Import:
    names: Sequence[str]
    at_top: bool


def _imports(source: str, module: str, *, is_package: bool) -> Iterator[_Import]:
    """What a module imports: names of modules, and those that may be names in modules only."""
    tree = ast.parse(source)
    unguarded = {id(node) for node in tree.body}
    pending: deque[ast.AST] = deque(tree.body)
    while pending:
        node = pending.popleft()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending.extend(node.orelse)
            continue
        pending.extend(ast.iter_child_nodes(node))
        at_top = id(node) in unguarded
        if isinstance(node, ast.Import):
            yield _Import([alias.name for alias in node.names], at_top)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, *([base] if base else [])])
            if base and base != "__future__":
                yield _Import([base, *(f"{base}.{alias.name}" for alias in node.names)], at_top)


def _source(module: str, target: Target) -> tuple[str, str | None]:
    """Where a module goes and what is in it; None where there is no such module, or no source of it."""
    if module == MAIN:
        return f"{MAIN}.py", _read(target.main_path)
    spec = _spec(module)
    path = module.replace(".", "/")
    if spec is None:
        return path, None
    is_package = spec.submodule_search_locations is not None
    own = f"{path}/__init__.py" if is_package else f"{path}.py"
    if is_package and spec.origin is None:
        return own, ""  # a namespace
    return own, _read(spec.origin)


def _read(path: str | None) -> str | None:
    if path is None or not path.endswith(".py"):
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _spec(module: str) -> ModuleSpec | None:
    loaded = sys.modules.get(module)
    if loaded is not None:
        return getattr(loaded, "__spec__", None)
    parent = module.rpartition(".")[0]
    if parent and parent not in sys.modules:
        return None  # to look would import it
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None


def _is_own(top: str) -> bool:
    """Whether this is code of the function's owner, not something that was installed."""
    spec = _spec(top)
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return bool(places) and not any(part in _INSTALLED for place in places for part in Path(place).parts)


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]

"""Another installed package's tools are found by their entry points."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mcp_tools import RegistrationError, ToolRegistry

Install = Callable[[str, str], None]

MODULE = """
from mcp_tools import ToolRegistry, ToolSystem

registry = ToolRegistry()

@registry.register
def greet(name: str) -> str:
    return f"hello {name}"

system = ToolSystem(registry)

def add_to(registry):
    registry.register("added")(lambda: 1)

nothing = 42
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a real distribution on the path: a module and its metadata."""

    def install_(package: str, points: str) -> None:
        (tmp_path / f"{package}.py").write_text(MODULE)
        metadata = tmp_path / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[mcp_tools.tools]\n{points}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, package, raising=False)
        importlib.invalidate_caches()

    return install_


@pytest.mark.parametrize(
    ("target", "tool"), [("registry", "greet"), ("system", "greet"), ("add_to", "added")]
)
def test_a_registry_a_system_or_a_function_is_loaded(install: Install, target: str, tool: str) -> None:
    install("friendly_tools", f"hello = friendly_tools:{target}")
    registry = ToolRegistry()
    assert registry.load_entry_points() == ["friendly_tools: hello"]
    assert [found.name for found in registry.list_tools()] == [tool]


@pytest.mark.parametrize(
    ("target", "why"),
    [("nothing", "int holds no tools"), ("missing", "AttributeError"), ("registry", "taken by 'greet'")],
)
def test_what_cannot_be_loaded_is_named(install: Install, target: str, why: str) -> None:
    install("broken_tools", f"hello = broken_tools:{target}")
    registry = ToolRegistry()
    registry.register("greet")(lambda: None)
    with pytest.raises(RegistrationError, match=rf"broken_tools: hello .*{why}"):
        registry.load_entry_points()

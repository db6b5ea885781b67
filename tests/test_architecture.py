"""The picture in docs/architecture.md is true: who imports whom, and what importing us does.

Each rule is also shown a violation made up for it, since a check that cannot fail is no check.
"""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SANDBOX_SIDE = ("sandbox.linux.launcher", "sandbox.linux.zygote", "sandbox.linux.child")
PROTOCOL_LIBRARIES = {
    "mcp",
    "mcp_types",
    "starlette",
    "uvicorn",
    "sse_starlette",
    "h11",
    "httpx2",
    "httpcore2",
}


LOADED_LATE = {
    "ddgs",
    "trafilatura",
    "lxml",
    "pypdf",
    "protego",
    "idna",
    "anthropic",
    "openai",
    "genai_prices",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported thing: `from a.b import c` in module `m` is `a.b.c`, imported by `m`."""

    by: str
    what: str
    at_top: bool

    @property
    def library(self) -> str:
        return self.what.partition(".")[0]

    def touches(self, *rooms: str) -> bool:
        return any(self.what == room or self.what.startswith(f"{room}.") for room in rooms)

    def is_by(self, *rooms: str) -> bool:
        return any(self.by == room or self.by.startswith(f"{room}.") for room in rooms)


def imports_in(source: str, module: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import, those inside functions and under TYPE_CHECKING too; also what is taken of `os`."""
    tree = ast.parse(source)
    in_functions = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        at_top = id(node) not in in_functions
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(by=module, what=alias.name, at_top=at_top)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, *([base] if base else [])])
            for alias in node.names:
                yield Import(by=module, what=f"{base}.{alias.name}", at_top=at_top)
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "os":
            yield Import(by=module, what=f"os.{node.attr}", at_top=at_top)
        elif _is_import_call(node):
            yield Import(by=module, what=node.args[0].value, at_top=at_top)  # type: ignore[attr-defined]


def _is_import_call(node: ast.AST) -> bool:
    """`importlib.import_module("x")` and `__import__("x")` with the name written out."""
    if not isinstance(node, ast.Call) or not node.args:
        return False
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    first = node.args[0]
    return (
        name in ("import_module", "__import__")
        and isinstance(first, ast.Constant)
        and isinstance(first.value, str)
    )


@functools.cache
def all_imports() -> tuple[Import, ...]:
    return tuple(_all_imports())


def _all_imports() -> Iterator[Import]:
    for package in ("mcp_tools", "sandbox"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            yield from imports_in(path.read_text(), module, is_package=is_package)


def sandbox_public_names() -> set[str]:
    for node in ast.parse((ROOT / "sandbox/__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


Rule = Callable[[Import], bool]
"""True means that the import breaks the rule."""

RULES: dict[str, tuple[Rule, str, str]] = {
    # sentence: (rule, module of a made-up violation, its source)
    "sandbox imports nothing from mcp_tools": (
        lambda i: i.is_by("sandbox") and i.touches("mcp_tools"),
        "sandbox.linux.plan",
        "def late():\n    from mcp_tools.types import Tool",
    ),
    "the protocol's libraries appear only in server": (
        lambda i: (
            i.library in PROTOCOL_LIBRARIES
            and not i.is_by("mcp_tools.server")
            and not (i.library == "httpcore2" and i.is_by("mcp_tools.web"))
        ),
        "mcp_tools.cli.demo",
        "from mcp.client import Client",
    ),
    "the executor is handed its policy, limits, observers and backends": (
        lambda i: (
            i.is_by("mcp_tools.executor")
            and i.touches(
                *(f"mcp_tools.{room}" for room in ("policy", "limits", "observe", "builtin", "server")),
                "sandbox",
            )
        ),
        "mcp_tools.executor",
        "from mcp_tools import policy",
    ),
    "builtin and workers see of sandbox only its public names": (
        lambda i: (
            i.is_by("mcp_tools.builtin", "mcp_tools.workers")
            and i.touches("sandbox")
            and i.what != "sandbox"
            and i.what.removeprefix("sandbox.") not in sandbox_public_names()
        ),
        "mcp_tools.builtin.python.tool",
        "from sandbox.linux import backend",
    ),
    "the vocabulary needs the standard library only": (
        lambda i: i.is_by("mcp_tools.types") and i.at_top and i.library not in sys.stdlib_module_names,
        "mcp_tools.types",
        "import anyio",
    ),
    "the web knows only the words": (
        lambda i: (
            i.is_by("mcp_tools.web")
            and i.touches("mcp_tools")
            and not i.touches(
                *(f"mcp_tools.{room}" for room in ("web", "types", "errors", "output", "retry_after"))
            )
        ),
        "mcp_tools.web.client",
        "from mcp_tools.config import Settings",
    ),
    "the agent knows the batch, the words and the prices, and no app": (
        lambda i: (
            i.is_by("mcp_tools.agent")
            and i.touches(*(f"mcp_tools.{room}" for room in ("app", "builtin", "config", "server", "web")))
        ),
        "mcp_tools.agent.loop",
        "def late():\n    from mcp_tools.app import build",
    ),
    "what only some calls need is imported by them": (
        lambda i: i.at_top and i.library in LOADED_LATE,
        "mcp_tools.builtin.web.readable",
        "import trafilatura",
    ),
    "nobody imports the command line": (
        lambda i: i.touches("mcp_tools.cli") and not i.is_by("mcp_tools.cli", "mcp_tools.__main__"),
        "mcp_tools.server.stdio",
        "from mcp_tools.cli import terminal",
    ),
    "only the command line and ToolSystem import the app": (
        lambda i: i.touches("mcp_tools.app") and not i.is_by("mcp_tools.cli", "mcp_tools.system"),
        "mcp_tools.builtin.files",
        "from ..app import build",
    ),
    "the server knows no tools, settings or rules": (
        lambda i: (
            i.is_by("mcp_tools.server")
            and i.touches("mcp_tools.builtin", "mcp_tools.config", "mcp_tools.policy")
        ),
        "mcp_tools.server.http.app",
        "import mcp_tools.config.load",
    ),
    "tools, rules, questions and settings know no server and no executor": (
        lambda i: (
            i.is_by(*(f"mcp_tools.{room}" for room in ("builtin", "policy", "confirmation", "config")))
            and i.touches("mcp_tools.server", "mcp_tools.executor")
        ),
        "mcp_tools.builtin.files",
        "import importlib\nimportlib.import_module('mcp_tools.executor')",
    ),
    "settings are read in config, and handed on": (
        # The sandbox's own processes start with what the server lists, and set what code sees; the self-check
        # plants a secret that nobody may find; which engine is meant, `docker` itself reads there.
        lambda i: (
            i.touches("os.environ", "os.getenv")
            and not i.is_by("mcp_tools.config", *SANDBOX_SIDE, "sandbox.selfcheck", "sandbox.docker")
        ),
        "mcp_tools.executor",
        "import os\nos.environ['HOME']",
    ),
}


@pytest.mark.parametrize("sentence", RULES)
def test_rule_holds(sentence: str) -> None:
    breaks, _, _ = RULES[sentence]
    assert [f"{i.by} imports {i.what}" for i in all_imports() if breaks(i)] == []


@pytest.mark.parametrize("sentence", RULES)
def test_rule_can_fail(sentence: str) -> None:
    breaks, module, source = RULES[sentence]
    assert any(breaks(found) for found in imports_in(source, module))


def test_all_imports_are_found() -> None:
    """The walk sees both packages; otherwise every rule above would hold for nothing."""
    found = list(all_imports())
    assert len({i.by for i in found}) > 30
    assert any(i.by == "mcp_tools.server.handler" and i.library == "mcp" for i in found)


# --- What importing us does -------------------------------------------------------------------

PROBE = """
import json, sys

seen = []

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        # Writing, creating, truncating, appending: os.O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND.
        if isinstance(flags, int) and flags & (0o3 | 0o100 | 0o1000 | 0o2000):
            seen.append(f"open {path} to write")
    elif event.startswith(("socket.", "subprocess.", "shutil.", "urllib.", "http.", "ftplib.", "smtplib.")):
        # Asking whether IPv6 exists opens a socket and sends nothing; libraries do it at import.
        if event not in ("socket.__new__", "socket.bind"):
            seen.append(event)
        elif event == "socket.bind" and arguments[1][0] != "::1":
            seen.append(f"bind {arguments[1]}")
    elif event in ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.mkdir",
                   "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"):
        seen.append(event)

sys.addaudithook(watch)
for name in sys.argv[1:]:
    __import__(name)
print(json.dumps({"seen": seen, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def import_in_a_new_process(*names: str, folder: Path = ROOT) -> dict[str, list[str]]:
    # -B: bytecode files are Python's own business.
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROBE, *names],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        check=True,
    )
    assert done.stderr == ""
    answer: dict[str, list[str]] = json.loads(done.stdout)
    return answer


def test_importing_the_library_is_cheap() -> None:
    loaded = import_in_a_new_process("mcp_tools", "sandbox")["modules"]
    heavy = {"docker", "jsonschema", "pydantic", "aiofiles", "requests", "tomllib", "argparse", "trio"}
    assert set(loaded) & (PROTOCOL_LIBRARIES | heavy) == set()


def every_module() -> list[str]:
    paths = sorted(path for package in ("mcp_tools", "sandbox") for path in (ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def test_importing_does_nothing_to_the_world() -> None:
    """S-06: no network, no writing, no process, for every module there is."""
    # The first request loads it: with it come httpcore2 and trio, which asks the system for a library.
    late = {"mcp_tools.web.dialling"}
    assert import_in_a_new_process(*sorted(set(every_module()) - late))["seen"] == []


def test_the_probe_sees_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import os, socket, subprocess\n"
        "open('made', 'w').close()\n"
        "subprocess.run(['true'])\n"
        "s = socket.socket()\n"
        "try: s.connect(('127.0.0.1', 9))\n"
        "except OSError: pass\n"
        "finally: s.close()\n"
        "os.remove('made')\n"
    )
    seen = import_in_a_new_process("bad", folder=tmp_path)["seen"]
    assert "open made to write" in seen
    assert {"subprocess.Popen", "socket.connect", "os.remove"} <= set(seen)

"""What the README and the example config say is true: it is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SERVER = Path(sys.executable).with_name("mcp-tools")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_opens_with_the_two_commands_and_they_exist() -> None:
    lines = [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()]
    assert README.index("```sh") < 50
    assert lines == ["scripts/try", "scripts/test"]
    for script in (*lines, "scripts/check", "scripts/bench", "scripts/lock", ".ci/run"):
        assert os.access(ROOT / script, os.X_OK), f"{script} cannot be run"
        subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_snippets_run_and_print_what_they_say(number: int, tmp_path: Path) -> None:
    snippet = blocks("python")[number]
    if "sandbox" in snippet and not sys.platform.startswith("linux"):
        pytest.skip("the sandbox needs Linux")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"print\(.*\)  # (.+)$", snippet, re.MULTILINE)
    assert promised
    printed = done.stdout.splitlines()
    assert [line for line in printed if line in promised] == promised


def test_the_refusals_in_the_first_snippet_name_what_is_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    printed = done.stdout.splitlines()
    assert any(line.startswith("validation_error |") and " a:" in line for line in printed)
    assert any(line.startswith("permission_denied |") for line in printed)


def test_the_commands_for_the_terminal_run(tmp_path: Path) -> None:
    codes = []
    for line in blocks("sh")[1].splitlines():
        command = shlex.split(line, comments=True)
        assert command.pop(0) == ".venv/bin/mcp-tools"
        command = [str(tmp_path) if part == "/tmp" else part for part in command]
        done = subprocess.run(
            [SERVER, *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.stdout
        codes.append(done.returncode)
    assert codes == [0, 0, 3]  # nobody is here to answer the last one's question


def test_links_lead_somewhere() -> None:
    for document in documents():
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


# --- Configs that are pasted into clients -----------------------------------------------------


async def tools_of(entry: dict[str, Any]) -> list[str]:
    """Start what a config entry says, as a client would, and return the names of the tools."""
    own = {"XDG_STATE_HOME": os.environ["XDG_STATE_HOME"]}  # no records in the state folder of who runs this
    server = StdioServerParameters(
        command=entry["command"], args=entry["args"], env=own | entry.get("env", {})
    )
    with anyio.fail_after(30):
        async with Client(server) as client:
            return [tool.name for tool in (await client.list_tools()).tools]


def filled_in(value: Any, folder: Path) -> Any:
    """Replace the placeholders of a config by what is on this machine."""
    match value:
        case dict():
            return {name: filled_in(item, folder) for name, item in value.items()}
        case list():
            return [filled_in(item, folder) for item in value]
        case str() if value.endswith("/.venv/bin/mcp-tools"):
            return str(SERVER)
        case str() if value.startswith(("/ABSOLUTE/PATH/TO/A/FOLDER", "/path/to/folder")):
            return str(folder)
    return value


def example() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((ROOT / "claude_desktop_config.example.json").read_text())
    return config


@pytest.mark.parametrize(
    "name", ["plain", "with spaces", "größe 大", "quote'and\"quote", "$HOME", "-x", "C:\\Users\\x"]
)
async def test_the_example_config_starts_a_server_for_any_folder_name(name: str, tmp_path: Path) -> None:
    """B-34. A backslash is a letter like any other here, and survives JSON."""
    folder = tmp_path / name
    folder.mkdir()
    (server,) = filled_in(json.loads(json.dumps(example())), folder)["mcpServers"].values()
    assert "read_file" in await tools_of(server)


def test_a_windows_path_that_is_no_folder_here_is_refused_by_name() -> None:
    """B-34: copied from a guide for another system."""
    args = [*example()["mcpServers"]["mcp-tools"]["args"][:-1], r"C:\Users\ana\notes"]
    done = subprocess.run(
        [SERVER, *args], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"ana" in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_example_config_has_absolute_paths_only() -> None:
    (server,) = example()["mcpServers"].values()
    assert Path(server["command"]).is_absolute()
    assert Path(server["args"][-1]).is_absolute()


async def test_the_config_for_vs_code_has_its_key_names_and_starts_a_server(tmp_path: Path) -> None:
    (config,) = (json.loads(block) for block in blocks("json"))
    (server,) = filled_in(config, tmp_path)["servers"].values()
    assert server["type"] == "stdio"
    assert "read_file" in await tools_of(server)


async def test_the_command_for_claude_code_starts_a_server(tmp_path: Path) -> None:
    (line,) = re.findall(r"`claude mcp add (.+?)`", README)
    name, dashes, *command = shlex.split(line)
    assert (name, dashes) == ("mcp-tools", "--")
    command = filled_in(command, tmp_path)
    assert "read_file" in await tools_of({"command": command[0], "args": command[1:]})

"""docs/settings.md names every setting, flag, variable and command there is, and no other."""

from __future__ import annotations

import argparse
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from mcp_tools.cli.main import _parser
from mcp_tools.config import SETTINGS, Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/settings.md").read_text()
ROWS = {
    cells[0].strip("`"): cells
    for line in TEXT.splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}
DEFAULTS = {item.name: item.default for item in fields(Settings)}


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def flags() -> set[str]:
    return {flag for parser in commands().values() for flag in flags_of(parser)} - {"--help"}


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Its own, and those of the commands below it."""
    found = set()
    for action in parser._actions:
        found |= {flag for flag in action.option_strings if flag.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            found |= {flag for below in action.choices.values() for flag in flags_of(below)}
    return found


def test_every_setting_has_a_row_and_every_row_is_a_setting() -> None:
    assert list(ROWS) == sorted(ROWS, key=list(ROWS).index)
    assert set(ROWS) == set(SETTINGS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_code_does(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, flag, variable, default, _, project = ROWS[name]
    if "`" in flag:  # one has none
        assert re.findall(r"`(--[a-z-]+)`", flag)[0] in flags()
    shown = DEFAULTS[name]
    shown = ", ".join(shown) or None if isinstance(shown, tuple) else shown
    expected = {None: "none", False: "false", True: "true"}.get(shown, str(shown))
    assert default.strip("`") == (f"{shown:g}" if isinstance(shown, float) else expected)
    said = {"refused": "refuse", "adds": "add", "lowers": "lower", "only true": "only true"}
    said |= {"if nobody else sets it": "fallback", "only false": "only false", "raises": "raise"}
    assert said[project] == SETTINGS[name].from_project
    # The variable is known: an unknown one would be an error that says so.
    monkeypatch.chdir(tmp_path)
    named = re.findall(r"MCP_TOOLS_[A-Z_]+", variable)[0]
    value = {"port": "1", "confirm_timeout_s": "1", "max_concurrent_calls": "1", "hide_exceptions": "true"}
    value |= {"transport": "sse", "log_level": "debug", "log_format": "json"}
    value |= dict.fromkeys(("python_timeout_s", "python_pool_size"), "1")
    value |= dict.fromkeys(("python_network", "python_workspace", "python_always_confirm"), "true")
    value |= {"python_enabled": "false", "python_max_memory_mb": "100", "python_minimum_level": "L4"}
    value |= dict.fromkeys(("output_max_chars", "output_max_tokens"), "5000")
    value |= dict.fromkeys(("metrics_enabled", "output_mask_secrets"), "true")
    value |= {
        "audit_enabled": "false",
        "audit_max_mb": "7",
        "audit_keep_files": "3",
        "audit_required": "changes",
    }
    value |= {"metrics_port": "0", "limits": "*: 5 calls/second"}
    value |= {
        "web_enabled": "false",
        "web_robots": "false",
        "web_confirm": "never",
        "search_providers": "kagi",
        "search_prices": "kagi=0.025",
    }
    value |= {"python_preload": "numpy", "python_backend": "docker"}
    settings = load_settings(environ={named: value.get(name, "/text")})
    assert getattr(settings, name) != DEFAULTS[name]


def test_every_flag_and_command_is_in_the_document() -> None:
    missing = {flag for flag in flags() if not re.search(rf"{flag}\b", TEXT)}
    assert missing == set()
    assert {name for name in commands() if f"`mcp-tools {name}" not in TEXT} == set()


def test_no_flag_is_in_the_documents_that_does_not_exist() -> None:
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT + (ROOT / "README.md").read_text()))
    assert mentioned - flags() == {"--version"}


def test_the_example_file_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.toml"
    path.write_text(block)
    settings = load_settings(config_file=str(path), environ={"HOME": str(tmp_path)})
    assert set(tomllib.loads(block)) == {"roots", "deny", "allow"}
    assert settings.roots
    assert settings.allow

"""Settings become an app that obeys them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_tools import CallContext, ErrorCode
from mcp_tools.app import App, build, load_tools
from mcp_tools.config import Settings
from mcp_tools.errors import ConfigError, RegistrationError
from mcp_tools.registry import ToolRegistry

SAMPLE = "tests.cli.sample_tools"


async def answer_to(app: App, tool: str, **arguments: object) -> str:
    with app.workspace:
        return (await app.executor.execute(tool, arguments)).to_observation()


async def test_the_roots_are_what_file_tools_reach(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hello")
    assert await answer_to(build(Settings(roots=(str(tmp_path),))), "read_file", path="a") == "hello"
    assert "--root" in await answer_to(build(Settings()), "read_file", path="a")


def test_a_root_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        build(Settings(roots=(str(tmp_path / "nowhere"),)))


async def test_rules_time_limits_and_hiding_reach_the_executor(tmp_path: Path) -> None:
    settings = Settings(
        roots=(str(tmp_path),),
        tools=(f"{SAMPLE}:registry",),
        deny=("delete_file", "echo(secret)"),
        confirm_timeout_s=7,
        hide_exceptions=True,
    )
    app = build(settings)
    with app.workspace:
        assert "delete_file" not in [tool.name for tool in app.executor.visible_tools()]
        denied = await app.executor.execute("echo", {"text": "secret"})
        assert denied.error_code is ErrorCode.DENIED
        asked = await app.executor.execute("write_file", {"path": "a", "content": "x"})
        assert asked.confirmation is not None
        assert asked.confirmation.expires_in_s == 7
        context = CallContext(confirmed=True)
        broken = await app.executor.execute("put", {"path": "/nowhere/at/all", "content": "x"}, context)
        assert broken.error is not None
        assert "/nowhere" not in broken.error
        assert broken.call_id in broken.error


def test_only_rules_that_match_no_tool_are_pointed_out() -> None:
    app = build(
        Settings(deny=("writ_file", "write_*", "read_file(x)"), allow=("nothing",), notices=("First.",))
    )
    app.workspace.close()
    assert app.notices[0] == "First."
    assert ["'writ_file'" in app.notices[1], "'nothing'" in app.notices[2]] == [True, True]
    assert len(app.notices) == 3


@pytest.mark.parametrize("name", ["registry", "with_registry"])
def test_tools_come_from_a_registry_or_a_function_that_takes_one(name: str) -> None:
    registry = ToolRegistry()
    load_tools(registry, f"{SAMPLE}:{name}")
    assert len(registry) > 0


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (SAMPLE, ConfigError),
        (f"{SAMPLE}:", ConfigError),
        (":registry", ConfigError),
        ("nowhere.to.be.found:registry", ConfigError),
        (f"{SAMPLE}:nothing", ConfigError),
        (f"{SAMPLE}:number", RegistrationError),
        (f"{SAMPLE}:not_tools", ConfigError),
    ],
)
def test_a_tools_entry_that_holds_no_tools_is_refused_by_its_text(spec: str, error: type[Exception]) -> None:
    registry = ToolRegistry()
    with pytest.raises(error) as caught:
        load_tools(registry, spec)
    assert repr(spec) in str(caught.value)
    assert len(registry) == 0

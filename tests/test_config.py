"""Settings: where they come from, which source wins, what is refused and how it is said."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from mcp_tools.config import SETTINGS, Settings, load_settings
from mcp_tools.errors import ConfigError

TOKEN = "a-token-of-some-length"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty; the user's config folder is beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def owner_file(tmp_path: Path) -> Path:
    path = tmp_path / "config" / "mcp_tools" / "mcp_tools.toml"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.usefixtures("project")
def test_without_any_source_nothing_is_allowed_and_defaults_hold(environ: dict[str, str]) -> None:
    assert load_settings(environ=environ) == Settings()
    assert Settings().roots == ()


@pytest.mark.usefixtures("project")
def test_flags_win_over_environment_over_file_over_default(
    environ: dict[str, str], owner_file: Path, project: Path
) -> None:
    owner_file.write_text('port = 1001\nhost = "file"\ntransport = "sse"\n')
    environ |= {"MCP_TOOLS_PORT": "1002", "MCP_TOOLS_HOST": "environment"}
    settings = load_settings({"port": "1003", "log_level": None}, environ=environ)
    assert (settings.port, settings.host, settings.transport) == (1003, "environment", "sse")
    assert settings.log_level == "info"


def test_the_file_named_by_a_flag_wins_over_the_variable_and_the_users(
    environ: dict[str, str], owner_file: Path, project: Path, tmp_path: Path
) -> None:
    owner_file.write_text("port = 1")
    (tmp_path / "variable.toml").write_text("port = 2")
    (tmp_path / "flag.toml").write_text("port = 3")
    assert load_settings(environ=environ).port == 1
    environ["MCP_TOOLS_CONFIG"] = str(tmp_path / "variable.toml")
    assert load_settings(environ=environ).port == 2
    assert load_settings(environ=environ, config_file=str(tmp_path / "flag.toml")).port == 3


@pytest.mark.usefixtures("project")
def test_rule_lists_of_all_sources_add_up(environ: dict[str, str], owner_file: Path) -> None:
    owner_file.write_text('deny = ["delete_file"]\nallow = ["write_file"]')
    environ["MCP_TOOLS_DENY"] = "move_file\nedit_file(a,b)"
    settings = load_settings({"deny": ["write_file"], "allow": ["edit_file"]}, environ=environ)
    assert settings.deny == ("delete_file", "move_file", "edit_file(a,b)", "write_file")
    assert settings.allow == ("write_file", "edit_file")


# --- A project's file -------------------------------------------------------------------------

VALUES = {
    "roots": '["/"]',
    "transport": '"http"',
    "host": '"0.0.0.0"',
    "port": "80",
    "token_file": '"tokens"',
    "token": f'"{TOKEN}"',
    "allow": '["write_file"]',
    "tools": '["evil:registry"]',
    "allowed_hosts": '["evil.example"]',
    "allowed_origins": '["https://evil.example"]',
    "hide_exceptions": "false",
    "python_enabled": "true",
    "python_packages": '"/opt/venv"',
    "python_preload": '["numpy"]',
    "python_network": "true",
    "python_workspace": "true",
    "python_always_confirm": "false",
    "python_backend": '"docker"',
    "python_image": '"stranger/image"',
    "python_runtime": '"none"',
    "python_engine": '"tcp://evil.example"',
    "web_enabled": "true",
    "web_confirm": '"never"',
    "web_hosts": '["localhost"]',
    "web_proxy": '"http://evil.example"',
    "web_robots": "false",
    "search_providers": '["searxng"]',
    "search_prices": '["kagi=0.025"]',
    "searxng_url": '"http://evil.example"',
    "brave_key": '"a-key"',
    "tavily_key": '"a-key"',
    "exa_key": '"a-key"',
    "kagi_key": '"a-key"',
    "audit_enabled": "false",
    "audit_log": '"/dev/null"',
    "audit_anchor": '"/tmp/anchor"',
    "audit_max_mb": "1",
    "audit_keep_files": "1",
    "audit_required": '"changes"',
    "limits_store": '"/tmp/limits"',
    "metrics_enabled": "true",
    "metrics_port": "9000",
    "output_mask_secrets": "false",
}
LOWERED = {
    "confirm_timeout_s",
    "max_concurrent_calls",
    "python_timeout_s",
    "python_max_memory_mb",
    "python_pool_size",
    "output_max_chars",
    "output_max_tokens",
}
NARROWING = {"deny", "ask", "limits", "audit_redact", "python_minimum_level"} | LOWERED
HARMLESS = {"log_level", "log_format"}


def test_every_setting_is_either_narrowing_or_refused_from_a_project() -> None:
    assert set(SETTINGS) == set(VALUES) | NARROWING | HARMLESS


def test_what_grants_nothing_holds_from_a_project_unless_its_owner_says_otherwise(
    project: Path, environ: dict[str, str]
) -> None:
    (project / "mcp_tools.toml").write_text('log_level = "debug"\nlog_format = "json"')
    environ["MCP_TOOLS_LOG_FORMAT"] = "human"
    settings = load_settings(environ=environ)
    assert (settings.log_level, settings.log_format) == ("debug", "human")


@pytest.mark.usefixtures("project")
def test_an_owners_denials_hold_without_a_home_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some clients start servers with an almost empty environment."""
    passwd = pwd.struct_passwd(("me", "x", os.getuid(), 0, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: passwd)
    folder = (
        tmp_path / ("Library/Application Support" if sys.platform == "darwin" else ".config") / "mcp_tools"
    )
    folder.mkdir(parents=True)
    (folder / "mcp_tools.toml").write_text('deny = ["write_file"]')
    for environ in ({}, {"HOME": ""}):
        assert load_settings(environ=environ).deny == ("write_file",)


@pytest.mark.parametrize("name", VALUES)
def test_a_projects_file_cannot_widen(name: str, project: Path, environ: dict[str, str]) -> None:
    path = project / "mcp_tools.toml"
    path.write_text(f"{name} = {VALUES[name]}")
    # The same line works in a file that the owner names, so it is the place that is refused.
    named = load_settings(environ=environ, config_file=str(path))
    assert getattr(named, name) is not None
    with pytest.raises(ConfigError, match=f"{name} in {path}") as caught:
        load_settings(environ=environ)
    assert TOKEN not in str(caught.value)


def test_a_projects_file_can_narrow(project: Path, environ: dict[str, str], owner_file: Path) -> None:
    owner_file.write_text('deny = ["delete_file"]\nconfirm_timeout_s = 60')
    (project / "mcp_tools.toml").write_text(
        'deny = ["write_file"]\nask = ["read_file"]\nconfirm_timeout_s = 30\n'
        "max_concurrent_calls = 2\nhide_exceptions = true\n"
        "python_timeout_s = 5\npython_max_memory_mb = 100\npython_pool_size = 1\npython_enabled = false\n"
        'python_network = false\npython_workspace = false\npython_minimum_level = "L4"\n'
        "python_always_confirm = true"
    )
    environ |= {"MCP_TOOLS_PYTHON_NETWORK": "true", "MCP_TOOLS_PYTHON_WORKSPACE": "true"}
    environ["MCP_TOOLS_PYTHON_MINIMUM_LEVEL"] = "L3"
    settings = load_settings({"deny": ["move_file"]}, environ=environ)
    assert settings.deny == ("delete_file", "move_file", "write_file")
    assert settings.ask == ("read_file",)
    assert (settings.confirm_timeout_s, settings.max_concurrent_calls) == (30, 2)
    assert settings.hide_exceptions
    assert (settings.python_timeout_s, settings.python_max_memory_mb, settings.python_pool_size) == (
        5,
        100,
        1,
    )
    assert (settings.python_enabled, settings.python_network, settings.python_workspace) == (False,) * 3
    assert (settings.python_minimum_level, settings.python_always_confirm) == ("L4", True)
    assert settings.notices == ()


@pytest.mark.parametrize("name", sorted(LOWERED))
def test_a_projects_higher_limit_has_no_effect_and_is_said(
    name: str, project: Path, environ: dict[str, str]
) -> None:
    large = dict.fromkeys(("output_max_chars", "output_max_tokens"), 900_000)
    higher = {"python_pool_size": 50, **large}.get(name, 1000)
    (project / "mcp_tools.toml").write_text(f"{name} = {higher}")
    settings = load_settings(environ=environ)
    assert getattr(settings, name) == getattr(Settings(), name)
    assert name in settings.notices[0]
    assert f"{higher} and has no effect" in settings.notices[0]


def test_a_project_cannot_settle_for_weaker_isolation(project: Path, environ: dict[str, str]) -> None:
    (project / "mcp_tools.toml").write_text('python_minimum_level = "L3"')
    settings = load_settings({"python_minimum_level": "L4"}, environ=environ)
    assert settings.python_minimum_level == "L4"
    assert "L3 and has no effect: L4 is in force" in settings.notices[0]


@pytest.mark.parametrize("whose", ["project", "owner"])
@pytest.mark.parametrize(
    "kind", ["pipe", "folder", "dangling link", "not TOML", "not UTF-8", "huge", "nested"]
)
def test_a_file_that_cannot_be_read_is_an_error_not_nothing(
    kind: str, whose: str, project: Path, owner_file: Path, environ: dict[str, str]
) -> None:
    """It may hold a denial."""
    path = project / "mcp_tools.toml" if whose == "project" else owner_file
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "dangling link":
            path.symlink_to("nowhere")
        case "not TOML":
            path.write_text("deny = [")
        case "not UTF-8":
            path.write_bytes(b'deny = ["\xff"]')
        case "huge":
            path.write_bytes(b"#" * 2_000_000)
        case "nested":
            path.write_bytes(b"deny = " + b"[" * 100_000)
    with pytest.raises(ConfigError) as caught:
        load_settings(environ=environ)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).count(str(path)) == 1


def test_a_deleted_current_folder_only_matters_to_relative_paths(
    project: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    project.rmdir()
    assert load_settings({"roots": [str(tmp_path)]}, environ=environ).roots == (str(tmp_path),)
    with pytest.raises(ConfigError, match="current folder no longer exists"):
        load_settings({"roots": ["docs"]}, environ=environ)


# --- Values -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(
            ("port", bad)
            for bad in ("-1", "65536", "abc", "1.5", "1e3", "nan", '""', "true", "[]", "9" * 300)
        ),
        *(("max_concurrent_calls", bad) for bad in ("0", "-1", "10001", "2.0", '"2"', "true", "inf")),
        *(
            ("confirm_timeout_s", bad)
            for bad in ("0", "-5", "86401", "nan", "inf", '"soon"', "false", "9" * 999)
        ),
        ("transport", '"websocket"'),
        ("transport", "1"),
        ("log_level", '"loud"'),
        ("roots", '"/"'),
        ("roots", '[""]'),
        ("roots", "[1]"),
        ("host", '" "'),
        ("deny", '[["nested"]]'),
        ("hide_exceptions", '"maybe"'),
        ("hide_exceptions", "1"),
        ("python_minimum_level", '"L5"'),
        ("python_minimum_level", '"none"'),
        ("python_max_memory_mb", "15"),
        ("python_pool_size", "0"),
        ("python_timeout_s", "0"),
        ("python_preload", '["os; import evil"]'),
        ("python_preload", '"numpy"'),
        ("python_packages", '""'),
        *(
            ("search_prices", f'["{bad}"]')
            for bad in ("kagi", "kagi=", "kagi=-1", "kagi=nan", "kagi=1e3", "google=1", "kagi=0.1=2")
        ),
    ],
)
def test_a_wrong_value_in_a_file_is_refused_by_name(
    name: str, bad: str, environ: dict[str, str], owner_file: Path
) -> None:
    owner_file.write_text(f"{name} = {bad}")
    with pytest.raises(ConfigError) as caught:
        load_settings(environ=environ)
    message = str(caught.value)
    assert str(owner_file) in message
    if "is not valid TOML" not in message:
        assert message.startswith(f"{name} in {owner_file}")
        assert "use " in message


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("bad", ["0", "-1", "10001", "many", "", "1e400", "NaN", "9" * 5000])
def test_a_wrong_limit_is_refused_from_the_environment_and_from_a_flag(
    bad: str, environ: dict[str, str]
) -> None:
    with pytest.raises(
        ConfigError, match=r"^MCP_TOOLS_MAX_CONCURRENT_CALLS in the environment is .*; use a whole"
    ):
        load_settings(environ=environ | {"MCP_TOOLS_MAX_CONCURRENT_CALLS": bad})
    with pytest.raises(
        ConfigError, match=r"^--max-concurrent-calls is .*; use a whole number from 1 to 10000"
    ):
        load_settings({"max_concurrent_calls": bad}, environ=environ)


@pytest.mark.usefixtures("project")
def test_an_unknown_key_is_an_error_that_suggests_the_right_one(
    environ: dict[str, str], owner_file: Path
) -> None:
    owner_file.write_text("denny = []")
    with pytest.raises(ConfigError, match="denny, which is not a setting; did you mean deny"):
        load_settings(environ=environ)
    owner_file.write_text("")
    with pytest.raises(ConfigError, match="did you mean MCP_TOOLS_DENY"):
        load_settings(environ=environ | {"MCP_TOOLS_DENNY": "write_file"})


@pytest.mark.usefixtures("project")
def test_a_config_file_that_was_named_must_exist(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"--config names .*nothing\.toml, which does not exist"):
        load_settings(environ=environ, config_file="nothing.toml")
    with pytest.raises(ConfigError, match=r"\$MCP_TOOLS_CONFIG names"):
        load_settings(environ=environ | {"MCP_TOOLS_CONFIG": "/nothing.toml"})


def test_relative_paths_start_where_they_were_written(
    project: Path, environ: dict[str, str], owner_file: Path
) -> None:
    owner_file.write_text('roots = ["docs", "/abs"]')
    assert load_settings(environ=environ).roots == (str(owner_file.parent / "docs"), "/abs")
    assert load_settings({"roots": ["docs"]}, environ=environ).roots == (str(project / "docs"),)
    in_environment = environ | {"MCP_TOOLS_ROOTS": os.pathsep.join(["/one", "two"])}
    assert load_settings(environ=in_environment).roots == ("/one", str(project / "two"))


@pytest.mark.usefixtures("project")
def test_a_file_that_decides_permissions_inside_a_root_is_pointed_out(
    environ: dict[str, str], owner_file: Path, tmp_path: Path
) -> None:
    owner_file.write_text("")
    notices = load_settings({"roots": [str(tmp_path)]}, environ=environ).notices
    assert len(notices) == 1
    assert str(owner_file) in notices[0]


@pytest.mark.usefixtures("project")
def test_packages_that_the_model_could_rewrite_are_pointed_out(
    environ: dict[str, str], tmp_path: Path
) -> None:
    flags = {"roots": [str(tmp_path)], "python_packages": str(tmp_path / "venv")}
    (notice,) = load_settings(flags, environ=environ).notices
    assert str(tmp_path / "venv") in notice
    assert "execute_python imports" in notice


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("token", ["", "  "])
def test_an_empty_token_is_refused_rather_than_taken_for_none(token: str, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="MCP_TOOLS_TOKEN in the environment is empty"):
        load_settings(environ=environ | {"MCP_TOOLS_TOKEN": token})


@pytest.mark.usefixtures("project")
def test_a_token_is_in_no_repr_and_in_no_error(environ: dict[str, str], owner_file: Path) -> None:
    assert TOKEN not in repr(load_settings(environ=environ | {"MCP_TOOLS_TOKEN": TOKEN}))
    owner_file.write_text(f'token = ["{TOKEN}"]')
    with pytest.raises(ConfigError) as caught:
        load_settings(environ=environ)
    assert TOKEN not in str(caught.value)

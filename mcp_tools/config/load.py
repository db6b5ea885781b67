"""Every source, in order → `Settings`."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, cast

from mcp_tools.config.settings import LEVELS, SETTINGS, Settings
from mcp_tools.config.values import Given, absolute
from mcp_tools.errors import ConfigError

FILE_NAME: Final = "mcp_tools.toml"
ENV_PREFIX: Final = "MCP_TOOLS_"
MAX_FILE_BYTES: Final = 1024**2

_FLAGS: Final = {
    "roots": "root",
    "confirm_timeout_s": "confirm_timeout",
    "python_timeout_s": "python_timeout",
    "python_enabled": "no_python",
}


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    config_file: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read every source once and return what holds.

    Args:
        flags: By setting name, as given on the command line (texts, or lists of them); None is absent.
        config_file: What `--config` names.
        environ: The environment; None means this process's.
    Raises:
        ConfigError: A value, a key or a file is wrong. The text names it, its source, and what is allowed.
    """
    environ = os.environ if environ is None else environ
    cwd = _current_folder()
    owner_file = _owner_file(config_file, environ, cwd)
    layers = [_from_file(owner_file) if owner_file else {}, _from_environment(environ, cwd)]
    layers.append(
        {
            name: Given(value=value, where=_flag_name(name), folder=cwd, is_text=True)
            for name, value in (flags or {}).items()
            if value is not None
        }
    )
    values: dict[str, Any] = {}
    for layer in layers:
        for name, given in layer.items():
            value = SETTINGS[name].parse(given)
            values[name] = values.get(name, ()) + value if SETTINGS[name].adds_up else value
    notices = _narrow(values, cwd, owner_file)
    notices += _self_service(values, owner_file)
    return Settings(**values, notices=tuple(notices))


def _flag_name(name: str) -> str:
    return "--" + _FLAGS.get(name, name).replace("_", "-")


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # deleted under us: fine, as long as nobody gives a relative path
        return None


def _owner_file(config_file: str | None, environ: Mapping[str, str], cwd: str | None) -> str | None:
    for name, value in (
        ("--config", config_file),
        (f"${ENV_PREFIX}CONFIG", environ.get(f"{ENV_PREFIX}CONFIG")),
    ):
        if value:
            path = absolute(value, Given(value=value, where=name, folder=cwd, is_text=True))
            if not _is_there(path):
                raise ConfigError(f"{name} names {path}, which does not exist")
            return path
    folder = user_config_folder(environ)
    path = os.path.join(folder, FILE_NAME) if folder else ""
    return path if path and _is_there(path) else None


def user_config_folder(environ: Mapping[str, str]) -> str | None:
    """Return our folder among the user's settings, whether it exists or not; None without a home."""
    return _user_folder(environ, "XDG_CONFIG_HOME", "APPDATA", ".config")


def user_state_folder(environ: Mapping[str, str]) -> str | None:
    """Return our folder for what outlives a run, such as records; None without a home."""
    return _user_folder(environ, "XDG_STATE_HOME", "LOCALAPPDATA", os.path.join(".local", "state"))


def _user_folder(environ: Mapping[str, str], variable: str, on_windows: str, in_home: str) -> str | None:
    """Source: XDG Base Directory Specification 0.8 (a relative path there is to be ignored)."""
    base = environ.get(variable, "")
    if not os.path.isabs(base):
        home = environ.get("HOME", "") or _home_of_user()
        if sys.platform == "win32":
            base = environ.get(on_windows, "")
        elif not home:
            return None
        elif sys.platform == "darwin":
            base = os.path.join(home, "Library", "Application Support")
        else:
            base = os.path.join(home, in_home)
    return os.path.join(base, "mcp_tools") if base else None


def _home_of_user() -> str:
    # Without HOME (some clients start servers with an empty environment) an owner's denials still hold.
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_dir
    except (ImportError, KeyError):  # Windows; a user without an entry, as in some containers
        return ""


def _from_environment(environ: Mapping[str, str], cwd: str | None) -> dict[str, Given]:
    layer = {}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable == f"{ENV_PREFIX}CONFIG":
            continue
        name = _known(
            variable.removeprefix(ENV_PREFIX).lower(), variable, "the environment", prefix=ENV_PREFIX
        )
        layer[name] = Given(value=value, where=f"{variable} in the environment", folder=cwd, is_text=True)
    return layer


def _from_file(path: str) -> dict[str, Given]:
    return {
        _known(key, key, path): Given(
            value=value, where=f"{key} in {path}", folder=os.path.dirname(path), is_text=False
        )
        for key, value in _read_toml(path).items()
    }


def _known(name: str, shown: str, place: str, *, prefix: str = "") -> str:
    if name in SETTINGS:
        return name
    from difflib import get_close_matches

    shown_as = {f"{prefix}{known.upper()}" if prefix else known: known for known in SETTINGS}
    close = get_close_matches(shown, shown_as, n=1)
    hint = f"did you mean {close[0]}?" if close else "known are " + ", ".join(shown_as)
    raise ConfigError(f"{place} has {shown}, which is not a setting; {hint}")


def _read_toml(path: str) -> dict[str, Any]:
    import tomllib

    raw = _read_regular_file(path)
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _read_regular_file(path: str) -> bytes:
    try:
        # Not blocking: it may be a pipe that somebody put into the project.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                with open(descriptor, "rb", closefd=False) as file:
                    return file.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    raise ConfigError(f"{path} cannot be read: it is not a regular file")


def _is_there(path: str) -> bool:
    """Whether a file has this name. One that we may not look at counts: it may hold a denial."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


# --- What a project may say -------------------------------------------------------------------


def _narrow(values: dict[str, Any], cwd: str | None, owner_file: str | None) -> list[str]:
    """Apply the project's file to `values`; return what a person should know of it."""
    path = os.path.join(cwd, FILE_NAME) if cwd else ""
    if not path or not _is_there(path) or (owner_file and _same_file(path, owner_file)):
        return []
    notices = []
    for name, given in _from_file(path).items():
        setting = SETTINGS[name]
        match setting.from_project:
            case "refuse":
                raise ConfigError(
                    f"{given.where}: a project's file cannot set {name}, it can only narrow permissions "
                    f"(deny, ask, and lower limits). If the file is yours, name it: --config {path}"
                )
            case "add":
                values[name] = (*values.get(name, ()), *cast("tuple[str, ...]", setting.parse(given)))
            case "fallback":
                values.setdefault(name, setting.parse(given))
            case "only true" | "only false":
                wanted = setting.from_project == "only true"
                if setting.parse(given) is not wanted:
                    shown, other = ("false", "true") if wanted else ("true", "false")
                    raise ConfigError(f"{given.where} is {shown}; a project's file can only make it {other}")
                values[name] = wanted
            case "raise":
                level, in_force = cast(str, setting.parse(given)), _in_force(name, values)
                if LEVELS.index(level) < LEVELS.index(in_force):
                    notices.append(_no_effect(given, level, in_force, "raise"))
                values[name] = max(level, in_force, key=LEVELS.index)
            case "lower":
                value, in_force = cast(float, setting.parse(given)), _in_force(name, values)
                if value > in_force:
                    notices.append(_no_effect(given, f"{value:g}", f"{in_force:g}", "lower"))
                values[name] = min(value, in_force)
    return notices


def _no_effect(given: Given, value: str, in_force: str, can: str) -> str:
    return (
        f"{given.where} is {value} and has no effect: {in_force} is in force, and a project's file can only "
        f"{can} it."
    )


def _in_force(name: str, values: Mapping[str, Any]) -> Any:
    defaults = {item.name: item.default for item in fields(Settings)}
    return values.get(name, defaults[name])


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _self_service(values: Mapping[str, Any], owner_file: str | None) -> list[str]:
    """Warn of what decides permissions or is run, and lies where file tools may write."""
    notices = []
    for path, role in (
        (owner_file, "decides permissions"),
        (values.get("token_file"), "decides permissions"),
        (values.get("python_packages"), "is what execute_python imports"),
    ):
        real = os.path.realpath(path) if path else ""
        for root in values.get("roots", ()):
            if real.startswith(os.path.join(os.path.realpath(root), "")):
                notices.append(f"{path} {role} and lies in the allowed folder {root}; move it out.")
    return notices

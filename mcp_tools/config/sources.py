"""Where settings come from, looked at one by one: for a person who asks why something holds, or does not.

`load_settings` stops at the first mistake. This reads the same places and tells all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from mcp_tools.config.load import ENV_PREFIX, FILE_NAME, _current_folder, _is_there, _owner_file, _read_toml
from mcp_tools.config.load import _same_file as same_file
from mcp_tools.config.settings import SETTINGS
from mcp_tools.config.values import Given
from mcp_tools.errors import ConfigError

Role = Literal["owner", "project", "environment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One place that settings are read from. Names only: values may be secrets.

    Args:
        role: Whose word it is; a project's can only narrow.
        place: The path of the file, or `the environment`.
        names: What it sets, as written there.
        mistakes: Names that are no setting, and values that are not allowed, each as a sentence.
        problem: Why it cannot be read at all; `""` if it can.
    """

    role: Role
    place: str
    names: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()
    problem: str = ""


def read_sources(config_file: str | None, environ: Mapping[str, str]) -> tuple[Source, ...]:
    """Read every file and variable that `load_settings` would, and tell what is wrong with each.

    Args:
        config_file: What `--config` names.
        environ: The environment.
    Raises:
        ConfigError: A file that is named does not exist.
    """
    cwd = _current_folder()
    owner = _owner_file(config_file, environ, cwd)
    project = os.path.join(cwd, FILE_NAME) if cwd else ""
    found = []
    if owner:
        found.append(_file(owner, "owner"))
    if project and _is_there(project) and not (owner and same_file(project, owner)):
        found.append(_file(project, "project"))
    variables = {
        name: value
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX) and name != f"{ENV_PREFIX}CONFIG"
    }
    if variables:
        given = {name.removeprefix(ENV_PREFIX).lower(): name for name in variables}
        mistakes = [
            mistake
            for name, shown in given.items()
            if (mistake := _mistake(name, shown, variables[shown], cwd, is_text=True, prefix=ENV_PREFIX))
        ]
        found.append(
            Source(
                role="environment",
                place="the environment",
                names=tuple(variables),
                mistakes=tuple(mistakes),
            )
        )
    return tuple(found)


def _file(path: str, role: Role) -> Source:
    try:
        values = _read_toml(path)
    except ConfigError as error:
        return Source(role=role, place=path, problem=str(error))
    folder = os.path.dirname(path)
    mistakes = [
        mistake
        for name, value in values.items()
        if (mistake := _mistake(name, name, value, folder, is_text=False))
    ]
    return Source(role=role, place=path, names=tuple(values), mistakes=tuple(mistakes))


def _mistake(
    name: str, shown: str, value: object, folder: str | None, *, is_text: bool, prefix: str = ""
) -> str:
    if name not in SETTINGS:
        known = [f"{prefix}{each.upper()}" if prefix else each for each in SETTINGS]
        close = get_close_matches(shown, known, n=1)
        return f"{shown} is not a setting" + (f"; did you mean {close[0]}?" if close else "")
    try:
        SETTINGS[name].parse(Given(value=value, where=shown, folder=folder, is_text=is_text))
    except ConfigError as error:
        return str(error)
    return ""

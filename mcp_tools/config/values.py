"""One value as it was given → the value that holds, or a `ConfigError` that says what is allowed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from mcp_tools.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One value as it was given: `where` is how a person would name its place."""

    value: object
    where: str
    folder: str | None  # what relative paths start at; None when there is no such folder
    is_text: bool  # from a flag or a variable, where everything is text


Parse = Callable[[Given], object]


def _shown(value: object) -> str:
    try:
        shown = ascii(value)
    except ValueError:  # an integer of thousands of digits cannot be printed
        return f"a {type(value).__name__} that is too long to show"
    return shown if len(shown) <= 80 else shown[:80] + "…"


def refuse(given: Given, allowed: str) -> NoReturn:
    raise ConfigError(f"{given.where} is {_shown(given.value)}; use {allowed}")


def _number(given: Given, convert: Callable[[str], float], kinds: tuple[type, ...]) -> float | None:
    """The number that was given, or None when it is not one. `True` is not a number here."""
    if given.is_text:
        try:
            return convert(str(given.value))
        except ValueError:
            return None
    return cast(float, given.value) if type(given.value) in kinds else None


def integer(low: int, high: int) -> Parse:
    def parse(given: Given) -> int:
        number = _number(given, int, (int,))
        if number is None or not low <= number <= high:
            refuse(given, f"a whole number from {low} to {high}")
        return int(number)

    return parse


def seconds(low: float, high: float) -> Parse:
    def parse(given: Given) -> float:
        number = _number(given, float, (int, float))
        if number is None or not low <= number <= high:  # NaN is not
            refuse(given, f"a number of seconds from {low:g} to {high:g}")
        return float(number)

    return parse


def flag(given: Given) -> bool:
    value = given.value
    if given.is_text:
        value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(
            str(value).lower()
        )
    if not isinstance(value, bool):
        refuse(given, "true or false")
    return value


def choice(*choices: str) -> Parse:
    def parse(given: Given) -> str:
        if given.value not in choices:
            refuse(given, "one of " + ", ".join(choices))
        return str(given.value)

    return parse


def text(given: Given) -> str:
    if not isinstance(given.value, str) or not given.value.strip() or "\0" in given.value:
        refuse(given, "a text that is not empty")
    return given.value


def secret(given: Given) -> str:
    if not isinstance(given.value, str) or not given.value.strip():
        # Whatever it is, it may be a piece of a secret: it is not repeated.
        raise ConfigError(f"{given.where} is empty or not a text; leave it out, or give a token")
    return given.value


def path(given: Given) -> str:
    return absolute(text(given), given)


def path_or_url(given: Given) -> str:
    """A URL stays as it is, and may hold a password."""
    value = secret(given)
    return value if "://" in value else path(given)


def absolute(path: str, given: Given) -> str:
    path = os.path.expanduser(path)
    if path.startswith("~"):
        refuse(given, "an absolute path: there is no home folder that '~' could stand for")
    if not os.path.isabs(path):
        if given.folder is None:
            refuse(given, "an absolute path: the current folder no longer exists")
        path = os.path.join(given.folder, path)
    # `a/..` is not the same as `` where `a` is a link, so `..` stays for the kernel to resolve.
    return path if ".." in path.split(os.sep) else os.path.normpath(path)


def texts(given: Given) -> tuple[str, ...]:
    values = _split(given) if isinstance(given.value, str) and given.is_text else given.value
    if not isinstance(values, list | tuple):
        refuse(given, "a list of texts")
    return tuple(
        text(Given(value=value, where=given.where, folder=given.folder, is_text=True)) for value in values
    )


def choices(*allowed: str) -> Parse:
    def parse(given: Given) -> tuple[str, ...]:
        values = texts(given)
        if not values or len(set(values)) < len(values) or not set(values) <= set(allowed):
            refuse(given, "a list of some of " + ", ".join(allowed) + ", each of them once")
        return values

    return parse


def prices(*names: str) -> Parse:
    def parse(given: Given) -> tuple[str, ...]:
        values = texts(given)
        for value in values:
            name, equals, dollars = value.partition("=")
            if name not in names or not equals or re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,9})?", dollars) is None:
                refuse(
                    given,
                    f"prices of one query in US dollars, such as {names[-1]}=0.005; names are "
                    + ", ".join(names),
                )
        return values

    return parse


def modules(given: Given) -> tuple[str, ...]:
    names = texts(given)
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            refuse(given, "names of modules, such as numpy or matplotlib.pyplot")
    return names


def _split(given: Given) -> list[Any]:
    """A variable holds a JSON list, or one value per line: rules may hold any other separator."""
    given_text = str(given.value).strip()
    if not given_text.startswith("["):
        return [line.strip() for line in given_text.splitlines() if line.strip()]
    import json

    try:
        values = json.loads(given_text)
    except ValueError:
        values = None
    if not isinstance(values, list):
        refuse(given, "one value per line, or a JSON list of texts")
    return values


def paths(given: Given) -> tuple[str, ...]:
    if isinstance(given.value, str) and given.is_text and not given.value.lstrip().startswith("["):
        values: tuple[str, ...] = tuple(part for part in given.value.split(os.pathsep) if part)
    else:
        values = texts(given)
    # Links stay: the workspace resolves each root once, when it opens it.
    return tuple(dict.fromkeys(absolute(value, given) for value in values))

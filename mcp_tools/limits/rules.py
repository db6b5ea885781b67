"""Limits as their owner writes them: `search_*  per principal: 30 calls / minute`.

    TOOLS [per SCOPE [and SCOPE]]: AMOUNT UNIT / WINDOW [burst N]
    TOOLS [per SCOPE [and SCOPE]]: N at once

TOOLS is the name of a tool, with `*` for any run of characters and `?` for one; `*` alone is every tool.
SCOPE says what is counted apart: `principal`, `session` or `tool`; `everybody`, which is also meant where
nothing is said, counts all calls together. UNIT is `calls`, `usd`, `cpu_seconds` (in sandboxes),
`tokens`, `input_tokens` or `output_tokens`. WINDOW is `second`, `minute`, `hour` or `day`, or several:
`15 minutes`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from mcp_tools.errors import ConfigError
from mcp_tools.types import Usage

Scope = Literal["principal", "session", "tool"]
Unit = Literal["calls", "usd", "cpu_seconds", "tokens", "input_tokens", "output_tokens", "at once"]

MAX_AMOUNT: Final = 1_000_000_000
MAX_CALLS_PER_S: Final = 100_000
MAX_AT_ONCE: Final = 100_000
MAX_WINDOW_S: Final = 31 * 86_400

_MAX_RULE_CHARS: Final = 300
_RULE = re.compile(r"(?P<tools>\S+)(?:\s+per\s+(?P<per>[^:]*?))?\s*:\s*(?P<what>.*)", re.DOTALL)
_TOOLS = re.compile(r"[A-Za-z0-9_*?-]{1,64}")
_AT_ONCE = re.compile(r"(?P<amount>\S+)\s+at\s+once")
_RATE = re.compile(
    r"(?P<amount>\S+)\s+(?P<unit>[A-Za-z_]+)\s*/\s*(?:(?P<count>\S+)\s+)?(?P<window>[A-Za-z]+)"
    r"(?:\s+burst\s+(?P<burst>\S+))?"
)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_SCOPES: Final[dict[str, Scope]] = {"principal": "principal", "session": "session", "tool": "tool"}
_UNITS: Final[dict[str, Unit]] = {
    "call": "calls",
    "calls": "calls",
    "usd": "usd",
    "cpu_second": "cpu_seconds",
    "cpu_seconds": "cpu_seconds",
    "token": "tokens",
    "tokens": "tokens",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
}
_WINDOWS_S: Final = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_FORM = "'TOOLS [per principal|session|tool]: N calls / minute [burst N]' or 'TOOLS [per …]: N at once'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit, ready to hold.

    Args:
        tools: A glob over tool names.
        per: What is counted apart; empty: all calls together.
        amount: How much, in `unit`.
        unit: Of what.
        window_s: Seconds in which that is allowed; None for places (`at once`).
        burst: None: at most `amount` in any stretch of `window_s`, as quick as they come. Else a bucket
            of `burst` calls that refills by `amount` in `window_s`.
    """

    tools: str
    per: frozenset[Scope]
    amount: float
    unit: Unit
    window_s: float | None
    burst: float | None = None

    @property
    def name(self) -> str:
        """The limit in its shortest spelling."""
        per = "".join(
            f" {word} {scope}" for word, scope in zip(("per", "and", "and"), sorted(self.per), strict=False)
        )
        if self.window_s is None:
            return f"{self.tools}{per}: {self.amount:.15g} at once"
        burst = "" if self.burst is None else f" burst {self.burst:.15g}"
        unit = "call" if self.unit == "calls" and self.amount == 1 else self.unit
        return f"{self.tools}{per}: {self.amount:.15g} {unit} / {_window(self.window_s)}{burst}"

    @property
    def counts(self) -> tuple[object, ...]:
        """What it counts, whatever it allows: a limit that is raised does not begin anew."""
        return self.tools, tuple(sorted(self.per)), self.unit, self.window_s, self.burst is None

    def covers(self, tool_name: str | None) -> bool:
        """Whether calls of this tool count; None is a tool that does not exist."""
        if tool_name is None:
            return self.tools == "*" and "tool" not in self.per
        return fits(self.tools, tool_name)

    def part_of(self, usage: Usage) -> float:
        """How much of a call's usage counts, in its unit."""
        match self.unit:
            case "usd":
                return usage.cost_usd
            case "cpu_seconds":
                return usage.sandbox_cpu_s
            case "tokens":
                return usage.input_tokens + usage.output_tokens
            case "input_tokens":
                return usage.input_tokens
            case "output_tokens":
                return usage.output_tokens
            case "calls" | "at once":
                return usage.calls


def parse_limit(text: str) -> Limit:
    """Read one limit.

    Raises:
        ConfigError: It is not of the form above, or its numbers could not mean what they say.
    """
    stripped = text.strip() if isinstance(text, str) else ""
    rule = _RULE.fullmatch(stripped)
    if rule is None or len(stripped) > _MAX_RULE_CHARS:
        raise ConfigError(f"limit {text!r} is not of the form {_FORM}")
    if not _TOOLS.fullmatch(rule["tools"]):
        raise ConfigError(
            f"limit {text!r}: {rule['tools']!r} is no tool name: letters, digits, '_', '-', '*', '?'"
        )
    per = _scopes(text, rule["per"])
    what = rule["what"].strip()
    if (places := _AT_ONCE.fullmatch(what)) is not None:
        amount = _number(text, places["amount"], most=MAX_AT_ONCE, whole=True)
        return Limit(tools=rule["tools"], per=per, amount=amount, unit="at once", window_s=None)
    rate = _RATE.fullmatch(what)
    if rate is None:
        raise ConfigError(f"limit {text!r} is not of the form {_FORM}")
    unit = _UNITS.get(rate["unit"].lower())
    if unit is None:
        known = ", ".join(dict.fromkeys(_UNITS.values()))
        raise ConfigError(f"limit {text!r}: {rate['unit']!r} cannot be limited; use one of {known}")
    amount = _number(text, rate["amount"], most=MAX_AMOUNT, whole=unit == "calls")
    window_s = _window_s(text, rate["count"], rate["window"])
    if unit == "calls" and amount / window_s > MAX_CALLS_PER_S:
        raise ConfigError(f"limit {text!r}: {amount:.15g} is too many; at most {MAX_CALLS_PER_S} a second")
    burst = None
    if rate["burst"] is not None:
        if unit != "calls":
            raise ConfigError(f"limit {text!r}: only calls have a burst")
        burst = _number(text, rate["burst"], most=MAX_AMOUNT, whole=True)
    return Limit(tools=rule["tools"], per=per, amount=amount, unit=unit, window_s=window_s, burst=burst)


def strictest(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """Leave of limits that count the same thing only the lowest, so that nothing is counted twice."""
    kept: dict[tuple[object, ...], Limit] = {}
    for limit in limits:
        other = kept.setdefault(limit.counts, limit)
        burst = None if limit.burst is None or other.burst is None else min(limit.burst, other.burst)
        kept[limit.counts] = replace(other, amount=min(limit.amount, other.amount), burst=burst)
    return tuple(kept.values())


def fits(pattern: str, name: str) -> bool:
    """Whether a glob of `*` and `?` fits the whole name. Time: at most the product of both lengths."""
    i = j = 0
    star, mark = -1, 0
    while j < len(name):
        if i < len(pattern) and pattern[i] == "*":
            star, mark = i, j
            i += 1
        elif i < len(pattern) and pattern[i] in ("?", name[j]):
            i, j = i + 1, j + 1
        elif star >= 0:
            mark += 1
            i, j = star + 1, mark
        else:
            return False
    return pattern[i:].strip("*") == ""


def _scopes(text: str, given: str | None) -> frozenset[Scope]:
    if given is None:
        return frozenset()
    words = re.split(r"\s+and\s+|\s*,\s*", given.strip())
    for word in words:
        if word not in _SCOPES and word != "everybody":
            known = ", ".join((*_SCOPES, "everybody"))
            raise ConfigError(f"limit {text!r}: {word!r} is unknown after 'per'; use {known}")
    if "everybody" in words and len(words) > 1:
        raise ConfigError(f"limit {text!r}: 'everybody' cannot be counted apart")
    return frozenset(_SCOPES[word] for word in words if word != "everybody")


def _number(text: str, given: str, *, most: float, whole: bool) -> float:
    if not _NUMBER.fullmatch(given):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"limit {text!r}: {given!r} is not {kind} above zero, such as 10")
    value = float(given)
    if whole and not value.is_integer():
        raise ConfigError(f"limit {text!r}: {given!r} is not a whole number")
    if value == 0:
        raise ConfigError(f"limit {text!r}: zero would allow nothing; a deny rule forbids a tool")
    if not math.isfinite(value) or value > most:
        raise ConfigError(f"limit {text!r}: {given!r} is too large; at most {most}")
    return value


def _window_s(text: str, count: str | None, word: str) -> float:
    unit_s = _WINDOWS_S.get(word.lower().removesuffix("s"))
    if unit_s is None:
        raise ConfigError(f"limit {text!r}: {word!r} is no window; use one of {', '.join(_WINDOWS_S)}")
    window_s = unit_s * (1.0 if count is None else _number(text, count, most=MAX_AMOUNT, whole=True))
    if window_s > MAX_WINDOW_S:
        raise ConfigError(f"limit {text!r}: a window is at most {MAX_WINDOW_S // 86_400} days")
    return window_s


def _window(window_s: float) -> str:
    word, unit_s = next(
        (word, unit_s) for word, unit_s in reversed(_WINDOWS_S.items()) if window_s % unit_s == 0
    )
    count = window_s / unit_s
    return word if count == 1 else f"{count:.15g} {word}s"

"""`mcp-tools usage`: what calls used, added up for each principal, tool or day.

Every command imports this for its arguments, so the rest is imported when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mcp_tools.cli import exits

if TYPE_CHECKING:
    from mcp_tools.limits import Total
    from mcp_tools.types import Usage

DEFAULT_DAYS = 30
_HEAD = ("calls", "usd", "cpu seconds", "tokens in", "tokens out")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    usage = commands.add_parser(
        "usage",
        help="show what calls used",
        description="What calls used, with limits and without: calls that ran, their cost, "
        "processor time in sandboxes, and tokens of language models. Days are those of UTC.",
        allow_abbrev=False,
    )
    usage.set_defaults(parser=usage)
    usage.add_argument(
        "--by", choices=("principal", "tool", "day"), default="tool", help="one line for each; default tool"
    )
    usage.add_argument(
        "--days",
        type=_days,
        default=DEFAULT_DAYS,
        metavar="N",
        help=f"the last days that have any calls; default {DEFAULT_DAYS}",
    )
    usage.add_argument("--json", action="store_true", help="for programs")
    usage.add_argument("--config", metavar="FILE", help="a TOML file of settings, instead of your own one")
    usage.add_argument("--limits-store", metavar="FILE|URL", help="where it was counted, as in the settings")


def usage(arguments: argparse.Namespace) -> int:
    """Print what calls used."""
    from mcp_tools.cli.prepare import read_settings
    from mcp_tools.cli.terminal import for_display
    from mcp_tools.config.process import environment
    from mcp_tools.output.plain import to_json
    from mcp_tools.production import IN_MEMORY, limits_place
    from mcp_tools.types import LimitsUnavailable

    place = limits_place(read_settings(arguments), environment())
    if place == IN_MEMORY:
        print(
            f"mcp-tools: limits_store is {IN_MEMORY}: each server forgets at its end what calls used. "
            "To keep it, leave the setting out, or name a file",
            file=sys.stderr,
        )
        return exits.FAILED
    try:
        totals = _read(place, arguments.days)
    except LimitsUnavailable as error:
        print(f"mcp-tools: {for_display(str(error))}", file=sys.stderr)
        return exits.FAILED
    groups = group(totals, arguments.by)
    if arguments.json:
        print(to_json([{arguments.by: name, **_plain(used)} for name, used in groups.items()], indent=2))
        return exits.OK
    if not groups:
        print(f"mcp-tools: no calls were counted in {for_display(_shown(place))}", file=sys.stderr)
        return exits.OK
    rows = [[for_display(name), *_cells(used)] for name, used in groups.items()]
    if len(rows) > 1:
        rows.append(["together", *_cells(_sum(groups.values()))])
    print(table([[arguments.by, *_HEAD], *rows]))
    return exits.OK


def group(totals: Sequence[Total], by: str) -> dict[str, Usage]:
    """Add up for each principal, tool or day, in the order of their names."""
    found: dict[str, list[Usage]] = {}
    for total in totals:
        found.setdefault(getattr(total, by), []).append(total.usage)
    return {name: _sum(found[name]) for name in sorted(found)}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lines with their columns under one another: names on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def _read(place: str, days: int) -> Sequence[Total]:
    if "://" not in place and not os.path.exists(place):
        return []  # nobody counted anything: no reason to make a file
    import anyio

    from mcp_tools.limits import open_store

    store = open_store(place)
    try:
        return anyio.run(store.totals, days)
    finally:
        store.close()


def _days(text: str) -> int:
    from mcp_tools.limits.store import KEEP_DAYS

    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= KEEP_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {KEEP_DAYS}")
    return int(text)


def _sum(parts: Any) -> Usage:
    from mcp_tools.types import Usage

    return sum(parts, start=Usage())


def _plain(used: Usage) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(used)


def _cells(used: Usage) -> list[str]:
    return [
        f"{used.calls:,}",
        f"{used.cost_usd:,.4f}",
        f"{used.sandbox_cpu_s:,.2f}",
        f"{used.input_tokens:,}",
        f"{used.output_tokens:,}",
    ]


def _shown(place: str) -> str:
    from mcp_tools.limits.redis_server import without_secrets

    return without_secrets(place) if "://" in place else place

"""What every command does first: settings, logging, the app, and what a person should know of them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from mcp_tools.app import App, build
from mcp_tools.cli.logs import logging_to_stderr
from mcp_tools.config import SETTINGS, Settings, load_settings


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings that hold with these flags."""
    flags = {name: getattr(arguments, name, None) for name in SETTINGS}
    return load_settings(flags, config_file=arguments.config)


@contextlib.contextmanager
def prepared(settings: Settings, *, log_level: str | None = None) -> Iterator[App]:
    """Configure logging, build the app, and say on stderr what its owner should know; undo it at the end.

    Args:
        settings: What holds.
        log_level: Instead of the settings' one.
    """
    with logging_to_stderr(log_level or settings.log_level, settings.log_format):
        app = build(settings)
        with app:
            for notice in (*app.notices, *_about_names()):
                print(f"mcp-tools: {notice}", file=sys.stderr)
            yield app


def _about_names() -> list[str]:
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return []
    return [
        f"File names are taken to be {encoding} here, because of the locale; others cannot be reached. "
        "Set PYTHONUTF8=1 to have UTF-8."
    ]

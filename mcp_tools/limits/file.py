"""A file of accounts, as far as it can be told without opening it: so a start need not load SQLite."""

from __future__ import annotations

import os
import stat

from mcp_tools.errors import ConfigError


def check_place(path: str) -> bool:
    """Say whether there is a file, which then is one of ours. Changes nothing.

    Args:
        path: Absolute.
    Raises:
        ConfigError: It could not be used, or not be made.
    """
    try:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            _check_folder(_nearest(os.path.dirname(path)))
            return False
        check_own(found)
        _check_access(path, os.R_OK | os.W_OK)
        _check_folder(os.path.dirname(path))
    except OSError as error:
        raise refusal(path, error) from error
    return True


def check_own(found: os.stat_result) -> None:
    """Check that it is a file of ours.

    Raises:
        OSError: It is not.
    """
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no ordinary file")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise OSError("it belongs to somebody else")


def refusal(path: str, error: Exception) -> ConfigError:
    """Return what is said of a file that cannot be used."""
    return ConfigError(cannot_be_used(path, error))


def cannot_be_used(path: str, error: Exception) -> str:
    """Say so, and what to do."""
    return f"the limits in {path} cannot be used ({error}); if the file is damaged, move it away"


def _check_folder(folder: str) -> None:
    if not os.path.isdir(folder):
        raise OSError(f"{folder} is no folder")
    _check_access(folder, os.W_OK | os.X_OK)


def _check_access(path: str, wanted: int) -> None:
    if not os.access(path, wanted):
        raise OSError(f"this user may not write to {path}")


def _nearest(folder: str) -> str:
    """The folder, or the first above it that is there."""
    while not os.path.lexists(folder) and (above := os.path.dirname(folder)) != folder:
        folder = above
    return folder

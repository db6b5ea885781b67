"""This process's environment: what is handed on of it, and what libraries are told through it."""

from __future__ import annotations

import os
from collections.abc import Mapping


def environment() -> Mapping[str, str]:
    """Return this process's variables, for what has to be handed them."""
    return os.environ


def skip_pydantic_plugins() -> None:
    """Keep Pydantic from looking through every installed package for plugins, a hundredth of the start.

    They instrument validation for debugging. Whoever sets `PYDANTIC_DISABLE_PLUGINS` keeps their say; set
    it to anything but a list of names to have them.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

"""What a serving process asks of libraries that only listen to environment variables."""

from __future__ import annotations

import os


def skip_pydantic_plugins() -> None:
    """Keep Pydantic from looking through every installed package for plugins, a hundredth of the start.

    They instrument validation for debugging. Whoever sets `PYDANTIC_DISABLE_PLUGINS` keeps their say; set
    it to anything but a list of names to have them.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

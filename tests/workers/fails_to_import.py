"""Imports in the process that tests it, and in no worker: there its secret is missing."""

import sys

if not hasattr(sys, "_the_test_is_here"):
    raise RuntimeError("nobody knows me here")


def unreachable() -> None:
    """Registered, and never reached."""

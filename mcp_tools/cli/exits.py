"""Exit codes, stable for scripts."""

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
DENIED: Final = 3
INTERRUPTED: Final = 130
"""As a shell reports a program that Ctrl-C ended."""

from __future__ import annotations

from tests.sandbox.conftest import elsewhere

__all__ = ["elsewhere"]

"""`PythonSandbox`: the embedded backend as a caller sees it."""

from __future__ import annotations


class PythonSandbox:
    pass

"""Finding a function again in a module that was imported anew. Also runs inside the sandbox."""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself is not loaded: a sandbox imports this for each call
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def found_in(module: object, qualname: str, first_line: int) -> Callable[..., Any]:
    """Return the function of this dotted name whose source begins on this line (0: it has none).

    A decorator above the registering one put itself in the function's place: behind it is the one we mean.

    Raises:
        LookupError: Something else has its name there, or nothing.
    """
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    while found is not None:
        code = getattr(found, "__code__", None)
        if callable(found) and (0 if code is None else code.co_firstlineno) == first_line:
            function: Callable[..., Any] = found
            return function
        found = getattr(found, "__wrapped__", None)
    raise LookupError(
        f"{qualname} is not the function that was registered: something else has its name in the module"
    )

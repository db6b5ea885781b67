"""What a worker runs, as something that can be named: only what a fresh interpreter can import.

And what it cannot is refused while tools are registered, in words for the developer.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from mcp_tools.errors import RegistrationError
from mcp_tools.workers.lookup import found_in

_INSTEAD: Final = "write it as a plain function at the top of a module"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A function by its names.

    Args:
        module: Where to import it from; `__main__` for what a script defines itself.
        qualname: Its dotted name in there.
        first_line: Of its source, to tell it from another one of that name; 0 where there is none.
        main_path: Of the script, where `module` is `__main__`.
        main_name: Of the module that `python -m` ran, where `module` is `__main__`.
    """

    module: str
    qualname: str
    first_line: int
    main_path: str | None = None
    main_name: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data, as keyword arguments of this class."""
        return asdict(self)


importing: Target | None = None
"""What this process, a worker, imports right now: to start another worker meanwhile would never end."""


def target_of(function: Callable[..., Any], name: str) -> Target:
    """Name `function`.

    Args:
        function: What is to run in a worker.
        name: The tool's, for the message.
    Raises:
        RegistrationError: A fresh interpreter could not import it, and why.
    """

    def refuse(what: str) -> RegistrationError:
        return RegistrationError(
            f"tool {name!r}: a worker imports the function by module and name, and {what}; {_INSTEAD}"
        )

    if isinstance(function, functools.partial):
        raise refuse("a partial has no name")
    if inspect.ismethod(function) and not isinstance(function.__self__, type):
        raise refuse(f"{function.__qualname__!r} is bound to an object that lives in this process only")
    if not isinstance(function, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        raise refuse(f"this {type(function).__name__} is an object that lives in this process only")
    qualname, module = function.__qualname__, function.__module__
    if "<lambda>" in qualname:
        raise refuse("a lambda has no name")
    if "<locals>" in qualname:
        raise refuse(f"{qualname!r} is made anew by each call of the function around it")
    code = getattr(function, "__code__", None)
    first_line = 0 if code is None else code.co_firstlineno
    if module not in ("__main__", "__mp_main__"):
        if not isinstance(module, str) or not _can_be_found(module.partition(".")[0]):
            raise refuse(f"there is no module {module!r} that could be imported")
        return Target(module=module, qualname=qualname, first_line=first_line)
    if importing is not None:  # the script registers its functions here, too
        return replace(importing, module="__main__", qualname=qualname, first_line=first_line)
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return Target(module="__main__", qualname=qualname, first_line=first_line, main_name=spec.name)
    path = getattr(main, "__file__", None)
    if not path or not os.path.isfile(path):
        raise refuse(f"{qualname!r} was typed into an interactive session, which no other process can import")
    return Target(
        module="__main__", qualname=qualname, first_line=first_line, main_path=os.path.abspath(path)
    )


def _can_be_found(top: str) -> bool:
    """Whether a fresh interpreter with our search path would find it: that it is loaded here says nothing."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            if find is not None and find(top, None) is not None:
                return True
        except (ImportError, ValueError):
            continue
    return False


def found_in_this_process(target: Target) -> Callable[..., Any]:
    """Import the function, in a worker.

    Raises:
        LookupError: Something else has its name there.
        Exception: Whatever importing its module raises.
    """
    global importing  # noqa: PLW0603 - of this process
    importing = target
    try:
        is_main = target.module == "__main__"
        module = _main_module(target) if is_main else importlib.import_module(target.module)
    finally:
        importing = None
    return found_in(module, target.qualname, target.first_line)


def _main_module(target: Target) -> types.ModuleType:
    """Import the server's script under another name, so that what it does as a script is left out."""
    import runpy

    if target.main_name is not None:
        content = runpy.run_module(target.main_name, run_name="__mp_main__", alter_sys=True)
    else:
        assert target.main_path is not None
        content = runpy.run_path(target.main_path, run_name="__mp_main__")
    module = types.ModuleType("__mp_main__")
    module.__dict__.update(content)
    # Pickled arguments may name classes of the script by its module's name, which was `__main__`.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    return module
